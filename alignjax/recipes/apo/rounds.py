"""Plays a game in rounds: each trains the reward model on samples, then the policy on its scores.

`run` has the events in order. They write into the workdir, besides the files of `recipes.align` for
config, data and the supervised stage:

    base/                                   the reward model of pairs only
    round-0/                                measurements before the first round
    round-1/reward_lists/                   golden answers with samples of the policy
    round-1/reward/                         the round's reward model, for `score`
    round-1/policy_lists/                   scored samples that the policy is trained on
    round-1/policy/                         the policy's training
    round-1/samples.json  measured.json     responses to held-out prompts, and the measurements
    history.json  summary.json  report.png  the results
    report.html                             all results on a page
    prepared.json  held_out.jsonl           the prepared pairs
    .artifacts/                             digests of what is reused, unfinished parts

A killed game resumes in the stage, and the batch or step of the stage, where it was.
"""

import logging
import pathlib
from typing import Any

from alignjax.config import Config
from alignjax.evaluation.statistics import Interval
from alignjax.recipes.apo import measure, policy_turn, reward_turn
from alignjax.recipes.apo.config import RoundsConfig
from alignjax.recipes.apo.game import open_game, report_game
from alignjax.recipes.apo.measure import ACCURACY, PAIRS, Players
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.runtime import storage
from alignjax.stages.reference import Reference

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str | pathlib.Path,
    settings: RoundsConfig,
    allow_config_change: bool = False,
) -> dict[str, Any]:
    """Plays the game; see `alignjax.recipes.run_config`."""
    with open_game(config, workdir, settings, allow_config_change) as (game, supervised, base):
        history = _play(game, settings, supervised, base)
        columns = [f"round {line['round']}" for line in history]
        return report_game(game, history, columns, _last_reward(game.workdir, settings), {})


def _play(
    game: Game, settings: RoundsConfig, supervised: Reference, base: RewardModel
) -> list[dict[str, Any]]:
    """Plays all rounds; returns the measurements of the start and of each round."""
    policy, reward = supervised, base
    rates = settings.learning_rates or (game.config.optim.learning_rate,)
    history: list[dict[str, Any]] = []
    for number in range(settings.rounds + 1):
        before = policy
        if number:
            if settings.adversarial:
                start = reward if settings.sequential else None
                reward = reward_turn.train(game, number, supervised, policy, start)
            reference = supervised if settings.reference == "supervised" else policy
            rate = rates[min(number, len(rates)) - 1]
            policy = policy_turn.train(game, number, policy, reference, supervised, reward, rate)
        players = Players(policy, before, reward, base, supervised)
        line = measure.measure(game, number, players)
        history.append(line)
        storage.keep_json(game.workdir / "history.json", history)
        log.info("round %d: %s", number, _short(line))
    return history


def _short(line: dict[str, Any]) -> str:
    metrics = {name: Interval(**x) for name, x in line["policy"].items()}
    accuracy = Interval(**line["reward_model"][PAIRS][ACCURACY])
    first = [f"{name} {x}" for name, x in list(metrics.items())[:1]]
    return ", ".join([*first, f"reward model's accuracy on pairs {accuracy}"])


def _last_reward(workdir: pathlib.Path, settings: RoundsConfig) -> pathlib.Path:
    if settings.adversarial:
        return workdir / f"round-{settings.rounds}" / "reward"
    return pathlib.Path(settings.reward_model or workdir / "base")
