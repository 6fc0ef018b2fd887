"""ParetoHqD: aligns with several objectives by fine-tuning on a few well-chosen responses.

================================  ==========================================================
paper                             code
================================  ==========================================================
r = (r^1, ..., r^M)               ``scores [N, M]``, one row per response, larger is better
omega, a preference               one of ``preferences``: M weights >= 0, scaled to sum 1
r_max, r_min                      the largest and smallest score of each objective, over all rows
W = r_min + omega (r_max - r_min) the compromise point of a preference
P_omega                           the line through r_max and W, used by `distances`
D_Pareto                          the first non-dominated layers of the data, `high_quality`
k                                 ``size``
================================  ==========================================================

If a front is not concave, linear scalarisation of the objectives finds only its end points, for any
weights; the line from the ideal point also finds points between them.

Reference: ParetoHqD: Fast Offline Multiobjective Alignment of Large Language Models using Pareto
High-quality Data, arXiv 2504.16628. We had no code of the authors.
"""

import logging
from collections.abc import Sequence

import numpy as np

from alignjax.losses import sft
from alignjax.losses.modpo import preference_weights
from alignjax.types import Array, Batch, Logps, Metrics

log = logging.getLogger("alignjax")

RECIPE = "configs/demo/paretohqd.py"  # its loss alone is no method: see `losses.methods`


def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Fits the responses that `curate` chose for one preference, by maximum likelihood.

    The loss of both stages, a sum over response tokens, which is `sft.loss` at K = 1::

        loss = -sum_t log pi_theta(y_t | x, y_<t) = -log pi_theta(y | x)

    Args:
      logps: ``[B, K]`` nats; ``reference`` is not read.
      batch: ``response_length``, 0 for absent responses.

    Returns:
      ``[B]`` losses in nats per response, and the metrics of `sft.loss`.

    Differs from the paper: no, with one response a row.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> print(loss(*loss_inputs([[-6.0]]))[0])
    [6.]
    """
    return sft.loss(logps, batch)


def curate(
    scores: np.ndarray,
    preferences: Sequence[tuple[float, ...]],
    size: int,
    *,
    depth: int | None = None,
) -> np.ndarray:
    """Chooses from the best layers the responses nearest to each preference's direction.

    Of equal distances, the response with the larger `crowding` distance within its layer is first,
    then the earlier row. An objective with only one value is dropped, with a line in the log, and
    the other weights are scaled to sum to 1. The data are sorted once for all preferences.

    Args:
      scores: ``[N, M]``, M >= 2, finite.
      preferences: P of M weights each, >= 0, not all 0.
      size: number of responses per preference.
      depth: number of non-dominated layers to choose from; None: the fewest with ``10 * size``
        responses.

    Returns:
      ``[P, size]`` row numbers, nearest first.

    Raises:
      ValueError: weights that are negative, all 0 or not M; scores not finite; fewer rows in the
        layers than ``size``.

    Differs from the paper: the text available to us does not state the number of layers and the
    metric of "nearest"; depth and the normalisation to ranges are this project's choices.
    From the authors' code: not compared.
    """
    points, weights = _checked(scores, preferences, size)
    pool = high_quality(points, size=10 * size, depth=depth)
    where = f"the first {depth} layers" if depth else "the data, all its layers"
    _enough(len(pool), size, preferences, where)
    layer = layers(points[pool])  # as among all points, because the pool has whole layers
    room = np.zeros(len(pool))
    for i in np.unique(layer):
        room[layer == i] = crowding(points[pool[layer == i]])
    # Distances that differ only by rounding are ties.
    table = distances(points, weights)[:, pool].round(12)
    return np.stack([pool[np.lexsort((pool, -room, row))[:size]] for row in table])


def curate_linear(
    scores: np.ndarray, preferences: Sequence[tuple[float, ...]], size: int
) -> np.ndarray:
    """Chooses the ``size`` responses with the largest weighted sum of scores, as an ablation.

    Equation, with the scores in units of each objective's range::

        s_omega = sum_i omega_i (r^i - r_min^i) / (r_max^i - r_min^i)

    Arguments, result, errors and dropped objectives are those of `curate`; of ties the earlier row
    is first. Layers are not needed: with positive weights the largest sums are not dominated.
    """
    points, weights = _checked(scores, preferences, size)
    _enough(len(points), size, preferences, "the data")
    z, kept = _units(points)
    sums = z @ weights[:, kept].T  # [N, P]
    return np.argsort(-sums.round(12), axis=0, kind="stable")[:size].T


def high_quality(scores: np.ndarray, *, size: int, depth: int | None = None) -> np.ndarray:
    """Finds the rows of the first non-dominated layers, in the data's order.

    Args:
      scores: ``[N, M]``.
      size: take the fewest layers with this many rows; all rows if there are fewer.
      depth: take this many layers instead.
    """
    layer = layers(scores)
    if depth is None:
        held = np.cumsum(np.bincount(layer))
        depth = int(np.searchsorted(held, size)) + 1
    return np.flatnonzero(layer < depth)


def layers(points: np.ndarray) -> np.ndarray:
    """Sorts points into non-dominated layers; returns the layer of each, 0 for the best.

    A point dominates another if it is at least as good in all objectives and better in one. Layer
    i has the points that nothing dominates after earlier layers are removed; equal points share a
    layer.

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
    """Computes the crowding distance of every point of a layer (Deb et al., NSGA-II).

    It is the sum over objectives of the gap between a point's two neighbours in that objective, in
    units of the objective's range; infinite for the extremes of an objective. Objectives with only
    one value do not count.

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


def distances(
    scores: np.ndarray, preferences: Sequence[tuple[float, ...]] | np.ndarray
) -> np.ndarray:
    """Computes the distance of every response to the direction of each preference.

    In units of each objective's range, with the direction u from the ideal point through the
    compromise point::

        z = (r - r_max) / (r_max - r_min)
        u = (omega - 1) / |omega - 1|
        distance = |z - (z . u) u|

    z and u have no positive entry, so distances to the line and to the ray are the same.

    Args:
      scores: ``[N, M]``, M >= 2.
      preferences: P of M weights each, >= 0, not all 0.

    Returns:
      ``[P, N]`` float64. If only one objective varies, the distance to its largest value.
    """
    points, weights = _checked(scores, preferences, 1)
    units, kept = _units(points)
    z = units - 1
    out = np.zeros((len(weights), len(z)))
    for row, weight in zip(out, weights[:, kept], strict=True):
        if weight.sum() == 0:
            continue  # all objectives with weight have one value: equal distances
        if len(weight) == 1:
            row[:] = -z[:, 0]
            continue
        direction = weight / weight.sum() - 1
        direction /= np.linalg.norm(direction)
        row[:] = np.linalg.norm(z - (z @ direction)[:, None] * direction, axis=1)
    return out


def check_points(points: np.ndarray, name: str = "scores") -> np.ndarray:
    """Converts points to float64.

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


