"""The recipe of several objectives: data, supervised fine-tuning, a method, its front.

Read it downwards: `run` is the order of events. What each stage writes into the workdir:

    config.json  receipt.json  tokenizer.model       what the run is made of
    pretrained/                                      what came with the model of model.path
    sft/                                             the policy that methods start from
    cache/                                           prepared rows, reference log-probabilities
    rows.json  seconds/  and what the method keeps   see `fronts.training`
    said/                                            sampled responses, a file a preference
    front.json                                       their scores: what the verb front compares
    summary.json  front.png                          what came of it
    .artifacts/                                      digests of what is reused, unfinished parts
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.commands import front
from alignjax.config import Config
from alignjax.config.fields import describe, name_of
from alignjax.data.batching import Bucketed
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.evaluation.tables import say
from alignjax.recipes.multi_objective import ObjectivesConfig, cost, scores
from alignjax.recipes.multi_objective.method import Preference, Respond, Setting, normalised
from alignjax.recipes.run import open_run
from alignjax.runtime import workdirs
from alignjax.sampling.generate import Sample, questions
from alignjax.stages import bricks, evaluation
from alignjax.stages.check import check_losses
from alignjax.stages.samples import reuse_samples

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str | pathlib.Path,
    objectives: ObjectivesConfig,
    allow_config_change: bool = False,
) -> dict[str, Any]:
    """Trains a way to respond for each preference and measures it.

    See `alignjax.recipes.run_config`.
    """
    with open_run(config, workdir, allow_config_change, check=_check) as run:
        example = run.data.asked_records[run.data.asked.dataset[0].id]
        scores.scorer_of(objectives, config.mesh).tables([example], objectives.names)
        reference = bricks.supervised(run)
        setting = Setting(
            run.config,
            run.workdir,
            run.data,
            run.mesh,
            reference.load,
            reference.digest,
            objectives,
        )
        return _measure(setting, objectives.method(setting))


def _check(config: Config, rows: Bucketed) -> None:
    """Tries the supervised stage alone: each method trains on rows of its own."""
    if config.sft is not None:
        loss, select = config.sft.loss, config.sft.select
        check_losses(dataclasses.replace(config, recipe=None, loss=loss, select=select), rows)


def _measure(setting: Setting, respond: Respond) -> dict[str, Any]:
    """Samples for every preference, scores, and reports; see the module's docstring."""
    several, data, workdir = setting.objectives, setting.data, setting.workdir
    asked = questions(data.asked, setting.config.evaluate.prompts)
    preferences = [normalised(weights) for weights in several.preferences]
    scorer = scores.scorer_of(several, setting.config.mesh)
    tables, collapsed = [], []
    for i, preference in enumerate(preferences):
        drawn = _samples(setting, respond, i, preference)
        records = evaluation.records_of(data, asked, drawn)
        found = scorer.tables(records, several.names)
        tables.append([table.mean(axis=0).tolist() for table in found])
        collapsed.append(_collapsed(setting, drawn))
    spent = cost.seconds(workdir)
    told = {
        "method": name_of(several.method).removeprefix("alignjax.recipes.multi_objective."),
        "objectives": list(several.names),
        "preferences": preferences,
        "prompts": [data.asked.dataset[q.number].id for q in asked],
        "scores": tables,
        "collapsed": collapsed,
        "seconds": sum(spent.values()),
        "seconds_by_part": spent,
        "box": several.box,
        "truth": _truth(setting, [q.prompt for q in asked]),
        "reference": setting.digest,
        "config": describe(setting.config),
        "versions": workdirs.versions(),
    }
    workdirs.write_json(workdir / "front.json", told)
    summary = {
        "method": describe(several.method),
        **front.compare({workdir.resolve().name: told}, workdir / "front.png"),
        "seconds_by_part": spent,
        "receipt": workdirs.read_json(workdir / "receipt.json"),
        "versions": workdirs.versions(),
    }
    workdirs.write_json(workdir / "summary.json", summary)
    say(f"numbers: {workdir / 'summary.json'}")
    return summary


def _truth(setting: Setting, prompts: list[str]) -> list[list[float]] | None:
    """The best mean scores that any way to respond to these prompts has, where it is known."""
    several = setting.objectives
    if several.truth is None:
        return None
    found = np.asarray(several.truth(prompts, several.names), np.float64)
    if found.ndim != 2 or found.shape[1] != len(several.names):
        raise UserError(
            f"recipe.objectives.truth: {name_of(several.truth)}: wanted points "
            f"[F, {len(several.names)}], found shape {list(found.shape)}"
        )
    return [list(map(float, point)) for point in found]


def _samples(setting: Setting, respond: Respond, i: int, preference: Preference) -> list[Sample]:
    """Responses to the held-out prompts for one preference; read back when they were drawn."""
    config, data = setting.config, setting.data
    path = setting.workdir / "said" / f"{i:02d}.json"
    parts = ("loss", "select", "optim", "train", "lora")
    key = {
        "reference": setting.digest,
        "data": data.asked.dataset.digest,
        "preference": list(preference),
        "evaluate": describe(dataclasses.replace(config.evaluate, judge=None, scorers=())),
        "trained": {
            "objectives": describe(setting.objectives),
            **{name: describe(getattr(config, name)) for name in parts},
        },
    }

    def draw(scratch: pathlib.Path) -> list[Sample]:
        log.info("preference %s", ", ".join(f"{w:.2f}" for w in preference))
        return respond(preference, questions(data.asked, config.evaluate.prompts))

    return reuse_samples(path, key, draw)


def _collapsed(setting: Setting, drawn: Sequence[Sample]) -> float:
    """Share of the responses that are `fronts.is_collapsed`, as the run's tokenizer cuts them."""
    tokenizer = setting.data.tokenizer
    said = tokenizer.encode("", [s.response for s in drawn]).response_ids
    return float(np.mean([fronts.is_collapsed(ids[:-1].tolist()) for ids in said]))
