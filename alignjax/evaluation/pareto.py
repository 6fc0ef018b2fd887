"""Hypervolume: how much of a box the points of a front dominate.

Axes: N points, M objectives. **Larger is better** in every objective. The volume itself is
computed by the `moocore` library.
"""

import numpy as np

from alignjax.losses.paretohqd import check_points


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

    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    flat = np.flatnonzero(~(high > low))
    if len(flat):
        raise ValueError(
            f"objective {flat[0]}: wanted a range with high > low, found "
            f"[{low[flat[0]]}, {high[flat[0]]}]; drop an objective that is constant"
        )
    unit = np.minimum((check_points(points) - low) / (high - low), 1.0)
    inside = unit[(unit > 0).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(moocore.hypervolume(inside, ref=np.zeros(inside.shape[1]), maximise=True))