def _units(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the scores as shares of their ranges, without objectives that have one value.

    Returns:
      ``[N, M']``, and ``[M]`` bool: the kept objectives.
    """
    high, low = points.max(axis=0), points.min(axis=0)
    kept = high > low
    for i in np.flatnonzero(~kept):
        log.warning(
            "objective %d has one value, %s, in all %d rows: dropped", i, low[i], len(points)
        )
    if not kept.any():
        return points[:, kept], kept
    return (points[:, kept] - low[kept]) / (high - low)[kept], kept


def _checked(
    scores: np.ndarray, preferences: Sequence[tuple[float, ...]] | np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks the arguments; returns the scores, and ``[P, M]`` weights that sum to 1."""
    points = check_points(scores)
    if size < 1:
        raise ValueError(f"size: wanted a positive number, found {size}")
    if not len(preferences):
        raise ValueError("preferences: wanted at least one, found none")
    objectives = points.shape[1]
    if objectives < 2:
        raise ValueError(f"scores: wanted at least 2 objectives, found {objectives}")
    return points, np.stack([preference_weights(tuple(p), objectives) for p in preferences])


def _enough(
    found: int, size: int, preferences: Sequence[tuple[float, ...]] | np.ndarray, where: str
) -> None:
    if found < size:
        raise ValueError(
            f"size: wanted {size} responses for the preference {tuple(preferences[0])}, found "
            f"{found} in {where}"
        )
