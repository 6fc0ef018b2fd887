"""Runs the recipe of several objectives: data, supervised fine-tuning, a method, its front.

`run` has the stages in order. They write into the workdir:

    config.json  data_report.json  tokenizer.model   settings, data report, tokenizer
    pretrained/                                      files that came with the model of model.path
    sft/                                             the policy that methods start from
    cache/                                           prepared rows, reference log-probabilities
    policies.json                                    what was trained, for generate and export
    rows.json  seconds/  and the method's files      see `rows`, `cost`, and the method
    samples/                                         sampled responses, one file per preference
    front.json                                       their scores, which the command front compares
    summary.json  front.png                          the results
    .artifacts/                                      digests of what is reused, unfinished parts
"""

import dataclasses
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.commands import front, policies
from alignjax.commands.policies import Policies, Preference
from alignjax.config import Config
from alignjax.config.fields import describe, name_of
from alignjax.data.batching import Bucketed
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.evaluation import fronts, preferences
from alignjax.evaluation.tables import say
from alignjax.recipes.multi_objective import ObjectivesConfig, cost, sampling
from alignjax.recipes.multi_objective.method import Setting
from alignjax.recipes.multi_objective.rows import objectives_scorer
from alignjax.recipes.run import open_run
from alignjax.rewards.scorers import Cuts
from alignjax.runtime import storage, workdirs
from alignjax.sampling.generate import Question, Sample, take_questions
from alignjax.stages import evaluation, sft
from alignjax.stages.check import check_answered, check_losses
from alignjax.stages.samples import reuse_samples

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str | pathlib.Path,
    objectives: ObjectivesConfig,
    allow_config_change: bool = False,
) -> dict[str, Any]:
    """Runs the method and measures its front; see `alignjax.recipes.run_config`."""
    with open_run(config, workdir, allow_config_change, check=_check) as run:
        example = run.data.original_records[run.data.originals.dataset[0].id]
        objectives_scorer(objectives, config).tables([example], objectives.names)
        setting = Setting(run, sft.reference_of(run), objectives)
        trained = objectives.method(setting)
        policies.keep(run.workdir, trained)
        return _report(setting, _measure(setting, trained))


def _check(config: Config, rows: Bucketed) -> None:
    """Tries only the supervised stage's functions, since methods train on rows of their own."""
    check_answered(config, rows)
    if config.sft is not None:
        loss, select = config.sft.loss, config.sft.select
        check_losses(dataclasses.replace(config, recipe=None, loss=loss, select=select), rows)


def _measure(setting: Setting, trained: Policies) -> dict[str, Any]:
    """Samples for every preference, scores the samples, and makes ``front.json``'s content."""
    run, objectives = setting.run, setting.objectives
    questions = take_questions(run.data.originals, run.config.evaluate.prompts)
    scorer = objectives_scorer(objectives, run.config)
    scores, collapsed, unfinished = [], [], []
    cuts: Cuts = Counter()
    for i, preference in enumerate(setting.preferences):
        samples = _sample(setting, trained, questions, i, preference)
        records = evaluation.records_of(run.data, questions, samples)
        tables = scorer.tables(records, objectives.names, cuts)
        scores.append([table.mean(axis=0).tolist() for table in tables])
        collapsed.append(_collapsed_share(run.data.tokenizer, samples))
        unfinished.append(preferences.unfinished(samples).mean)
    run.note_cuts("front", cuts)
    seconds = cost.read_seconds(run.workdir)
    return {
        "method": name_of(objectives.method).removeprefix("alignjax.recipes.multi_objective."),
        "objectives": list(objectives.names),
        "preferences": setting.preferences,
        "prompts": [run.data.originals.dataset[q.number].id for q in questions],
        "scores": scores,
        "collapsed": collapsed,
        "unfinished": unfinished,
        "seconds": sum(seconds.values()),
        "seconds_by_part": seconds,
        "box": objectives.box,
        "truth": _true_front(objectives, [q.prompt for q in questions]),
        "reference": setting.reference.digest,
        "config": describe(run.config),
        "versions": workdirs.versions(),
    }


def _report(setting: Setting, measured: dict[str, Any]) -> dict[str, Any]:
    """Writes and prints the results; see the module's docstring."""
    workdir = setting.run.workdir
    storage.keep_json(workdir / "front.json", measured)
    summary = {
        "method": describe(setting.objectives.method),
        **front.compare({workdir.resolve().name: measured}, workdir / "front.png"),
        "seconds_by_part": measured["seconds_by_part"],
        "data_report": storage.read_json(workdir / "data_report.json"),
        "versions": workdirs.versions(),
    }
    storage.keep_json(workdir / "summary.json", summary)
    say(f"numbers: {workdir / 'summary.json'}")
    return summary


def _true_front(objectives: ObjectivesConfig, prompts: list[str]) -> list[list[float]] | None:
    """Computes the best possible mean scores for these prompts; None if they are not known."""
    if objectives.truth is None:
        return None
    points = np.asarray(objectives.truth(prompts, objectives.names), np.float64)
    if points.ndim != 2 or points.shape[1] != len(objectives.names):
        raise UserError(
            f"recipe.objectives.truth: {name_of(objectives.truth)}: wanted points "
            f"[F, {len(objectives.names)}], found shape {list(points.shape)}"
        )
    return [list(map(float, point)) for point in points]


def _sample(
    setting: Setting, trained: Policies, questions: list[Question], i: int, preference: Preference
) -> list[Sample]:
    """Samples responses to the held-out prompts for preference number i, unless it was done."""
    run = setting.run
    config = run.config
    parts = ("loss", "select", "optim", "train", "lora")
    key = {
        "reference": setting.reference.digest,
        "data": run.data.originals.dataset.digest,
        "preference": list(preference),
        "evaluate": describe(dataclasses.replace(config.evaluate, judge=None, scorers=())),
        "trained": {
            "objectives": describe(setting.objectives),
            **{name: describe(getattr(config, name)) for name in parts},
        },
    }

    def draw(scratch: pathlib.Path) -> list[Sample]:
        log.info("preference %s", ", ".join(f"{w:.2f}" for w in preference))
        return sampling.respond(setting, trained, preference, questions)

    return reuse_samples(run.workdir / "samples" / f"{i:02d}.json", key, draw)


def _collapsed_share(tokenizer: Tokenizer, samples: Sequence[Sample]) -> float:
    """Computes the share of responses that are collapsed, in tokens of the run's tokenizer."""
    responses = tokenizer.encode("", [s.response for s in samples]).response_ids
    return float(np.mean([fronts.is_collapsed(ids[:-1].tolist()) for ids in responses]))
