"""Fronts as one figure: a plane, or pairwise panels and parallel coordinates."""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.evaluation import fronts
from alignjax.losses import paretohqd
from alignjax.runtime import distributed


def draw(
    told: dict[str, dict[str, Any]], low: np.ndarray, high: np.ndarray, path: pathlib.Path
) -> None:
    """A point per preference with its 95% interval, a line per front, what is attainable in grey.

    Of several processes the first one draws.

    Args:
      told: by name, what ``front.json`` holds; of the same objectives.
      low, high: ``[M]`` the box that parallel coordinates are cut to; an objective whose ends are
        equal is drawn as it is.
      path: the PNG to write.
    """
    if not distributed.is_main():
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = next(iter(told.values()))
    names = first["objectives"]
    pairs = list(itertools.combinations(range(len(names)), 2))
    panels = len(pairs) + (len(names) > 2)
    columns = math.ceil(math.sqrt(panels))
    rows = math.ceil(panels / columns)
    size = 6.4 if panels == 1 else 4.8
    figure, grid = plt.subplots(
        rows, columns, figsize=(size * columns, size * 0.85 * rows), layout="constrained"
    )
    axes = np.atleast_1d(grid).ravel()
    for unused in axes[panels:]:
        unused.set_axis_off()
    for axis, (x, y) in zip(axes, pairs, strict=False):
        _plane(axis, told, x, y)
        axis.set_xlabel(names[x])
        axis.set_ylabel(names[y])
        axis.grid(alpha=0.3)
    if len(names) > 2:
        _parallel(axes[panels - 1], told, names, low, high)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plane(axis: Any, told: dict[str, dict[str, Any]], x: int, y: int) -> None:
    first = next(iter(told.values()))
    if first["truth"] is not None:
        truth = upper_hull(np.array(first["truth"])[:, [x, y]])
        axis.plot(*truth.T, color="gray", linestyle="--", linewidth=1, label="attainable")
    for number, (name, front) in enumerate(told.items()):
        points = fronts.points(np.array(front["scores"]))
        order = _along([weights[x] - weights[y] for weights in front["preferences"]])
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
        if len(told) == 1 and len(order) <= 12:  # a run's own picture says which point is which
            for i, at in zip(order, mean, strict=True):
                text = " : ".join(f"{w:.2g}" for w in front["preferences"][i])
                axis.annotate(text, at, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _parallel(
    axis: Any,
    told: dict[str, dict[str, Any]],
    names: Sequence[str],
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """A line per preference across all objectives."""
    varies = high > low
    scale = np.where(varies, high - low, 1.0)
    for number, front in enumerate(told.values()):
        means = np.array(front["scores"]).mean(axis=1)
        for mean in (means - np.where(varies, low, 0.0)) / scale:
            axis.plot(mean, color=f"C{number % 10}", marker=".", linewidth=1, alpha=0.7)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("share of the box")
    axis.grid(alpha=0.3)


def _along(values: Sequence[float]) -> list[int]:
    return sorted(range(len(values)), key=lambda i: values[i])


def upper_hull(points: np.ndarray) -> np.ndarray:
    """The corners of what mixtures of the points reach and nothing dominates, from left to right.

    Args:
      points: ``[F, 2]``.

    >>> upper_hull(np.array([[0, 3], [1, 1], [2, 2], [3, 0], [0, 0]])).tolist()
    [[0, 3], [2, 2], [3, 0]]
    """
    best = np.unique(points[paretohqd.layers(points) == 0], axis=0)
    chain: list[np.ndarray] = []
    for point in best:
        while len(chain) > 1:
            (ax, ay), (bx, by) = chain[-1] - chain[-2], point - chain[-2]
            if ax * by - ay * bx < 0:  # the way turns right: the last point is a corner
                break
            chain.pop()
        chain.append(point)
    return np.array(chain)
