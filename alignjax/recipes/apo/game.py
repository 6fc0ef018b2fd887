"""The start and the report of a game, shared by both forms."""

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
    """Opens a run and trains both players before the game starts.

    Yields:
      The game, the supervised policy, and the reward model of pairs only.
    """
    check = functools.partial(check_game, samples=settings.sampling.samples)
    with open_run(config, workdir, allow_config_change, check=check) as run:
        game = setup.set_up(run, settings)
        if settings.reward_model:
            reward_turn.find_finished(game)  # refused, if it has to be, before anything is trained
        supervised = sft.reference_of(run)
        yield game, supervised, reward_turn.train_base(game, supervised)


def report_game(
    game: Game,
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
    storage.keep_json(workdir / "summary.json", summary)  # last: with it the run has ended
    tables.say(f"plot: {picture}\nnumbers: {workdir / 'summary.json'}")
    tables.say(
        f"the last reward model: {rewarded}; to score with it: python -m alignjax score "
        f"--reward_model={rewarded} --records=FILE --out=FILE"
    )
    return summary


def _legend(rows: Iterable[str]) -> str:
    """Explains which policy the samples in the rows of a table come from.

    >>> _legend(["pairs: accuracy of the round", "samples: accuracy of the round"])
    "samples: of the round's policy."
    >>> _legend(["pairs: accuracy of the round"])
    ''
    """
    said = {
        SAMPLES: "of the round's policy",
        BEFORE: "of the policy that the round began with",
    }
    found = {row.split(":")[0] for row in rows}
    told = "; ".join(f"{name}: {text}" for name, text in said.items() if name in found)
    return told and f"{told}."


def _ranking(history: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Tabulates how the reward models order held-out responses, a cell a round."""
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
    """Collects the picture's panel -> line -> (round, value, half-width) points."""
    panels: dict[str, dict[str, list[plots.Round]]] = {}
    for line in history:
        for name, x in list(line["policy"].items())[:1]:
            found = Interval(**x)
            point = (line["round"], found.mean, found.half_width)
            panels.setdefault(f"policy: {name}", {}).setdefault("samples", []).append(point)
    for where in (PAIRS, SAMPLES):
        for line in history:
            for who, called in WHO.items():
                x = line[who].get(where)
                if x is not None:
                    found = Interval(**x[ACCURACY])
                    point = (line["round"], found.mean, found.half_width)
                    title = f"reward model: accuracy on {where}"
                    panels.setdefault(title, {}).setdefault(called, []).append(point)
    return panels
