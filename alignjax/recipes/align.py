"""Runs the main recipe: data, supervised fine-tuning, reference, alignment, evaluation, report.

`run` has the stages in order. They write into the workdir:

    config.json  data_report.json  tokenizer.model   settings, data report, tokenizer
    pretrained/                                      files that came with the model of model.path
    sft/                                             the stage that makes the reference
    candidates/                                      sampled and scored lists, if the config has any
    cache/  prepared.json  held_out.jsonl            prepared rows, reference log-probabilities
    before.json  after.json                          sampled responses
    metrics.jsonl  tensorboard/  checkpoints/        the alignment
    best/                                            its best evaluation, with train.keep_best
    summary.json  report.png  report.html            the results
    .artifacts/                                      digests of what is reused, unfinished parts
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.evaluation import preferences, tables
from alignjax.evaluation.statistics import Interval
from alignjax.recipes.run import open_run, optimized
from alignjax.runtime import checkpoint
from alignjax.runtime.metrics import NOBODY, Watch
from alignjax.sampling.generate import Sample
from alignjax.stages import adapters, candidates, evaluation, held_out, learners, sft
from alignjax.stages import reference as references
from alignjax.stages.check import bind_score_sd
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed, Learner
from alignjax.types import Params

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str | pathlib.Path,
    allow_config_change: bool = False,
    *,
    watch: Watch = NOBODY,
    optimizer: optax.GradientTransformation | None = None,
) -> dict[str, Any]:
    """Aligns a policy and evaluates it; see `alignjax.recipes.run_config`.

    Args:
      watch: gets the alignment's metrics.
      optimizer: instead of the config's; checkpoints made with another one are refused.
    """
    with open_run(config, workdir, allow_config_change) as run:
        load_reference = sft.run_stage(run)
        run = bind_score_sd(candidates.make(run, load_reference))
        return _align(dataclasses.replace(run, watch=watch), load_reference, optimizer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Start:
    """The alignment before its first step, and the measurements at the start."""

    reference: Reference
    learner: Learner  # has the reference's parameters if steps score the reference
    feed: Feed
    choice: references.Choice
    # [N, K] nats of the held-out responses under the initial policy; None: not measured
    before: np.ndarray | None
    held_out: np.ndarray | None  # the same by the reference; None without one
    samples: list[Sample]


def _align(
    run: Run, load_reference: Callable[[], Params], optimizer: optax.GradientTransformation | None
) -> dict[str, Any]:
    """Aligns the policy, and writes the report."""
    start, more = _start(run, load_reference), None
    if optimizer is not None:
        start = dataclasses.replace(start, learner=optimized(start.learner, optimizer))
        more = {"optimizer": json.dumps(describe(optimizer), sort_keys=True)}
    reference, live = start.reference, start.learner.ref_params

    def during(params: Params) -> dict[str, float]:
        # The KL needs the reference, so it is loaded for a moment if it was freed.
        of = reference.load() if live is None and watched.config.evaluate.during else live
        whole, steps = adapters.whole(run.config, live, params), len(batches)
        policy = scored.keep(params, held_out.logps(watched, whole, "  held-out rows"))
        return evaluation.history_line(
            watched, whole, of, start.held_out, steps=steps, policy=policy
        )

    batches, scored = start.feed.batches, held_out.LastScored()
    evaluation.require_metric(run, start.before, start.held_out)
    watched = evaluation.paced(run, batches.row_count, len(batches))
    job = watched.job("alignment", reference.digest, more, extendable=True)
    key = jax.random.key(run.config.train.seed)
    state, counts = offline.fit(job, start.learner, start.feed, key, during)
    return _finish(run, start, state.params, counts, scored.of(state.params))


def _start(run: Run, load_reference: Callable[[], Params]) -> _Start:
    """Scores and samples with the reference, then frees it unless steps need it."""
    config, data = run.config, run.data
    params = load_reference()
    reference = Reference(load_reference, checkpoint.tree_digest(params))
    batches = run.batches()
    title, rows = "reference, train", batches.row_count
    ref_logps, choice = references.attach(run, reference, title, trained_rows=rows, params=params)
    learner = learners.policy(
        config,
        run.mesh,
        len(batches),
        load_reference=reference.load,
        base=params,
        live=choice.mode == "live",
    )

    def first() -> Params:
        # With fresh adapters, which change no bit, so that evaluations use the same programs.
        return (
            params if config.lora is None else adapters.whole(config, params, learner.load_start())
        )

    if not config.evaluate.held_out:
        before = on_held_out = None
    elif choice.mode == "none":
        before, on_held_out = held_out.logps(run, first(), "held-out rows, before"), None
    else:
        title, policy = "reference, held out", dataclasses.replace(reference, load=first)
        before = on_held_out = references.table(run, data.held_out, policy, title)
    samples = evaluation.held_out_samples("before", run, reference.digest, lambda: (first(), None))
    feed = Feed(data.train.dataset, batches, ref_logps)
    return _Start(reference, learner, feed, choice, before, on_held_out, samples)


def _finish(
    run: Run, start: _Start, trained: Params, counts: dict[str, int], policy: np.ndarray | None
) -> dict[str, Any]:
    """Evaluates policy and reference, and writes the report.

    ``policy`` are the held-out responses' nats, if the last evaluation was of ``trained``.
    """
    reference, live = start.reference, start.learner.ref_params
    ref_params = reference.load() if live is None else live
    params = adapters.whole(run.config, ref_params, trained)
    digest = checkpoint.tree_digest(params)
    samples = evaluation.held_out_samples("after", run, digest, lambda: (params, ref_params))
    # Steps donate buffers; if one donated the reference's, all numbers below would be wrong.
    if checkpoint.tree_digest(ref_params) != reference.digest:
        raise AssertionError("the reference's parameters changed during the run")
    table: tables.Table = {}
    if start.before is not None:
        if policy is None:
            policy = held_out.logps(run, params, "  held-out rows")
        table = _held_out(run, start, start.before, policy)
    if samples:
        table |= evaluation.compare_samples(run, start.samples, samples)
    divergence = evaluation.policy_kl(run, params, ref_params, samples)
    if divergence is not None:
        table[evaluation.KL] = (Interval(0.0, 0.0, 0), divergence)
    rest = {"reference": dataclasses.asdict(start.choice), "loss": describe(run.config.loss)}
    return evaluation.write_report(run, table, start.samples, samples, rest | counts)


def _held_out(run: Run, start: _Start, before: np.ndarray, after: np.ndarray) -> tables.Table:
    """Computes metrics of the held-out rows, before and after."""
    rows = run.data.held_out.dataset
    prompts = [rows[i].prompt for i in range(len(rows))]

    def means(logps: np.ndarray) -> dict[str, Interval]:
        values = evaluation.held_out_metrics(run, logps, start.held_out)
        if not np.nan_to_num(values.get("rewards/margins", np.ones(1))).any():
            for name in ("rewards/accuracies", preferences.BEST):
                values.pop(name, None)  # all rewards are equal, so there is no ranking
        return {name: preferences.over_prompts(name, x, prompts) for name, x in values.items()}

    first = means(before)
    return {name: (first.get(name), value) for name, value in means(after).items()}
