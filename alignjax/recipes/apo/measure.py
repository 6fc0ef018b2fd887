"""Measures a round on held-out prompts: the policy's samples, and how reward models rank them.

The round's reward model and the reward model of pairs only are measured on human comparisons and on
the policy's own samples, whose distribution has shifted. The true order of samples is the judge's
first score, or without a judge the mean of ``evaluate.scorers``; without either, reward models are
measured on comparisons only.
"""

import dataclasses
import functools
import pathlib
from collections import Counter
from typing import Any

import numpy as np

from alignjax.config.fields import describe
from alignjax.data.records import Record
from alignjax.evaluation import calibration, preferences, statistics
from alignjax.evaluation.statistics import Interval
from alignjax.models import lora
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.rewards import scorers
from alignjax.rewards.scorers import Cuts
from alignjax.runtime import artifacts
from alignjax.sampling.generate import Sample, take_questions
from alignjax.stages import evaluation
from alignjax.stages.reference import Reference
from alignjax.types import Params

ACCURACY, ECE = "accuracy", "ECE"
PAIRS, SAMPLES, BEFORE = "pairs", "samples", "samples before"


@dataclasses.dataclass(frozen=True)
class Players:
    """The networks that are evaluated in a round, and those that they are compared with."""

    policy: Reference  # of the round
    before: Reference  # the policy whose samples the reward model was trained on
    reward: RewardModel  # of the round
    base: RewardModel  # the reward model of pairs only
    supervised: Reference  # reference of the policy's KL


# Records, and the true scores of their responses, [N, K], NaN for absent ones.
Ordered = tuple[list[Record], np.ndarray]


def measure(game: Game, number: int, players: Players) -> dict[str, Any]:
    """Measures the players of a round, or reads the results if they were measured before.

    Args:
      number: of the round.

    Returns:
      ``round``; ``policy``, metrics of its samples; ``reward_model`` and ``base``, accuracy (an
      estimate) and ECE on each set of responses; ``ahead``, the accuracy of the reward model minus
      that of base on each set.
    """
    key = {
        "data": game.data.held_out.dataset.digest,
        "players": [getattr(players, field.name).digest for field in dataclasses.fields(players)],
        "evaluate": describe(game.config.evaluate),
        "reward_models": scorers.digests(_scorers(game)),  # the config has only their paths
    }

    name = f"round-{number}"

    def make(scratch: pathlib.Path) -> dict[str, Any]:
        del scratch  # the samples, which take long, have files of their own
        policy, sets = _measure_policy(game, number, players)
        return {"round": number, "policy": policy, **_measure_rewards(game, name, players, sets)}

    file = game.workdir / name / "measured.json"
    line = artifacts.reuse_json(file, key, make)
    return {name: x for name, x in line.items() if name != "key"}


def _measure_policy(
    game: Game, number: int, players: Players
) -> tuple[dict[str, Any], dict[str, Ordered]]:
    """Measures the policy's samples; also returns sets of responses with their true scores."""
    sets: dict[str, Ordered | None] = {PAIRS: _comparisons(game)}
    metrics: dict[str, Interval] = {}
    if game.config.evaluate.prompts:
        params, ref = _load_with_supervised(game, players.policy, players.supervised)
        name, digest = f"round-{number}/samples", players.policy.digest
        samples = evaluation.held_out_samples(name, game.run, digest, lambda: (params, ref))
        scored = evaluation.score_samples(game.run, samples, name)
        metrics = evaluation.sample_metrics(game.run, scored)
        kl = evaluation.policy_kl(game.run, params, ref, samples)
        metrics |= {} if kl is None else {evaluation.KL: kl}
        del params, ref  # frees memory for reward models
        sets[SAMPLES] = _order(game, samples)
        if number:
            sets[BEFORE] = _order(game, _earlier_samples(game, number - 1, players))
    estimates = {name: x.as_dict() for name, x in metrics.items() if x.count}
    return estimates, {name: x for name, x in sets.items() if x is not None}


def _measure_rewards(
    game: Game, name: str, players: Players, sets: dict[str, Ordered]
) -> dict[str, dict[str, Any]]:
    """Measures how the round's reward model and the base order each set, and the difference."""
    cuts: Cuts = Counter()
    out: dict[str, dict[str, Any]] = {"reward_model": {}, "base": {}, "ahead": {}}
    for where, (records, better) in sets.items():
        mine = _rank(game, players.reward, records, better, cuts)
        same = players.base == players.reward
        theirs = mine if same else _rank(game, players.base, records, better, cuts)
        prompts = [record.prompt for record in records]
        for who, (right, ece) in (("reward_model", mine), ("base", theirs)):
            mean = statistics.mean_over_prompts(right, prompts)
            if mean.count:  # 0: no prompt has two responses with different scores
                out[who][where] = {ACCURACY: mean.as_dict(), ECE: ece}
        ahead = statistics.mean_over_prompts(mine[0] - theirs[0], prompts)
        if ahead.count:
            out["ahead"][where] = ahead.as_dict()
    game.run.note_cuts(f"{name}/ranked", cuts)
    return out


def _earlier_samples(game: Game, number: int, players: Players) -> list[Sample]:
    """Reads the samples of an earlier round; samples again if the file is damaged."""
    name, before = f"round-{number}/samples", players.before
    load = functools.partial(_load_with_supervised, game, before, players.supervised)
    return evaluation.held_out_samples(name, game.run, before.digest, load)


def _load_with_supervised(
    game: Game, policy: Reference, supervised: Reference
) -> tuple[Params, Params]:
    """Loads a policy and the supervised one; with adapters this is their base, loaded only once."""
    params = policy.load()
    return params, supervised.load() if game.config.lora is None else lora.without(params)


def _comparisons(game: Game) -> Ordered:
    """Returns the held-out comparisons with their scores."""
    return game.held_out, preferences.padded([[x for (x,) in r.scores] for r in game.held_out])


def _order(game: Game, samples: list[Sample]) -> Ordered | None:
    """Makes records of samples with their true scores; None without a judge or scorers."""
    config = game.config
    questions = take_questions(game.data.originals, config.evaluate.prompts)
    records = evaluation.records_of(game.data, questions, samples)
    if config.evaluate.judge is not None:
        texts = [(s.prompt, s.response) for s in samples]
        first = next(iter(scorers.judgements(config.evaluate.judge, texts).values()))
        return records, first.reshape(len(records), -1)
    if config.evaluate.scorers:
        return records, np.stack(scorers.mean_scores(_scorers(game), records))
    return None


def _scorers(game: Game) -> list[scorers.Scorer]:
    config = game.config
    return scorers.open_scorers(config.evaluate.scorers, "evaluate.scorers", config)


def _rank(
    game: Game, reward: RewardModel, records: list[Record], better: np.ndarray, cuts: Cuts
) -> tuple[np.ndarray, float | None]:
    """Ranks responses by a reward model: ``[N]`` share of pairs ordered rightly, and its ECE."""
    lists = scorers.reward_model(
        records,
        path=str(reward.folder),
        batch_size=game.config.evaluate.batch_size,
        mesh=game.config.mesh,
        cuts=cuts,
    )
    scores = preferences.padded([x.tolist() for x in lists])
    length = (~np.isnan(better)).astype(np.int64)
    right = preferences.reward_metrics(scores, length, better)["rewards/accuracies"]
    ece = calibration.measure(calibration.pairs(scores, better).margin)["ece"]
    return right, None if np.isnan(ece) else ece
