"""Trains offline, on fixed rows: pairs, lists, labels, texts."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from alignjax.training.compiled import compile_start, compile_step, with_rooms
from alignjax.training.job import Feed, Job, Learner, Turns
from alignjax.training.loop import loop
from alignjax.training.step import init_state, stacked_step, train_step
from alignjax.types import Array, Batch, Params, TrainState


def fit(
    job: Job,
    learner: Learner,
    feed: Feed,
    key: Array,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> tuple[TrainState, dict[str, int]]:
    """Trains on every batch of the feed, from the newest checkpoint if there is one.

    Args:
      job: where it runs, and what happens between steps.
      learner: the network to train.
      feed: the rows to train on.
      key: root PRNG key of the draws. ``[P]`` keys train P networks in one program: the initial
        parameters have a leading axis P, and row i of a batch is for network i % P
        (`step.stacked_step`).
      evaluate: called every ``job.train.eval_every`` steps and after the last one, if that is not
        0; its numbers are logged under ``eval_`` names.

    Returns:
      The final state, and counts: steps, steps skipped, compiles, the step resumed from.

    Raises:
      StoppedError: SIGINT or SIGTERM came; the state was saved.
      NumericalError: too many steps in a row were not finite.
      CheckpointError: a checkpoint cannot be read or written.
    """
    traced: list[str] = []
    learner = with_rooms(learner, feed, job.mesh, networks=key.size)
    start, target, step_fn = make_step(learner, job.mesh, key, lambda: traced.append("step"))
    # Rows of -1 only fill up the last batches.
    rows_done = np.cumsum((feed.batches.rows >= 0).sum(axis=1))
    turns = Turns(
        total=len(feed.batches),
        target=target,
        start=lambda: start(learner.load_start()),
        batches=lambda begin: feed.read(begin, job.mesh),
        take=lambda state, batch, done: step_fn(state, learner.ref_params, batch),
        traced=traced,
        line=lambda _, step: {
            "learning_rate": float(learner.learning_rate(step - 1)),
            "epoch": rows_done[step - 1] / len(feed.dataset),
        },
    )
    return loop(job, turns, None if evaluate is None else lambda state: evaluate(state.params))


def make_step(
    learner: Learner, mesh: Mesh, key: Array, traced: Callable[[], None] = lambda: None
) -> tuple[Callable[[Params], TrainState], TrainState, Any]:
    """Makes the step function that `fit` runs.

    Args:
      learner: the network to train.
      mesh: the devices.
      key: as in `fit`.
      traced: called whenever the step is traced.

    Returns:
      A function from initial parameters to the state at step 0; shapes, dtypes and shardings of the
      state; the jitted step: ``(state, ref_params, batch) -> (state, scalars)``.
    """
    stacked, shape = key.ndim > 0, learner.params_shape
    if stacked:
        shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(key), *x.shape), x.dtype), shape)

    def start(params: Params) -> TrainState:
        update = learner.update
        make = functools.partial(
            init_state, optimizer=update.optimizer, follows=update.follow is not None
        )
        if stacked:
            return jax.vmap(lambda p, k: make(p, key=k))(params, key)
        return make(params, key=key)

    def one_step(
        state: TrainState, ref_params: Params | None, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        traced()
        take = stacked_step if stacked else train_step
        return take(state, ref_params, batch, learner.update)

    program, target = compile_start(start, shape, mesh=mesh, stacked=stacked)
    return program, target, compile_step(one_step, target)
