"""Takes one optimizer step. It receives the loss and imports none.

`train_step` draws responses, scores them under the reference (unless cached) and the policy,
differentiates the weighted loss, and updates the parameters. Averages are computed from sums in
float32, so taking a batch in several parts changes only rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.config import FollowConfig
from alignjax.models import lora
from alignjax.models.config import LoraConfig
from alignjax.models.mixture import average
from alignjax.training import microbatches
from alignjax.training.baseline import (
    baseline_fields,
    mean_over_parts,
    mean_over_rows,
    running_mean,
)
from alignjax.training.microbatches import AUTO, Rooms, weighted_sums
from alignjax.training.schedules import resolve
from alignjax.types import (
    Array,
    Baseline,
    Batch,
    Logps,
    Loss,
    Metrics,
    Params,
    RewardLoss,
    Select,
    TrainState,
)

Apply = Callable[[Params, Batch], Array]  # -> [B, K] response log-probabilities, nats; or scores
Forward = Callable[..., Any]  # (params, ref_params, batch, *, apply, key) -> the loss's input


def init_state(
    params: Params, optimizer: optax.GradientTransformation, key: Array, *, follows: bool = False
) -> TrainState:
    """Makes a state at step 0; one whose reference ``follows`` begins with a copy as reference."""

    def zero() -> Array:  # a new buffer for each counter, because a step donates them all
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(params),
        key=key,
        skipped=zero(),
        baseline=jnp.zeros((), jnp.float32),
        baseline_weight=jnp.zeros((), jnp.float32),
        reference=jax.tree.map(jnp.copy, params) if follows else None,
    )


def score(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None = None,
) -> Logps:
    """Scores responses under policy and reference; uses ``batch.ref_logps`` if it is not None."""
    del key  # nothing is drawn
    reference = _reference(ref_params, batch, apply)
    return Logps(policy=apply(params, batch), reference=reference, length=batch.response_length)


def _reference(ref_params: Params | None, batch: Batch, apply: Apply) -> Array | None:
    reference = batch.ref_logps
    if reference is None and ref_params is not None:
        reference = apply(ref_params, batch)
    return None if reference is None else jax.lax.stop_gradient(reference)


def score_tails(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None = None,
) -> Logps:
    """Scores responses as `score`, and computes the tails of `Logps`, which are never cached.

    Args:
      params, ref_params, batch, key: as in `score`; the batch has no ``ref_logps``.
      apply: ``(params, batch) -> [B, K, R]``, the log-probability of every token, nats.
    """
    del key  # nothing is drawn
    assert batch.ref_logps is None
    length = batch.response_length
    shared = jnp.where(batch.present, length, batch.response.shape[-1]).min(axis=1)
    beyond = jnp.arange(batch.response.shape[-1]) >= shared[:, None, None]

    def sums(params: Params) -> tuple[Array, Array]:
        tokens = apply(params, batch)
        return tokens.sum(axis=-1), jnp.where(beyond, tokens, 0.0).sum(axis=-1)

    policy, policy_tail = sums(params)
    reference, reference_tail = None, None
    if ref_params is not None:
        reference, reference_tail = jax.lax.stop_gradient(sums(ref_params))
    return Logps(
        policy=policy,
        reference=reference,
        length=length,
        policy_tail=policy_tail,
        reference_tail=reference_tail,
    )


def score_squares(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    of_policy: Callable[[Params, Batch], tuple[Array, Array]],
    key: Array | None = None,
) -> Logps:
    """Scores responses as `score`, and computes `Logps.log_squares`.

    Args:
      params, ref_params, batch, key: as in `score`.
      apply: as in `score`, used for the reference.
      of_policy: the same for the policy; also returns ``log_squares``.
    """
    del key  # nothing is drawn
    reference = _reference(ref_params, batch, apply)
    policy, squares = of_policy(params, batch)
    return Logps(
        policy=policy,
        reference=reference,
        length=batch.response_length,
        log_squares=jax.lax.stop_gradient(squares),
    )


def reward_scores(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None = None,
) -> Array:
    """Scores ``[B, K]`` responses with a reward model; there is no reference."""
    del ref_params, key
    return apply(params, batch)


def with_adapters(
    params: Params,
    base: Params,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None,
    forward: Forward,
    config: LoraConfig,
    live: bool,
) -> Any:
    """Scores responses with a base that has adapters; the reference is the base itself.

    Args:
      params: the adapters; only they are trained.
      base: the frozen base, passed in the place of the reference.
      key: of the adapters' dropout; the reference has none. None: no dropout.
      forward: `score` or `reward_scores`.
      config: the adapters'.
      live: whether to score the reference here; else it is in the batch, or there is none.
    """
    policy = lora.join(base, params, config, key=key, rows=batch.prompt_id)
    return forward(policy, base if live else None, batch, apply=apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What a step does: network outputs, loss and optimizer."""

    apply: Apply  # (params, batch) -> [B, K] response log-probabilities, or a reward model's scores
    loss: Loss | RewardLoss  # with its hyperparameters bound; schedules among them are resolved
    optimizer: optax.GradientTransformation
    # Makes the loss's first argument: `score` for a policy, `reward_scores` for a reward model,
    # `with_adapters` of either for adapters. Its key depends on the step and differs from select's.
    forward: Forward = score
    # Draws responses before the forward pass, with a key that depends on the step.
    select: Select | None = None
    # Values whose mean over the global batch the loss reads, without gradient. It costs one more
    # forward pass of policy and live reference if a batch has several parts, because the gradient
    # of the first part depends on the values of the last.
    baseline: Baseline | None = None
    rooms: Rooms = AUTO  # how a batch is split; gradients of the parts are added up
    steps: int = 0  # of the whole run, for `RunSchedule`s
    follow: FollowConfig | None = None  # how the reference, then the state's, moves; None: never


