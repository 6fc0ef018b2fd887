"""Trains networks inside a method, each in its own folder.

A repeated call with the same name resumes a killed one, and skips a finished one:

    NAME/checkpoints/             the network trained by `fit`
    seconds/NAME.json             the time of its steps, see `cost`
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.recipes.multi_objective import cost
from alignjax.recipes.multi_objective.method import Setting
from alignjax.types import Params


def stage_config(
    config: Config,
    *,
    loss: Callable[..., Any] | None = None,
    select: Callable[..., Any] | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    reference: bool | None = None,
) -> Config:
    """Makes the config of one training inside a method; None keeps the run's setting.

    Args:
      config: of the run.
      loss, select: of this training.
      steps: optimizer steps, instead of ``train.steps`` and ``train.epochs``.
      learning_rate: peak, instead of ``optim.learning_rate``.
      reference: whether the loss reads log-probabilities of the reference; None: unless
        ``reference.mode`` is "none".
    """
    optim, train, mode = config.optim, config.train, config.reference.mode
    if learning_rate is not None:
        optim = dataclasses.replace(optim, learning_rate=learning_rate)
    if steps is not None:
        train = dataclasses.replace(train, steps=steps)
    if reference is not None:
        mode = "none" if not reference else "auto" if mode == "none" else mode
    return dataclasses.replace(
        config,
        loss=loss or config.loss,
        select=select or config.select,
        optim=optim,
        train=train,
        reference=dataclasses.replace(config.reference, mode=mode),
        sft=None,
        recipe=None,
    )


def fit(
    setting: Setting, name: str, rows: Bucketed, config: Config, *, start: Params | None = None
) -> Params:
    """Trains in ``workdir/name``.

    Args:
      name: of the folder, the progress bar and the file of the time.
      rows: from `rows.prepare_rows`.
      config: from `stage_config`.
      start: initial parameters, with ``lora`` adapters; None: the reference, or fresh adapters.

    Returns:
      The trained parameters, with ``lora`` adapters.

    Raises:
      UserError: the loss does not fit the rows; or as `offline.fit`.
    """
    from alignjax.runtime import checkpoint
    from alignjax.stages import check, learners
    from alignjax.stages.reference import attach
    from alignjax.training import offline
    from alignjax.training.job import Feed

    check.check_losses(config, rows)
    run, reference = check.bind_score_sd(setting.stage(config, rows)), setting.reference
    batches = run.batches()
    # Adapters need their base anyway, so it also computes the reference's log-probabilities.
    base = None if config.lora is None else reference.load()
    title, rows_seen = f"reference, {name}", batches.row_count
    ref_logps, choice = attach(run, reference, title, trained_rows=rows_seen, params=base)
    load_start, identity = None, "reference"
    if start is not None:  # a copy, because the first step donates it
        load_start = functools.partial(jax.tree.map, jnp.copy, start)
        identity = checkpoint.tree_digest(start)
    learner = learners.policy(
        run.config,
        run.mesh,
        len(batches),
        load_reference=reference.load,
        base=base,
        live=choice.mode == "live",
        load_start=load_start,
    )
    own = dataclasses.replace(run, workdir=run.workdir / name)
    state, _ = offline.fit(
        own.job(name, reference.digest, {"start": identity}),
        learner,
        Feed(rows.dataset, batches, ref_logps),
        jax.random.key(config.train.seed),
    )
    cost.note_steps(setting, name)
    return state.params
