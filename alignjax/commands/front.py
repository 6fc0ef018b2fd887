"""Fronts side by side: one table, one picture. For the verb ``front``, and a run's own end."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.errors import UserError
from alignjax.evaluation import fronts
from alignjax.evaluation.fronts import Faithfulness
from alignjax.evaluation.plots import Front, plot_fronts
from alignjax.evaluation.statistics import Interval
from alignjax.evaluation.tables import print_rows, say
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
    named = {name: read(folder) for name, folder in zip(names, folders, strict=True)}
    numbers = compare(named, picture)
    workdirs.write_json(picture.with_suffix(".json"), numbers)
    say(f"numbers: {picture.with_suffix('.json')}")
    return numbers


def read(folder: pathlib.Path) -> Front:
    """Reads the front that a finished run wrote.

    Raises:
      UserError: there is none.
    """
    file = folder / "front.json"
    if not file.is_file():
        raise UserError(f"--runs: {folder} holds no front: its config has no objectives, or go on")
    front: Front = workdirs.read_json(file)
    return front


def compare(named: dict[str, Front], picture: pathlib.Path) -> dict[str, Any]:
    """Prints the table of fronts by name, draws them, and returns the numbers of both."""
    _check_alike(named)
    names = next(iter(named.values()))["objectives"]
    box = _box(named)
    flat = [n for n, a, b in zip(names, box.low, box.high, strict=True) if not a < b]
    measured = {name: _measure(front, None if flat else box) for name, front in named.items()}
    print_rows(
        {name: front.cells() for name, front in measured.items()},
        COLUMNS,
        f"fronts of {', '.join(names)}",
    )
    say(
        f"hypervolume: share of the box {box.text(names)} ({box.source}) that is dominated, its "
        "low corner the reference point; [95% interval over prompts]"
    )
    if flat:
        say(f"no hypervolume: all have one value of {', '.join(flat)}; set recipe.objectives.box")
    plot_fronts(named, box.low, box.high, picture)
    say(f"picture: {picture}")
    return {
        "objectives": names,
        "box": {"low": box.low.tolist(), "high": box.high.tolist(), "source": box.source},
        "fronts": {name: front.as_dict() for name, front in measured.items()},
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Box:
    """The box that hypervolumes are shares of."""

    low: np.ndarray  # [M]
    high: np.ndarray  # [M]
    source: str  # where it is from

    def text(self, names: Sequence[str]) -> str:
        """Formats the box, with names."""
        ends = zip(names, self.low, self.high, strict=True)
        return ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, low, high in ends)


@dataclasses.dataclass(frozen=True, eq=False)
class _Measured:
    """A front and its measures."""

    front: Front
    volume: Interval | None
    faithful: Faithfulness
    points: list[list[Interval]]  # [P][M]

    @property
    def collapsed(self) -> float:
        """Share of all responses that have collapsed."""
        return float(np.mean(self.front["collapsed"]))

    def cells(self) -> list[str]:
        """Formats the front's row of the table."""
        return [
            "-" if self.volume is None else str(self.volume),
            str(self.faithful),
            f"{100 * self.collapsed:.1f}%",
            f"{self.front['seconds']:.1f}",
        ]

    def as_dict(self) -> dict[str, Any]:
        """Gives the numbers for the JSON file."""
        volume = None
        if self.volume is not None:
            volume = {"value": self.volume.mean, "low": self.volume.low, "high": self.volume.high}
        by_preference = zip(
            self.front["preferences"], self.front["collapsed"], self.points, strict=True
        )
        names = self.front["objectives"]
        return {
            "method": self.front["method"],
            "hypervolume": volume,
            "faithfulness": {**dataclasses.asdict(self.faithful), "mean": self.faithful.mean},
            "collapsed": self.collapsed,
            "seconds": self.front["seconds"],
            "points": [
                {
                    "preference": weights,
                    "collapsed": share,
                    **{name: x.as_dict() for name, x in zip(names, point, strict=True)},
                }
                for weights, share, point in by_preference
            ],
        }


def _measure(front: Front, box: _Box | None) -> _Measured:
    """Measures a front; without a box it has no hypervolume."""
    scores = np.array(front["scores"])
    volume = None if box is None else fronts.hypervolume(scores, low=box.low, high=box.high)
    faithful = fronts.faithfulness(np.array(front["preferences"]), scores.mean(axis=1))
    return _Measured(front, volume, faithful, fronts.points(scores))


def _check_alike(named: dict[str, Front]) -> None:
    """Refuses fronts of other objectives or prompts than the first one's."""
    (first_name, first), *others = named.items()
    for name, front in others:
        for field in ("objectives", "prompts"):
            if front[field] != first[field]:
                raise UserError(
                    f"--runs: {name} has other {field} than {first_name}: their scores do not "
                    "compare"
                )


def _box(named: dict[str, Front]) -> _Box:
    """Takes the box that the configs agree on, else the smallest around the points."""
    boxes = [front["box"] for front in named.values()]
    if boxes[0] is not None and all(box == boxes[0] for box in boxes):
        low, high = np.array(boxes[0], np.float64).T
        return _Box(low, high, "as the config says")
    low, high = fronts.box([np.array(front["scores"]) for front in named.values()])
    return _Box(low, high, "smallest around the points compared")
