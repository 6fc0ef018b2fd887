"""Compares Pareto fronts in a table and a plot: the command ``front``, also used by runs."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.commands import several_runs
from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.evaluation.plots import Front, plot_fronts
from alignjax.evaluation.tables import print_rows, say
from alignjax.runtime import storage

COLUMNS = ("front", "hypervolume", "faithfulness", "collapsed", "unfinished", "device seconds")


def run(paths: Sequence[str], out: str) -> dict[str, Any]:
    """Prints a table of finished runs and plots their fronts in one figure.

    Args:
      paths: the runs' folders.
      out: the PNG to write; the numbers go to a JSON file beside it.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: two runs have the same name, a run has no front, or fronts have different
        objectives or prompts.
    """
    folders = several_runs.by_name(paths, out)
    picture = pathlib.Path(out)
    picture.parent.mkdir(parents=True, exist_ok=True)
    named = {name: read(folder) for name, folder in folders.items()}
    numbers = compare(named, picture)
    storage.write_json(picture.with_suffix(".json"), numbers)
    say(f"numbers: {picture.with_suffix('.json')}")
    return numbers


def read(folder: pathlib.Path) -> Front:
    """Reads the front of a finished run.

    Raises:
      UserError: there is none, or it is of an earlier version.
    """
    file = folder / "front.json"
    if not file.is_file():
        raise UserError(f"--runs: {folder} has no front: no objectives, or unfinished")
    front: Front = storage.read_json(file)
    if "unfinished" not in front:
        raise UserError(f"--runs: {folder} has a front of an earlier version: evaluate it again")
    return front


def compare(named: dict[str, Front], picture: pathlib.Path) -> dict[str, Any]:
    """Prints a table of fronts, plots them, and returns the numbers of both."""
    _check_alike(named)
    names = next(iter(named.values()))["objectives"]
    low, high, source = _box(named)
    flat = [n for n, a, b in zip(names, low, high, strict=True) if not a < b]
    rows, numbers = {}, {}
    for name, front in named.items():
        scores, weights = np.array(front["scores"]), np.array(front["preferences"])
        volume = None if flat else fronts.hypervolume(scores, low=low, high=high)
        faithful = fronts.faithfulness(weights, scores.mean(axis=1))
        collapsed, unfinished = (float(np.mean(front[x])) for x in ("collapsed", "unfinished"))
        rows[name] = [
            "-" if volume is None else str(volume),
            str(faithful),
            f"{100 * collapsed:.1f}%",
            f"{100 * unfinished:.1f}%",
            f"{front['seconds']:.1f}",
        ]
        numbers[name] = {
            "method": front["method"],
            "hypervolume": volume
            and {"value": volume.mean, "low": volume.low, "high": volume.high},
            "faithfulness": {**dataclasses.asdict(faithful), "mean": faithful.mean},
            "collapsed": collapsed,
            "unfinished": unfinished,
            "seconds": front["seconds"],
            "points": _points(front),
        }
    print_rows(rows, COLUMNS, f"fronts of {', '.join(names)}")
    box = ", ".join(f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip(names, low, high, strict=True))
    say(
        f"hypervolume: share of the box {box} ({source}) that is dominated, its low corner the "
        "reference point; [95% interval over prompts]"
    )
    if flat:
        say(
            f"no hypervolume: all points have the same {', '.join(flat)}; set recipe.objectives.box"
        )
    plot_fronts(named, low, high, picture)
    say(f"picture: {picture}")
    return {
        "objectives": names,
        "box": {"low": low.tolist(), "high": high.tolist(), "source": source},
        "fronts": numbers,
    }


def _points(front: Front) -> list[dict[str, Any]]:
    """Lists the mean scores of each preference, for the JSON file."""
    points = fronts.points(np.array(front["scores"]))
    return [
        {
            "preference": weights,
            "collapsed": collapsed,
            "unfinished": unfinished,
            **{n: x.as_dict() for n, x in zip(front["objectives"], point, strict=True)},
        }
        for weights, collapsed, unfinished, point in zip(
            *(front[name] for name in ("preferences", "collapsed", "unfinished")),
            points,
            strict=True,
        )
    ]


def _check_alike(named: dict[str, Front]) -> None:
    """Refuses fronts whose objectives or prompts differ from the first front's."""
    (first_name, first), *others = named.items()
    for name, front in others:
        for field in ("objectives", "prompts"):
            if front[field] != first[field]:
                raise UserError(
                    f"--runs: {name} has other {field} than {first_name}, so their scores "
                    "cannot be compared"
                )


def _box(named: dict[str, Front]) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the box of the configs if they agree, else the smallest around the points."""
    boxes = [front["box"] for front in named.values()]
    if boxes[0] is not None and all(box == boxes[0] for box in boxes):
        low, high = np.array(boxes[0], np.float64).T
        return low, high, "as the config says"
    scores = [np.array(front["scores"]) for front in named.values()]
    return *fronts.box(scores), "smallest around the points compared"