def train_step(
    state: TrainState, ref_params: Params | None, batch: Batch, update: Update
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one optimizer step.

    Args:
      state: the network being trained. Donate it.
      ref_params: the frozen reference, or None when its log-probabilities come with the batch,
        the loss uses none, or the state has one that follows. Never donated.
      batch: B prompts.
      update: what the step does.

    Returns:
      The new state and scalars: ``loss``, ``grad_norm``, ``num_tokens`` (without padding; a prompt
      counts once), ``weight`` (rows that count), ``skipped`` (1 if the step was not finite), the
      averages of the metrics of loss and select, and with a baseline ``baseline`` and
      ``running_baseline``. A step whose loss or gradient is not finite does not change parameters
      and optimizer state.
    """
    if update.follow is not None:
        ref_params = state.reference
    if update.select is not None:
        select = resolve(update.select, state.step, update.steps)
        batch = select(jax.random.fold_in(state.key, state.step), batch)
    weighted_loss = _weighted_loss(state, ref_params, batch, update)
    (total, sums), grads = microbatches.add_gradients(
        weighted_loss, state.params, batch, update.rooms
    )
    weight = batch.weight.sum()
    # A batch in which no row counts has loss and gradient 0, not NaN.
    loss, averages, grads = jax.tree.map(
        lambda x: x / jnp.maximum(weight, 1e-9), (total, sums, grads)
    )
    norm = optax.tree.norm(grads)
    updates, opt_state = update.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    means = state.baseline, state.baseline_weight
    if update.baseline is not None:
        finite &= jnp.isfinite(averages["baseline"])
        means = running_mean(state, averages["baseline"], weight)
    new = _next_state(state, finite, (params, opt_state, *means))
    if update.follow is not None:
        new = dataclasses.replace(new, reference=_followed(new, update.follow))
    tokens = jnp.where(batch.weight > 0, batch.prompt_length + batch.response_length.sum(1), 0)
    return new, {
        "loss": loss,
        "grad_norm": norm,
        "num_tokens": tokens.sum(),
        "weight": weight,
        "skipped": new.skipped - state.skipped,
        **averages,
    }


def _next_state(state: TrainState, finite: Array, values: tuple[Any, ...]) -> TrainState:
    """Makes the state after a step; one that was not finite changes only the counters.

    Args:
      state: before the step.
      finite: bool scalar.
      values: new parameters, optimizer state, baseline and weight of the baseline.
    """
    before = state.params, state.opt_state, state.baseline, state.baseline_weight
    # Not a multiplication by 0: 0 x NaN would write NaN into the weights.
    params, opt_state, baseline, baseline_weight = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), values, before
    )
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32),
        baseline=baseline,
        baseline_weight=baseline_weight,
    )


def _followed(state: TrainState, follow: FollowConfig) -> Params:
    """Computes the reference after a step: moved towards the policy if due, otherwise unchanged.

    Steps that were not finite count, as in ``state.step``.
    """
    due = state.step % follow.every == 0
    weights = follow.alpha, 1 - follow.alpha
    moved = average((state.params, state.reference), weights)
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, state.reference)


def _weighted_loss(
    state: TrainState, ref_params: Params | None, batch: Batch, update: Update
) -> Callable[[Params, Batch], tuple[Array, Metrics]]:
    """Makes the function that a step differentiates: the weighted loss of rows.

    Args:
      state, ref_params, update: as in `train_step`.
      batch: all rows of the step, after ``update.select``.

    Returns:
      ``(params, some of the rows) -> (weighted sum of losses, weighted sums of metrics)``.
    """
    loss = resolve(update.loss, state.step, update.steps)
    # Steps are below 2^31, so these keys differ from those of select.
    key = jax.random.fold_in(state.key, state.step.astype(jnp.uint32) + np.uint32(2**31))
    forward = functools.partial(update.forward, apply=update.apply, key=key)
    baseline, whole = None, None
    if update.baseline is not None:
        baseline = resolve(update.baseline, state.step, update.steps)
        if not update.rooms.single(batch):  # the first part's gradient needs the mean of all parts
            score_rows = functools.partial(forward, state.params, ref_params)
            whole = mean_over_parts(baseline, score_rows, batch, update.rooms)

    def weighted_loss(params: Params, part: Batch) -> tuple[Array, Metrics]:
        values = forward(params, ref_params, part)
        means: Metrics = {}
        if baseline is not None:
            mean = mean_over_rows(baseline, values, part) if whole is None else whole
            means = baseline_fields(state, jax.lax.stop_gradient(mean), batch, len(part.weight))
            part = dataclasses.replace(part, **dict[str, Any](means))
        losses, metrics = loss(values, part)
        metrics = (part.select_metrics or {}) | metrics | means
        return weighted_sums(losses, metrics, part.weight)

    return weighted_loss


def stacked_step(
    states: TrainState, ref_params: Params | None, batch: Batch, update: Update
) -> tuple[TrainState, dict[str, Array]]:
    """Takes one step of each of P networks, which share the reference (or the adapters' base).

    Args:
      states: every leaf has a leading axis P; the P keys differ, else all networks draw the same.
      ref_params: of all of them, not stacked.
      batch: P x B rows; row i is for network i % P, so that every device has rows of each.
      update: what the step of each does.

    Returns:
      The new states, and the scalars of one step: means over the networks, sums of ``num_tokens``
      and ``weight``; ``skipped`` is 1 if one network's step was not finite, which does not change
      that network and updates the others.
    """
    parts = microbatches.split(batch, len(states.step))
    # Under vmap a choice between several sizes would compute all of them.
    rooms = dataclasses.replace(update.rooms, sizes=update.rooms.sizes[-1:])
    update = dataclasses.replace(update, rooms=rooms)
    step = functools.partial(train_step, update=update)
    states, scalars = jax.vmap(step, in_axes=(0, None, 0))(states, ref_params, parts)
    whole: dict[str, Callable[[Array], Array]]
    whole = {"num_tokens": jnp.sum, "weight": jnp.sum, "skipped": jnp.max}
    return states, {name: whole.get(name, jnp.mean)(x) for name, x in scalars.items()}
