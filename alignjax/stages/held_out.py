"""The held-out rows of a run: log-probabilities, loss, and the order that the data give."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.data.batching import Bucketed
from alignjax.stages import reference
from alignjax.stages.run import Run
from alignjax.training.schedules import resolve
from alignjax.types import Batch, Logps, Params


def logps(run: Run, params: Params, title: str) -> np.ndarray:
    """``[N, K]`` nats of every held-out response under one network."""
    return reference.dataset_logps(
        params,
        run.data.held_out,
        config=run.config.model,
        batch_size=run.config.evaluate.batch_size,
        mesh=run.mesh,
        title=title,
    )


@dataclasses.dataclass
class LastScored:
    """What the newest evaluation of a training found; the end reads it and need not find it again.

    The parameters are told apart by one of their arrays, the smallest: every step makes new ones,
    and the others' memory is not held.
    """

    array: Any = None
    table: np.ndarray | None = None

    def keep(self, params: Params, table: np.ndarray) -> np.ndarray:
        """Keeps the held-out responses' table under these parameters, and gives it back."""
        self.array, self.table = _smallest(params), table
        return table

    def of(self, params: Params) -> np.ndarray | None:
        """The table of these very parameters; None: the newest evaluation was of others."""
        return self.table if self.array is _smallest(params) else None


def _smallest(params: Params) -> Any:
    return min(jax.tree.leaves(params), key=lambda x: x.size)


def order(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` scores that order the held-out responses; None where index 0 is the chosen one.

    Rows with several objectives have no one order: theirs are all NaN, and say nothing.
    """
    by_label = labels(rows)
    table = np.full(rows.dataset.response_length.shape, np.nan)
    for i in range(len(rows.dataset)):
        scores = rows.dataset[i].scores
        if scores is None:
            return None if by_label is None else by_label.astype(np.float64)
        if scores.shape[1] == 1:
            table[i, : len(scores)] = scores[:, 0]
    return table


def labels(rows: Bucketed) -> np.ndarray | None:
    """``[N, K]`` which responses are desirable; None without labels."""
    if not sum(rows.dataset.labels):
        return None
    table = np.zeros(rows.dataset.response_length.shape, bool)
    for i in range(len(rows.dataset)):
        desirable = rows.dataset[i].desirable
        assert desirable is not None  # preparation refuses rows of several kinds
        table[i, : len(desirable)] = desirable
    return table


def losses(
    run: Run, policy: np.ndarray, reference: np.ndarray | None, *, steps: int
) -> np.ndarray | None:
    """Computes the training loss on the held-out rows; None if it is not defined on them.

    That is where ``select`` adds responses that no row has, or nothing is trained on the rows as
    they are. Hyperparameters that follow the step have their last values at every evaluation.

    Args:
      policy, reference: ``[N, K]`` nats.
      steps: of the run.

    Returns:
      ``[N]``, nats.
    """
    config = run.config
    if config.loss is None or config.candidates is not None:
        return None
    last = jnp.int32(steps)
    batch = _without_texts(run.data.held_out)
    tables = [policy] if reference is None else [policy, reference]
    chosen = [dataclasses.replace(batch, ref_logps=jnp.asarray(table)) for table in tables]
    if config.select is not None:
        select = resolve(config.select, last, steps)
        chosen = [select(jax.random.key(0), one) for one in chosen]  # the same draws for both
    nats = [one.ref_logps for one in chosen if one.ref_logps is not None]
    if len(nats) < len(tables):
        return None
    batch = dataclasses.replace(chosen[0], ref_logps=None)
    logps = Logps(
        policy=nats[0],
        reference=None if reference is None else nats[1],
        length=batch.response_length,
    )
    if config.baseline is not None:
        mean = jnp.mean(resolve(config.baseline, last, steps)(logps, batch))
        same = jnp.full(len(batch.weight), mean)
        batch = dataclasses.replace(batch, baseline=same, running_baseline=same)
    return np.asarray(resolve(config.loss, last, steps)(logps, batch)[0])


def _without_texts(rows: Bucketed) -> Batch:
    """Makes one batch of all rows, without their tokens: losses read lengths, scores and labels."""
    data = rows.dataset
    n, k = data.response_length.shape
    fields: dict[str, Any] = dict(
        prompt=jnp.zeros((n, 1), jnp.int32),
        prompt_length=jnp.asarray(data.prompt_length),
        response=jnp.zeros((n, k, 1), jnp.int32),
        response_length=jnp.asarray(data.response_length),
        weight=jnp.ones(n),
        prompt_id=jnp.arange(n, dtype=jnp.int32),
    )
    by_label = labels(rows)
    if by_label is not None:
        fields["desirable"] = jnp.asarray(by_label)
    if data.objectives:
        scores = np.zeros((n, k, len(data.objectives)), np.float32)
        for i in range(n):
            found = data[i].scores
            assert found is not None
            scores[i, : len(found)] = found
        fields["scores"] = jnp.asarray(scores[..., 0] if len(data.objectives) == 1 else scores)
    return Batch(**fields)
