"""Averages a loss's baseline over the global batch, without gradient."""

from collections.abc import Callable

import jax.numpy as jnp

from alignjax.training.microbatches import Rooms, add_up, weighted_sums
from alignjax.types import Array, Baseline, Batch, Logps, TrainState


def mean_over_rows(baseline: Baseline, logps: Logps, batch: Batch) -> Array:
    """Averages the baseline over the rows of a batch, by their weight."""
    return _mean(*_sums(baseline, logps, batch))


def mean_over_parts(
    baseline: Baseline, score_rows: Callable[[Batch], Logps], batch: Batch, rooms: Rooms
) -> Array:
    """Averages the baseline over the parts of a batch, which are scored one after the other."""
    return _mean(*add_up(lambda part: _sums(baseline, score_rows(part), part), batch, rooms))


def running_mean(state: TrainState, mean: Array, weight: Array) -> tuple[Array, Array]:
    """Updates the mean over all rows so far, and their weight, with the rows of a step."""
    total = state.baseline_weight + weight
    # Not from a sum over all rows so far, which would lose digits in float32.
    share = weight / jnp.maximum(total, 1e-9)
    return state.baseline + share * (mean - state.baseline), total


def baseline_fields(state: TrainState, mean: Array, batch: Batch, rows: int) -> dict[str, Array]:
    """Makes the two fields of a `Batch` with the baseline's means, the same in all rows.

    Args:
      state: before the step.
      mean: over the whole batch.
      batch: all rows of the step.
      rows: number of rows of the fields.
    """
    running, _ = running_mean(state, mean, batch.weight.sum())
    return {
        "baseline": jnp.broadcast_to(mean, rows),
        "running_baseline": jnp.broadcast_to(running, rows),
    }


def _sums(baseline: Baseline, logps: Logps, batch: Batch) -> tuple[Array, Array]:
    """Computes the weighted sum of the baseline over rows, and the sum of the weights."""
    total, _ = weighted_sums(baseline(logps, batch), {}, batch.weight)
    return total, batch.weight.sum()


def _mean(total: Array, weight: Array) -> Array:
    return total / jnp.maximum(weight, 1e-9)
