"""Computes log-probabilities, loss and order of a run's held-out rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.config.fields import is_marked
from alignjax.data.batching import Bucketed
from alignjax.stages import reference
from alignjax.stages.run import Run
from alignjax.training.schedules import resolve
from alignjax.types import Batch, Logps, Params


def logps(run: Run, params: Params, title: str) -> np.ndarray:
    """Computes the log-probability of every held-out response under a network, ``[N, K]`` nats."""
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
    """The log-probabilities of a training's newest evaluation, so that the end can reuse them.

    It identifies the parameters by their smallest array, because every step makes new arrays. So it
    does not keep the memory of the others.
    """

    array: Any = None
    table: np.ndarray | None = None

    def keep(self, params: Params, table: np.ndarray) -> np.ndarray:
        """Stores the log-probabilities under these parameters, and returns them."""
        self.array, self.table = _smallest(params), table
        return table

    def of(self, params: Params) -> np.ndarray | None:
        """Returns the log-probabilities of these parameters; None if others were evaluated last."""
        return self.table if self.array is _smallest(params) else None


def _smallest(params: Params) -> Any:
    return min(jax.tree.leaves(params), key=lambda x: x.size)


def order(rows: Bucketed) -> np.ndarray | None:
    """Returns scores that order the held-out responses, ``[N, K]``; None if the first is chosen.

    Rows with several objectives have no single order: their scores are NaN.
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
    """Returns which responses are desirable, ``[N, K]`` bool; None without labels."""
    if not sum(rows.dataset.labels):
        return None
    table = np.zeros(rows.dataset.response_length.shape, bool)
    for i in range(len(rows.dataset)):
        desirable = rows.dataset[i].desirable
        assert desirable is not None  # `store` refuses rows of several kinds
        table[i, : len(desirable)] = desirable
    return table


def losses(
    run: Run, policy: np.ndarray, reference: np.ndarray | None, *, steps: int
) -> np.ndarray | None:
    """Computes the training loss on the held-out rows; None if it is not defined on them.

    It is not defined if ``select`` adds responses, if the loss reads more than the tables hold, or
    if the run trains on other responses than the data's. Scheduled hyperparameters have their last
    values at every evaluation.

    Args:
      run: the run.
      policy, reference: ``[N, K]`` nats.
      steps: steps of the run.

    Returns:
      ``[N]``, nats.
    """
    config = run.config
    if config.loss is None or config.candidates is not None:
        return None
    if any(is_marked(config.loss, mark) for mark in ("reads_tail", "reads_squares")):
        return None
    last = jnp.int32(steps)
    batch = _without_texts(run.data.held_out)
    tables = [policy] if reference is None else [policy, reference]
    # ``select`` moves ref_logps with its responses: call it once with each table in this field.
    selected = [dataclasses.replace(batch, ref_logps=jnp.asarray(table)) for table in tables]
    if config.select is not None:
        select = resolve(config.select, last, steps)
        selected = [select(jax.random.key(0), x) for x in selected]  # the same random draws
    nats = [x.ref_logps for x in selected if x.ref_logps is not None]
    if len(nats) < len(tables):
        return None
    batch = dataclasses.replace(selected[0], ref_logps=None)
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
    """Makes one batch of all rows without tokens: losses read only lengths, scores and labels."""
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
            values = data[i].scores
            assert values is not None
            scores[i, : len(values)] = values
        fields["scores"] = jnp.asarray(scores[..., 0] if len(data.objectives) == 1 else scores)
    return Batch(**fields)
