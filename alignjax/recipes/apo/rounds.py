"""A game in rounds: the reward model learns what the policy says, the policy what it is told.

Read it downwards: `run` is the order of events. What is written into the workdir, besides what
`recipes.align` writes of config, data and the supervised stage:

    base/                                   the reward model of the pairs alone
    round-0/                                what is measured before the first round
    round-1/reward_lists/                   golden answers and the policy's samples beside them
    round-1/reward/                         the round's reward model, for `score`
    round-1/policy_lists/                   samples that the policy learns from, scored
    round-1/policy/                         the policy's training
    round-1/samples.json  measured.json     responses to held-out prompts, and what was measured
    history.json  summary.json  report.png  what came of it

A game that was killed goes on in the stage, and in the batch or step of it, that it was at.
"""

import logging
import pathlib
from typing import Any

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.errors import UserError
from alignjax.evaluation import report
from alignjax.evaluation.preferences import Estimate
from alignjax.recipes.apo import measure, policy_turn, reward_turn, setup
from alignjax.recipes.apo.measure import ACCURACY, BEFORE, ECE, PAIRS, SAMPLES
from alignjax.recipes.apo.setup import Player, Table
from alignjax.recipes.run import open_run
from alignjax.runtime import workdirs
from alignjax.runtime.faults import fault_point
from alignjax.stages import bricks

log = logging.getLogger("alignjax")


def run(
    config: Config, workdir: str | pathlib.Path, *, allow_config_change: bool = False
) -> dict[str, Any]:
    """Plays the game; started again, continues.

    Args:
      config: what to do; its ``game`` is set.
      workdir: the run's folder.
      allow_config_change: continue although the config differs from the one the run began with.

    Returns:
      What ``summary.json`` holds.

    Raises:
      UserError: see `alignjax.errors` for the kinds and their exit codes.
    """
    game = config.game
    assert game is not None
    if game.reward_steps or game.policy_steps:
        raise UserError(
            "game.reward_steps, game.policy_steps: wanted 0 and 0 for a game in rounds, found "
            f"{game.reward_steps} and {game.policy_steps}"
        )
    with open_run(config, workdir, allow_config_change) as run:
        table = setup.lay(run)
        if game.reward_model:
            reward_turn.given(table)  # refused, if it has to be, before anything is trained
        reference = bricks.supervised(run)
        supervised = Player(run.workdir / "sft", reference.digest, reference.load)
        history = _play(table, supervised)
        columns = [f"round {line['round']}" for line in history]
        return report_game(table, history, columns, _last_reward(table), {})


def _play(table: Table, supervised: Player) -> list[dict[str, Any]]:
    """All rounds; a line of history for each, and one for what was before them."""
    game = table.config.game
    assert game is not None
    base = reward_turn.base(table, supervised)
    policy, reward = supervised, base
    history: list[dict[str, Any]] = []
    for number in range(game.rounds + 1):
        before = policy
        if number:
            if game.adversarial:
                reward = reward_turn.move(table, number, supervised, policy, reward)
            policy = policy_turn.move(table, number, policy, supervised, reward)
        line = measure.measure(
            table,
            number,
            policy=policy,
            before=before,
            reward=reward,
            base=base,
            supervised=supervised,
        )
        history.append(line)
        workdirs.write_json(table.workdir / "history.json", history)
        log.info("round %d: %s", number, _short(line))
    return history


def _short(line: dict[str, Any]) -> str:
    told = {name: Estimate(**x) for name, x in line["policy"].items()}
    accuracy = Estimate(**line["reward_model"][PAIRS][ACCURACY])
    first = [f"{name} {x}" for name, x in list(told.items())[:1]]
    return ", ".join([*first, f"reward model's accuracy on pairs {accuracy}"])


def report_game(
    table: Table,
    history: list[dict[str, Any]],
    columns: list[str],
    rewarded: pathlib.Path,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Writes the summary and the picture; prints the tables and where things are.

    Args:
      history: of `measure.measure`; the first is what was before the game.
      columns: what each line of it is called.
      rewarded: the last reward model's folder.
      counts: what else the summary is to hold.
    """
    config, workdir = table.config, table.workdir
    first, last = history[0]["policy"], history[-1]["policy"]
    summary = {
        "table": {name: {"before": first.get(name), "after": last[name]} for name in last},
        "rounds": history,
        **counts,
        "loss": describe(config.loss),
        "reward_loss": describe(config.reward_loss),
        "receipt": table.data.receipt,
        "versions": workdirs.versions(),
    }
    policy = {
        name: [
            str(Estimate(**line["policy"][name])) if name in line["policy"] else "-"
            for line in history
        ]
        for name in last
    }
    if policy:
        report.print_rows(policy, ("policy, held out", *columns), f"{workdir}: {columns[-1]}")
    report.print_rows(_ranking(history), ("reward model, held out", *columns), "")
    report.say(
        "± is the half-width of the 95% interval over prompts. samples: of the round's policy; "
        "samples before: of the policy that the round began with."
    )
    picture = workdir / "report.png"
    report.plot_rounds(_panels(history), picture)
    workdirs.write_json(workdir / "summary.json", summary)  # last: with it the run has ended
    fault_point("ended", "")
    report.say(f"plot: {picture}\nnumbers: {workdir / 'summary.json'}")
    report.say(
        f"the last reward model: {rewarded}; to score with it: python -m alignjax score "
        f"--reward_model={rewarded} --records=FILE --out=FILE"
    )
    return summary


def _last_reward(table: Table) -> pathlib.Path:
    game = table.config.game
    assert game is not None
    if game.adversarial:
        return table.workdir / f"round-{game.rounds}" / "reward"
    return pathlib.Path(game.reward_model or table.workdir / "base")


WHO = {"reward_model": "of the round", "base": "of the pairs alone"}


def _ranking(history: list[dict[str, Any]]) -> dict[str, list[str]]:
    """How the reward models order held-out responses, a cell a round."""
    rows: dict[str, list[str]] = {}
    for where in (PAIRS, SAMPLES, BEFORE):
        for who, called in WHO.items():
            found = [line[who].get(where) for line in history]
            if any(found):
                rows[f"{where}: accuracy {called}"] = [
                    "-" if x is None else str(Estimate(**x[ACCURACY])) for x in found
                ]
                rows[f"{where}: ECE {called}"] = [
                    "-" if x is None or x[ECE] is None else f"{x[ECE]:.3f}" for x in found
                ]
        ahead = [line["ahead"].get(where) for line in history]
        if any(ahead):
            rows[f"{where}: accuracy, difference"] = [
                "-" if x is None else str(Estimate(**x)) for x in ahead
            ]
    return rows


def _panels(history: list[dict[str, Any]]) -> dict[str, dict[str, list[report.Point]]]:
    """What the picture shows: panel -> line -> (round, value, half-width) points."""
    panels: dict[str, dict[str, list[report.Point]]] = {}
    for line in history:
        for name, x in list(line["policy"].items())[:1]:
            point = (line["round"], x["mean"], x["half_width"])
            panels.setdefault(f"policy: {name}", {}).setdefault("samples", []).append(point)
    for where in (PAIRS, SAMPLES):
        for line in history:
            for who, called in WHO.items():
                x = line[who].get(where)
                if x is not None:
                    point = (line["round"], x[ACCURACY]["mean"], x[ACCURACY]["half_width"])
                    title = f"reward model: accuracy on {where}"
                    panels.setdefault(title, {}).setdefault(called, []).append(point)
    return panels
