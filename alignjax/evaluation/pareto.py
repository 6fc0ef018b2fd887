"""Computes hypervolumes: the share of a box that the points of a front dominate.

Axes: N points, M objectives. **Larger is better** in every objective. The `moocore` library
computes the volume.
"""

import numpy as np

from alignjax.losses.paretohqd import check_points


def hypervolume(points: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> float:
    """Computes the share of the box between ``low`` and ``high`` that some point dominates.

    It depends on the box: with a lower ``low``, a front has a larger share. Print both with it. A
    point below ``low`` in some objective dominates nothing; above ``high`` it counts as ``high``.

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
