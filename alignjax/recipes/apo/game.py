"""Opens and reports a game, in both forms."""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.evaluation import plots, tables
from alignjax.evaluation.statistics import Interval
from alignjax.recipes.apo import reward_turn, setup
from alignjax.recipes.apo.config import GameConfig
from alignjax.recipes.apo.measure import ACCURACY, BEFORE, ECE, PAIRS, SAMPLES
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.recipes.run import open_run
from alignjax.runtime import storage, workdirs
from alignjax.stages import sft
from alignjax.stages.check import check_game
from alignjax.stages.reference import Reference

WHO = {"reward_model": "of the round", "base": "of pairs only"}


@contextlib.contextmanager
def open_game(
    config: Config,
    workdir: str | pathlib.Path,
    settings: GameConfig,
    allow_config_change: bool,
) -> Iterator[tuple[Game, Reference, RewardModel]]:
    """Opens a run, and trains the supervised policy and the first reward model.

    Yields:
      The game, the supervised policy, and the reward model of pairs only.
    """
    check = functools.partial(check_game, samples=settings.sampling.samples)
    with open_run(config, workdir, allow_config_change, check=check) as run:
        game = setup.set_up(run, settings)
        if settings.reward_model:
            reward_turn.find_finished(game)  # raises before anything is trained
        supervised = sft.reference_of(run)
        yield game, supervised, reward_turn.train_base(game, supervised)


def report_game(
    game: Game,
    history: list[dict[str, Any]],
    columns: list[str],
    rewarded: pathlib.Path,
    counts: dict[str, int],
) -> dict[str, Any]:
    """Writes the summary and the picture; prints the tables and the places of files.

    Args:
      history: results of `measure.measure`; the first is from before the game.
      columns: a title for each of them.
      rewarded: the last reward model's folder.
      counts: more entries of the summary.
    """
    config, workdir = game.config, game.workdir
    first, last = history[0]["policy"], history[-1]["policy"]
    summary = {
        "table": {name: {"before": first.get(name), "after": last[name]} for name in last},
        "rounds": history,
        **counts,
        "loss": describe(config.loss),
        "reward_loss": describe(config.reward_loss),
        "data_report": storage.read_json(workdir / "data_report.json"),
        "versions": workdirs.versions(),
    }
    policy = {
        name: [
            str(Interval(**line["policy"][name])) if name in line["policy"] else "-"
            for line in history
        ]
        for name in last
    }
    if policy:
        tables.print_rows(policy, ("policy, held out", *columns), f"{workdir}: {columns[-1]}")
    ranking = _ranking(history)
    tables.print_rows(ranking, ("reward model, held out", *columns), "")
    tables.say(f"± is the half-width of the 95% interval over prompts. {_legend(ranking)}".rstrip())
    picture = workdir / "report.png"
    plots.plot_rounds(_panels(history), picture)
    storage.keep_json(workdir / "summary.json", summary)  # last, because it marks a finished run
    tables.say(f"plot: {picture}\nnumbers: {workdir / 'summary.json'}")
    tables.say(
        f"the last reward model: {rewarded}; to score with it: python -m alignjax score "
        f"--reward_model={rewarded} --records=FILE --out=FILE"
    )
    return summary


def _legend(rows: Iterable[str]) -> str:
    """Explains which policy the samples in a table come from.

    >>> _legend(["pairs: accuracy of the round", "samples: accuracy of the round"])
    "samples: of the round's policy."
    >>> _legend(["pairs: accuracy of the round"])
    ''
    """
    meanings = {
        SAMPLES: "of the round's policy",
        BEFORE: "of the policy that the round began with",
    }
    shown = {row.split(":")[0] for row in rows}
    text = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items() if name in shown)
    return text and f"{text}."


def _ranking(history: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Tabulates how the reward models order held-out responses, one cell per round."""
    rows: dict[str, list[str]] = {}
    for where in (PAIRS, SAMPLES, BEFORE):
        for who, called in WHO.items():
            cells = [line[who].get(where) for line in history]
            if any(cells):
                rows[f"{where}: accuracy {called}"] = [
                    "-" if x is None else str(Interval(**x[ACCURACY])) for x in cells
                ]
                rows[f"{where}: ECE {called}"] = [
                    "-" if x is None or x[ECE] is None else f"{x[ECE]:.3f}" for x in cells
                ]
        ahead = [line["ahead"].get(where) for line in history]
        if any(ahead):
            rows[f"{where}: accuracy, difference"] = [
                "-" if x is None else str(Interval(**x)) for x in ahead
            ]
    return rows


def _panels(history: list[dict[str, Any]]) -> dict[str, dict[str, list[plots.Round]]]:
    """Collects the points of a picture: panel -> line -> (round, value, half-width)."""
    panels: dict[str, dict[str, list[plots.Round]]] = {}

    def add(panel: str, name: str, number: int, numbers: dict[str, Any]) -> None:
        value = Interval(**numbers)
        point = (number, value.mean, value.half_width)
        panels.setdefault(panel, {}).setdefault(name, []).append(point)

    for line in history:
        for name, numbers in list(line["policy"].items())[:1]:
            add(f"policy: {name}", "samples", line["round"], numbers)
    for where in (PAIRS, SAMPLES):
        for line in history:
            for who, called in WHO.items():
                if where in line[who]:
                    panel, numbers = f"reward model: accuracy on {where}", line[who][where]
                    add(panel, called, line["round"], numbers[ACCURACY])
    return panels
