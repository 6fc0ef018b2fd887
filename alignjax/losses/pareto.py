"""Geometry of several objectives: non-dominated layers, crowding, hypervolume.

Axes: N points, M objectives. **Larger is better** in every objective. NumPy, on the host: these
look at whole datasets. Sorting and volumes are the `moocore` library's.
"""

import numpy as np


def check_points(points: np.ndarray, name: str = "scores") -> np.ndarray:
    """The points as float64.

    Raises:
      ValueError: they are not ``[N, M]`` finite numbers with N >= 1 and M >= 1.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"{name}: wanted [N, M], N points of M objectives, found {points.shape}")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{name}: wanted finite numbers, found {points[bad[0]].tolist()} in row {bad[0]}, and "
            f"{len(bad) - 1} more rows like it; leave such rows out and count them"
        )
    return points


def layers(points: np.ndarray) -> np.ndarray:
    """Non-dominated sorting: the layer of every point, 0 for what nothing dominates.

    A point dominates another if it is at least as good in all objectives and better in one. Layer
    i is what nothing dominates once the layers before it are taken away; equal points share one.

    Args:
      points: ``[N, M]``.

    Returns:
      ``[N]`` int.

    >>> layers(np.array([[1, 1], [0, 2], [0, 0], [1, 1]]))
    array([0, 0, 1, 0])
    """
    import moocore

    ranks = moocore.pareto_rank(check_points(points), maximise=True)
    return np.asarray(ranks, np.int64)


def crowding(points: np.ndarray) -> np.ndarray:
    """Crowding distance of every point among the given ones: how much room it has for itself.

    The sum over objectives of the gap between a point's two neighbours in that objective, in units
    of the objective's range; infinite for the extremes of an objective (Deb et al., NSGA-II). An
    objective with one value says nothing. Meant for the points of one layer.

    Args:
      points: ``[N, M]``.

    Returns:
      ``[N]`` float64.
    """
    points = check_points(points)
    room = np.zeros(len(points))
    for value in points.T:
        order = np.argsort(value, kind="stable")
        ordered = value[order]
        span = ordered[-1] - ordered[0]
        if span > 0:
            room[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
            room[order[[0, -1]]] = np.inf
    return room


def normalised(points: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``(points - low) / (high - low)``: 0 at the worst corner, 1 at the ideal one.

    Raises:
      ValueError: ``high`` is not above ``low`` in every objective.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    flat = np.flatnonzero(~(high > low))
    if len(flat):
        raise ValueError(
            f"objective {flat[0]}: wanted a range with high > low, found "
            f"[{low[flat[0]]}, {high[flat[0]]}]; drop an objective that is constant"
        )
    return (check_points(points) - low) / (high - low)


def hypervolume(points: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> float:
    """Share of the box between ``low`` and ``high`` that some point dominates.

    The number means nothing without its box: a front looks better the lower the corner ``low`` is
    put. Print both with it. A point below ``low`` in some objective dominates nothing; beyond
    ``high`` it counts as at ``high``.

    Args:
      points: ``[N, M]``.
      low: ``[M]`` the reference point.
      high: ``[M]`` the ideal point.

    Returns:
      A number in [0, 1].

    >>> hypervolume(np.array([[1, 0.5], [0.5, 1]]), low=np.zeros(2), high=np.ones(2))
    0.75
    """
    import moocore

    unit = np.minimum(normalised(points, low=low, high=high), 1.0)
    inside = unit[(unit > 0).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(inside, ref=np.zeros(inside.shape[1]), maximise=True))
