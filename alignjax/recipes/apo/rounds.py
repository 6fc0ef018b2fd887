"""A game in rounds: in each the reward model is trained on samples, then the policy on rewards.

Read it downwards: `run` is the order of events. What is written into the workdir, besides what
`recipes.align` writes of config, data and the supervised stage:

    base/                                   the reward model of pairs only
    round-0/                                what is measured before the first round
    round-1/reward_lists/                   golden answers and the policy's samples beside them
    round-1/reward/                         the round's reward model, for `score`
    round-1/policy_lists/                   samples that the policy learns from, scored
    round-1/policy/                         the policy's training
    round-1/samples.json  measured.json     responses to held-out prompts, and what was measured
    history.json  summary.json  report.png  what came of it
    report.html                             all of it on a page
    prepared.json  held_out.jsonl           the pairs, as prepared
    .artifacts/                             digests of what is reused, unfinished parts

A game that was killed goes on in the stage, and in the batch or step of it, that it was at.
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
    """Plays all rounds; returns a line of history for each, and one for the start."""
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
