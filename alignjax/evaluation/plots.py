"""Draws pictures of runs, as PNG files. Of several processes only the first writes them."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.errors import naming_file
from alignjax.evaluation import fronts
from alignjax.evaluation.calibration import Bins
from alignjax.evaluation.history import Point
from alignjax.runtime import distributed
from alignjax.runtime.metrics import read

Round = tuple[int, float, float]  # round, value, half-width of its 95% interval
Front = dict[str, Any]  # content of ``front.json``

_MARGINS = (0.9, 0.15, 0.5, 0.35)  # of a panel, inches: left, right, below, above


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A plot of some of a run's metrics over its steps."""

    title: str
    unit: str
    names: dict[str, str]  # metric in metrics.jsonl -> name in the legend


_PANELS = (
    _Panel("loss", "nats per prompt", {"loss": "training", "eval_loss": "held out"}),
    _Panel(
        "reward",
        "reward",
        {
            "rewards/chosen": "chosen",
            "rewards/rejected": "rejected",
            "rewards/margins": "margin",
            "eval_rewards/margins": "margin, held out",
        },
    ),
    _Panel(
        "reward accuracy",
        "share of prompts",
        {"rewards/accuracies": "training", "eval_rewards/accuracies": "held out"},
    ),
    _Panel("KL to the reference", "nats per response", {"eval_kl": "samples"}),
    _Panel("learning rate", "learning rate", {"learning_rate": "learning rate"}),
)


def _panels(lines: Sequence[dict[str, Any]]) -> list[_Panel]:
    """Returns the panels for which there are numbers."""
    present = {name for line in lines for name, value in line.items() if value is not None}
    return [x for x in _PANELS if present & x.names.keys()]


def _draw(axis: Any, panel: _Panel, lines: Sequence[dict[str, Any]]) -> None:
    """Draws the lines of a panel; metrics of samples with their 95% intervals."""
    for name, label in panel.names.items():
        some = [line for line in lines if line.get(name) is not None]
        if not some:
            continue
        steps, values = [x["step"] for x in some], [x[name] for x in some]
        # Few points get markers, because a line with one point is invisible.
        marker = "o" if name.startswith("eval_") else "." if len(some) < 20 else None
        widths = [x.get(f"{name}_half_width") for x in some]
        if None in widths:
            axis.plot(steps, values, label=label, marker=marker, markersize=4, linewidth=1.5)
        else:
            axis.errorbar(steps, values, yerr=widths, label=label, marker=marker, markersize=4)
    axis.set(title=panel.title, xlabel="step", ylabel=panel.unit)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def training_figures(lines: Sequence[dict[str, Any]]) -> list[Any]:
    """Draws each training curve of a run as a figure of its own, for its report."""
    figures = []
    for panel in _panels(lines):
        figure, axes = _figure(1, 1, (5.2, 3.4))
        _draw(axes[0][0], panel, lines)
        figures.append(figure)
    return figures


def plot_training(
    workdir: pathlib.Path,
    path: pathlib.Path,
    scores: Sequence[Sequence[float]] | None,
    score_name: str,
) -> Any:
    """Draws training curves of a run and, if responses were judged, their scores.

    Args:
      workdir: has ``metrics.jsonl``.
      path: the PNG to write.
      scores: one score per sampled response, before and after; None: no such panel.
      score_name: name of the scores.
    """
    panels = _panels(lines := read(workdir / "metrics.jsonl"))
    count = len(panels) + (scores is not None)
    columns = min(3, count)
    figure, grid = _figure(math.ceil(count / columns), columns, (4.2, 3.2))
    axes, unused = grid.ravel()[:count], grid.ravel()[count:]
    for axis in unused:
        axis.remove()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, lines)
    if scores is not None:
        axis = axes[-1]
        axis.hist(scores, bins=20, label=["before", "after"])
        axis.set(title=f"{score_name} of sampled responses", xlabel=score_name, ylabel="responses")
        axis.legend(fontsize=7)
    return _save(figure, path)


def plot_reliability(path: pathlib.Path, bins: dict[str, tuple[Bins, Bins]]) -> Any:
    """Draws reliability diagrams: how often the preferred response won, by predicted probability.

    Args:
      path: the PNG to write.
      bins: objective -> bins before and after temperature scaling; one panel each.
    """
    figure, axes = _figure(1, len(bins), (4.2, 4.0))
    for axis, (name, pair) in zip(axes[0], bins.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="gray", linewidth=1, label="calibrated")
        for label, values in zip(("before", "after"), pair, strict=True):
            some = values.count > 0
            axis.plot(values.predicted[some], values.happened[some], marker="o", label=label)
        axis.set(title=name, xlabel="predicted probability of preference", ylabel="share preferred")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return _save(figure, path)


def plot_rounds(panels: dict[str, dict[str, list[Round]]], path: pathlib.Path) -> Any:
    """Draws values by round, with 95% intervals, from "who: what" -> line -> points."""
    figure, axes = _figure(1, len(panels), (4.2, 3.2))
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for name, points in lines.items():
            rounds, values, half = zip(*points, strict=True)
            axis.errorbar(rounds, values, yerr=half, marker="o", capsize=3, label=name)
            axis.set_xticks(rounds)
        who, _, what = title.partition(": ")
        axis.set_title(who, fontsize=10)
        axis.set(xlabel="round", ylabel=what)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return _save(figure, path)


