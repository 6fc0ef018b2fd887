"""What a round is measured by, on held-out prompts: the policy's samples, and who ranks them how.

A reward model is measured on humans' comparisons and on the policy's own samples, to which the
distribution has shifted; the reward model of the pairs alone is measured beside it, on the same.
The true order of samples is the judge's first score, or without a judge the mean of
``evaluate.scorers``; without either the samples say nothing of reward models.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.config.fields import describe
from alignjax.data.records import Record
from alignjax.evaluation import calibration, preferences
from alignjax.evaluation.preferences import Estimate
from alignjax.recipes.apo.setup import Player, Table
from alignjax.rewards import scorers
from alignjax.runtime import workdirs
from alignjax.sampling.generate import Sample, questions
from alignjax.stages import evaluation
from alignjax.types import Params

ACCURACY, ECE = "accuracy", "ECE"
PAIRS, SAMPLES, BEFORE = "pairs", "samples", "samples before"


def measure(
    table: Table,
    number: int,
    *,
    policy: Player,
    before: Player,
    reward: Player,
    base: Player,
    supervised: Player,
) -> dict[str, Any]:
    """A line of the game's history; what was measured of the same players is read back.

    Args:
      number: of the round.
      policy: of the round.
      before: the policy whose samples the reward model was trained on.
      reward: of the round.
      base: the reward model of the pairs alone.
      supervised: what the policy's KL is measured to.

    Returns:
      ``round``; ``policy``, its samples' metrics; ``reward_model`` and ``base``, by what they were
      measured on, accuracy (an estimate) and ECE; ``ahead``, how much more often than base the
      reward model orders two samples of one prompt rightly, by whose samples.
    """
    folder = table.workdir / f"round-{number}"
    key = {
        "data": table.data.held_out.dataset.digest,
        "players": [p.digest for p in (policy, before, reward, base, supervised)],
        "evaluate": describe(table.config.evaluate),
    }

    def make() -> dict[str, Any]:
        told: dict[str, Estimate] = {}
        sets: dict[str, tuple[list[Record], np.ndarray | None]] = {PAIRS: _comparisons(table)}
        if table.config.evaluate.prompts:
            params, ref = policy.load(), supervised.load()
            samples = _drawn(table, number, policy.digest, params, ref)
            told = evaluation.sampled(table.run, samples)
            kl = evaluation.kl(table.run, params, ref, samples)
            told |= {} if kl is None else {evaluation.KL: kl}
            del params, ref  # reward models come next
            sets[SAMPLES] = _ordered(table, samples)
            if number:
                sets[BEFORE] = _ordered(table, _drawn(table, number - 1, before.digest, None, None))
        ranked: dict[str, dict[str, Any]] = {"reward_model": {}, "base": {}, "ahead": {}}
        for name, (records, better) in sets.items():
            if better is None:
                continue
            mine = _ranks(table, reward, records, better)
            theirs = mine if base == reward else _ranks(table, base, records, better)
            prompts = [record.prompt for record in records]
            for who, (right, ece) in (("reward_model", mine), ("base", theirs)):
                mean = preferences.mean_over_prompts(right, prompts)
                if not mean.count:  # no prompt has two responses of which one is better
                    continue
                ranked[who][name] = {ACCURACY: dataclasses.asdict(mean), ECE: ece}
            ahead = preferences.mean_over_prompts(mine[0] - theirs[0], prompts)
            if ahead.count:
                ranked["ahead"][name] = dataclasses.asdict(ahead)
        policy_told = {name: dataclasses.asdict(x) for name, x in told.items() if x.count}
        return {"round": number, "policy": policy_told, **ranked}

    found = workdirs.kept(folder / "measured.json", key, make)
    return {name: x for name, x in found.items() if name != "key"}


def _drawn(table: Table, number: int, digest: str, params: Params, ref: Params) -> list[Sample]:
    """Responses to held-out prompts; with None for parameters, those that were drawn before."""
    return evaluation.samples_of(f"round-{number}/samples", table.run, params, ref, digest)


def _comparisons(table: Table) -> tuple[list[Record], np.ndarray]:
    """Held-out comparisons and their scores ``[N, K]``, NaN for absent responses."""
    return table.held_out, _padded([[x for (x,) in r.scores] for r in table.held_out])


def _ordered(table: Table, samples: list[Sample]) -> tuple[list[Record], np.ndarray | None]:
    """Samples by prompt, and what is true of them, ``[N, K]``; None where nothing says it."""
    config = table.config
    asked = questions(table.data.asked, config.evaluate.prompts)
    records = evaluation.records_of(table.data, asked, samples)
    if config.evaluate.judge is not None:
        said = [(s.prompt, s.response) for s in samples]
        first = next(iter(scorers.judgements(config.evaluate.judge, said).values()))
        return records, first.reshape(len(records), -1)
    if config.evaluate.scorers:
        opened = scorers.open_scorers(config.evaluate.scorers, "evaluate.scorers", config.mesh)
        return records, np.stack(scorers.mean_scores(opened, records))
    return records, None


def _ranks(
    table: Table, reward: Player, records: list[Record], better: np.ndarray
) -> tuple[np.ndarray, float | None]:
    """How a reward model orders responses: ``[N]`` share of pairs ordered rightly, and its ECE."""
    found = scorers.reward_model(
        records,
        path=str(reward.folder),
        batch_size=table.config.evaluate.batch_size,
        mesh=table.config.mesh,
    )
    given = _padded([x.tolist() for x in found])
    length = (~np.isnan(better)).astype(np.int64)
    right = preferences.preferences(given, length, better)["rewards/accuracies"]
    ece = calibration.measure(calibration.pairs(given, better).margin)["ece"]
    return right, None if np.isnan(ece) else ece


def _padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    table = np.full((len(lists), max(map(len, lists))), np.nan)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table
