"""The command ``compare``: compares runs at equal steps and at equal KL.

At equal steps, a loss may look better only because it has moved further from the reference. The
comparison at equal KL removes this advantage.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.commands import several_runs
from alignjax.errors import UserError
from alignjax.evaluation import plots, tables
from alignjax.evaluation.history import KL, Point, at_kl, at_step, kl_range, points
from alignjax.runtime import storage

LEFT_OUT = ("step", "kl_half_width", "rewards/chosen", "rewards/rejected")
GRID = 5  # values of KL


def run(paths: Sequence[str], out: str) -> dict[str, Any]:
    """Prints two tables for each metric, and plots it against steps and against KL.

    Args:
      paths: the runs' folders.
      out: the PNG to write; the numbers go to a JSON file beside it.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: there are fewer than two runs, two of the same name, a run without evaluations, or
        no common metric.
    """
    folders = several_runs.by_name(paths, out)
    names = list(folders)
    if len(names) < 2:
        raise UserError(f"--runs: wanted two or more, found {', '.join(names)}")
    runs = {name: points(folder) for name, folder in folders.items()}
    shared = set.intersection(*(set(history[-1]) for history in runs.values()))
    metrics = sorted(shared - {*LEFT_OUT, KL})
    if not metrics:
        raise UserError("--runs: they have no metric in common")
    ranges = {name: kl_range(history) for name, history in runs.items()}
    numbers = {
        "kl_range": ranges,
        "by_step": _by_step(runs, [KL, *metrics]),
        "by_kl": _by_kl(runs, metrics, max(high for _, high in ranges.values())),
    }
    for metric in (KL, *metrics):
        _print(numbers["by_step"][metric], names, "step", f"{metric}, at equal steps")
        if metric != KL:
            _print(numbers["by_kl"][metric], names, "KL, nats", f"{metric}, at equal KL")
    for name, (low, high) in ranges.items():
        tables.say(f"{name}: KL from {low:.3f} to {high:.3f} nats")
    tables.say("A dash: the run was not evaluated at that step, or its KL was never that large.")
    picture = pathlib.Path(out)
    storage.write_json(picture.with_suffix(".json"), numbers)
    plots.plot_histories(runs, metrics, picture)
    tables.say(f"plot: {picture}\nnumbers: {picture.with_suffix('.json')}")
    return numbers


def _by_step(runs: dict[str, list[Point]], metrics: list[str]) -> dict[str, Any]:
    steps = sorted({p["step"] for history in runs.values() for p in history})
    return {
        metric: {
            f"{step:g}": [at_step(history, metric, step) for history in runs.values()]
            for step in steps
        }
        for metric in metrics
    }


def _by_kl(runs: dict[str, list[Point]], metrics: list[str], largest: float) -> dict[str, Any]:
    grid = np.linspace(0, largest, GRID + 1)[1:]
    return {
        metric: {
            f"{kl:.3f}": [at_kl(history, metric, kl) for history in runs.values()] for kl in grid
        }
        for metric in metrics
    }


def _print(rows: dict[str, list[float | None]], names: list[str], left: str, title: str) -> None:
    cells = {
        at: ["-" if x is None else f"{x:.3f}" for x in values]
        for at, values in rows.items()
        if any(x is not None for x in values)
    }
    tables.print_rows(cells, (left, *names), title)