def plot_histories(runs: dict[str, list[Point]], metrics: Sequence[str], path: pathlib.Path) -> Any:
    """Draws every metric over the step and, below, over the KL; one line per run."""
    rows = (("step", "step"), ("kl", "KL to the reference, nats"))
    figure, axes = _figure(2, len(metrics), (3.6, 3.0))
    for column, metric in enumerate(metrics):
        for axis, (x, label) in zip(axes[:, column], rows, strict=True):
            for name, history in runs.items():
                points = [(p[x], p[metric]) for p in history if x in p and metric in p]
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            axis.set(title=metric, xlabel=label)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    return _save(figure, path)


def plot_fronts(
    named: dict[str, Front], low: np.ndarray, high: np.ndarray, path: pathlib.Path
) -> Any:
    """Draws fronts in a plane, or in pairwise panels and parallel coordinates.

    There is a point per preference with its 95% interval, and a line per front; the attainable
    front is grey.

    Args:
      named: fronts by name; of the same objectives.
      low, high: ``[M]`` the box that parallel coordinates are scaled to; an objective with equal
        ends is not scaled.
      path: the PNG to write.
    """
    names = next(iter(named.values()))["objectives"]
    pairs = list(itertools.combinations(range(len(names)), 2))
    panels = len(pairs) + (len(names) > 2)
    columns = math.ceil(math.sqrt(panels))
    size = 6.4 if panels == 1 else 4.8
    figure, grid = _figure(
        math.ceil(panels / columns), columns, (size, size * 0.85), layout="constrained"
    )
    axes = grid.ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    for axis, (x, y) in zip(axes, pairs, strict=False):
        if (low < high)[[x, y]].all():  # the box of the hypervolumes
            corners = [(low[x], high[x], high[x], low[x]), (low[y], low[y], high[y], high[y])]
            axis.fill(*corners, fill=False, edgecolor="gray", linestyle=":", label="box")
        _plane(axis, named, x, y)
        axis.set(xlabel=f"{names[x]}, mean score", ylabel=f"{names[y]}, mean score")
        axis.grid(alpha=0.3)
    if len(names) > 2:
        _parallel(axes[panels - 1], named, low, high)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return _save(figure, path)


def _plane(axis: Any, named: dict[str, Front], x: int, y: int) -> None:
    truth = next(iter(named.values()))["truth"]
    if truth is not None:
        hull = fronts.upper_hull(np.array(truth)[:, [x, y]])
        axis.plot(*hull.T, color="gray", linestyle="--", linewidth=1, label="attainable")
    for number, (name, front) in enumerate(named.items()):
        points, weights = fronts.points(np.array(front["scores"])), np.array(front["preferences"])
        order = np.argsort(weights[:, x] - weights[:, y], kind="stable")
        mean = np.array([[points[i][j].mean for j in (x, y)] for i in order])
        wide = np.array([[points[i][j].half_width for j in (x, y)] for i in order])
        axis.errorbar(
            *mean.T,
            xerr=wide[:, 0],
            yerr=wide[:, 1],
            color=f"C{number % 10}",
            marker="osD^vP*X"[number % 8],
            markersize=5,
            linewidth=1 if len(front["objectives"]) == 2 else 0,
            elinewidth=0.6,
            alpha=0.85,
            label=name,
        )
        if len(named) == 1 and len(order) <= 12:  # a run's own picture has labels at the points
            texts = [" : ".join(f"{w:.2g}" for w in front["preferences"][i]) for i in order]
            size = 0.16 * np.ptp(axis.get_xlim()), 0.04 * np.ptp(axis.get_ylim())
            for at, text in _joined(mean, texts, size):
                axis.annotate(text, at, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _joined(
    points: np.ndarray, texts: Sequence[str], size: tuple[float, float]
) -> list[tuple[np.ndarray, str]]:
    """Joins labels of points ``[N, 2]`` that would overlap, given a label's width and height."""
    groups: list[tuple[np.ndarray, list[str]]] = []
    for point, text in zip(points, texts, strict=True):
        for at, lines in groups:
            if (abs(point - at) < size).all():
                lines.append(text)
                break
        else:
            groups.append((point, [text]))
    return [(at, "\n".join(lines)) for at, lines in groups]


def _parallel(axis: Any, named: dict[str, Front], low: np.ndarray, high: np.ndarray) -> None:
    """Draws one line per preference across all objectives."""
    names = next(iter(named.values()))["objectives"]
    varies = high > low
    scale = np.where(varies, high - low, 1.0)
    for number, front in enumerate(named.values()):
        means = np.array(front["scores"]).mean(axis=1)
        for mean in (means - np.where(varies, low, 0.0)) / scale:
            axis.plot(mean, color=f"C{number % 10}", marker=".", linewidth=1, alpha=0.7)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("share of the box")
    axis.grid(alpha=0.3)


def _figure(
    rows: int, columns: int, size: tuple[float, float], *, layout: Any = None
) -> tuple[Any, Any]:
    """Makes a figure and its axes ``[rows, columns]``; the size is of each, in inches.

    Without a layout every panel has the same margins, because measuring labels takes as long as
    drawing them.
    """
    from matplotlib.figure import Figure  # unlike pyplot needs no display and has no global state

    width, height = size
    figure = Figure(figsize=(width * columns, height * rows), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False)
    if layout is None:
        left, right, below, above = _MARGINS
        figure.subplots_adjust(
            left=left / (width * columns),
            right=1 - right / (width * columns),
            bottom=below / (height * rows),
            top=1 - above / (height * rows),
            wspace=(left + right) / (width - left - right),
            hspace=(below + above) / (height - below - above),
        )
    return figure, axes


def _save(figure: Any, path: pathlib.Path) -> Any:
    """Writes a figure, and returns it for tests."""
    if distributed.is_main():
        with naming_file(path):
            figure.savefig(path, dpi=120)
    return figure
