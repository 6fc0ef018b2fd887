"""Fronts side by side: one table, one picture. For the verb ``front``, and a run's own end."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.errors import UserError
from alignjax.evaluation import front_plots, fronts, report
from alignjax.runtime import workdirs

COLUMNS = ("front", "hypervolume", "faithfulness", "collapsed", "device seconds")


def run(workdirs_: Sequence[str], out: str) -> dict[str, Any]:
    """Prints a table of finished runs and draws their fronts into one figure.

    Args:
      workdirs_: of the runs.
      out: the PNG to write; the numbers go beside it, as JSON.

    Returns:
      What the JSON file holds.

    Raises:
      UserError: two runs of one name, one without a front, or fronts of other objectives or
        prompts than the first one's.
    """
    folders = [pathlib.Path(path) for path in workdirs_]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"--runs: wanted runs of different names, found {', '.join(names)}")
    if not out.endswith(".png"):
        raise UserError(f"--out: wanted a name that ends in .png, found {out!r}")
    picture = pathlib.Path(out)
    picture.parent.mkdir(parents=True, exist_ok=True)
    found = tell({name: read(folder) for name, folder in zip(names, folders, strict=True)}, picture)
    workdirs.write_json(picture.with_suffix(".json"), found)
    report.say(f"numbers: {picture.with_suffix('.json')}")
    return found


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The front that a finished run wrote.

    Raises:
      UserError: there is none.
    """
    file = folder / "front.json"
    if not file.is_file():
        raise UserError(f"--runs: {folder} holds no front: its config has no objectives, or go on")
    told: dict[str, Any] = workdirs.read_json(file)
    return told


def tell(told: dict[str, dict[str, Any]], picture: pathlib.Path) -> dict[str, Any]:
    """Prints the table of fronts by name, draws them, and returns the numbers of both."""
    first = next(iter(told.values()))
    for name, front in told.items():
        for field in ("objectives", "prompts"):
            if front[field] != first[field]:
                raise UserError(
                    f"--runs: {name} has other {field} than {next(iter(told))}: their scores do "
                    "not compare"
                )
    scores = {name: np.array(front["scores"]) for name, front in told.items()}
    low, high, source = _box(told, scores)
    flat = [n for n, a, b in zip(first["objectives"], low, high, strict=True) if not a < b]
    rows, numbers = {}, {}
    for name, front in told.items():
        preferences, table = np.array(front["preferences"]), scores[name]
        volume = None if flat else fronts.hypervolume(table, low=low, high=high)
        faithful = fronts.faithfulness(preferences, table.mean(axis=1))
        collapsed = float(np.mean(front["collapsed"]))
        rows[name] = [
            "-" if volume is None else str(volume),
            str(faithful),
            f"{100 * collapsed:.1f}%",
            f"{front['seconds']:.1f}",
        ]
        numbers[name] = {
            "method": front["method"],
            "hypervolume": None if volume is None else dataclasses.asdict(volume),
            "faithfulness": {**dataclasses.asdict(faithful), "mean": faithful.mean},
            "collapsed": collapsed,
            "seconds": front["seconds"],
            "points": [
                {
                    "preference": weights,
                    "collapsed": share,
                    **{
                        n: dataclasses.asdict(x)
                        for n, x in zip(front["objectives"], point, strict=True)
                    },
                }
                for weights, share, point in zip(
                    front["preferences"], front["collapsed"], fronts.points(table), strict=True
                )
            ],
        }
    report.print_rows(rows, COLUMNS, f"fronts of {', '.join(first['objectives'])}")
    box = ", ".join(
        f"{n} {a:.4g} to {b:.4g}" for n, a, b in zip(first["objectives"], low, high, strict=True)
    )
    report.say(
        f"hypervolume: share of the box {box} ({source}) that is dominated, its low corner the "
        "reference point; [95% interval over prompts]"
    )
    if flat:
        report.say(
            f"no hypervolume: all have one value of {', '.join(flat)}; set recipe.objectives.box"
        )
    front_plots.draw(told, low, high, picture)
    report.say(f"picture: {picture}")
    return {
        "objectives": first["objectives"],
        "box": {"low": low.tolist(), "high": high.tolist(), "source": source},
        "fronts": numbers,
    }


def _box(
    told: dict[str, dict[str, Any]], scores: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, str]:
    """What volumes are shares of: as the configs say, where they agree, else around the points."""
    boxes = [front["box"] for front in told.values()]
    if boxes[0] is not None and all(box == boxes[0] for box in boxes):
        low, high = np.array(boxes[0], np.float64).T
        return low, high, "as the config says"
    return *fronts.box(list(scores.values())), "smallest around the points compared"
