"""ParetoHqD: align with several objectives by fine-tuning on few, well chosen responses.

================================  ==========================================================
paper                             code
================================  ==========================================================
r = (r^1, ..., r^M)               ``scores [N, M]``, one row per response, larger is better
omega, a preference               ``preference``: M weights >= 0; their sum is scaled to 1
r_max, r_min                      the largest and smallest score of each objective, over all rows
W = r_min + omega (r_max - r_min) the compromise point of a preference
P_omega                           the line through r_max and W: `distances` are to it
D_Pareto                          the first non-dominated layers of the data, `high_quality`
k                                 ``size``
================================  ==========================================================

Linear scalarisation of the objectives finds the end points of a front that is not concave,
whatever the weights; the line from the ideal point finds its inside too.

Reference: ParetoHqD: Fast Offline Multiobjective Alignment of Large Language Models using Pareto
High-quality Data, arXiv 2504.16628. No code of the authors was at hand.
"""

import logging

import numpy as np

from alignjax import pareto
from alignjax.objectives import sft
from alignjax.types import Array, Batch, Logps, Metrics

log = logging.getLogger("alignjax")


def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Fits the responses that `curate` chose for one preference, by maximum likelihood.

    The loss of both stages, a sum over response tokens, which is `sft.loss` at K = 1::

        loss = -sum_t log pi_theta(y_t | x, y_<t) = -log pi_theta(y | x)

    Args:
      logps: ``[B, K]`` nats; ``reference`` is not read.
      batch: ``response_length`` says which responses are present.

    Returns:
      ``[B]`` losses in nats per response, and the metrics of `sft.loss`.

    Differs from the paper: no, with one response a row.
    From the authors' code: not compared.

    >>> from alignjax.types import loss_inputs
    >>> print(loss(*loss_inputs([[-6.0]]))[0])
    [6.]
    """
    return sft.loss(logps, batch)


def curate(
    scores: np.ndarray,
    *,
    preference: tuple[float, ...],
    size: int,
    depth: int | None = None,
) -> np.ndarray:
    """Chooses the ``size`` responses nearest to a preference's direction, out of the best layers.

    Ties in distance go to the response with more room for itself (`pareto.crowding` within its
    layer), then to the earlier row. An objective that is the same everywhere says nothing: it is
    dropped, with a line in the log, and the other weights are scaled to sum to 1.

    Args:
      scores: ``[N, M]``, M >= 2, finite.
      preference: M weights, >= 0, not all 0.
      size: how many.
      depth: non-dominated layers to choose from; None: the fewest that hold ``10 * size``
        responses.

    Returns:
      ``[size]`` row numbers, nearest first.

    Raises:
      ValueError: weights that are negative, all 0 or not M; scores not finite; fewer rows in the
        layers than ``size``.

    Differs from the paper: the number of layers and the metric of "nearest" are not stated in what
    was available to us; depth and the normalisation to ranges are this project's choices.
    From the authors' code: not compared.
    """
    points = pareto.check_points(scores)
    weights = _weights(preference, points.shape[1])
    if size < 1:
        raise ValueError(f"size: wanted a positive number, found {size}")
    pool = high_quality(points, size=10 * size, depth=depth)
    if len(pool) < size:
        raise ValueError(
            f"size: wanted {size} responses for the preference {tuple(preference)}, found "
            f"{len(pool)} in the {'first ' + str(depth) if depth else 'data, all its'} layers"
        )
    layer = pareto.layers(points[pool])  # the same as among all: whole layers were taken
    room = np.zeros(len(pool))
    for i in np.unique(layer):
        room[layer == i] = pareto.crowding(points[pool[layer == i]])
    distance = distances(points, weights)[pool]
    # Distances that differ by rounding alone are ties.
    return pool[np.lexsort((pool, -room, distance.round(12)))[:size]]


def high_quality(scores: np.ndarray, *, size: int, depth: int | None = None) -> np.ndarray:
    """Rows of the first non-dominated layers, in the data's order.

    Args:
      scores: ``[N, M]``.
      size: take the fewest layers that hold this many rows; all rows if there are not so many.
      depth: take this many layers instead.
    """
    layer = pareto.layers(scores)
    if depth is None:
        held = np.cumsum(np.bincount(layer))
        depth = int(np.searchsorted(held, size)) + 1
    return np.flatnonzero(layer < depth)


def distances(scores: np.ndarray, preference: tuple[float, ...] | np.ndarray) -> np.ndarray:
    """Distance of every response to the direction of a preference.

    In units of each objective's range, the direction from the ideal point through the compromise
    point::

        z = (r - r_max) / (r_max - r_min)
        u = (omega - 1) / |omega - 1|
        distance = |z - (z . u) u|

    z and u have no positive entry, so the line and the ray are one here.

    Args:
      scores: ``[N, M]``, M >= 2.
      preference: M weights, >= 0, not all 0.

    Returns:
      ``[N]`` float64. With one objective that varies, the distance to its largest value.
    """
    points = pareto.check_points(scores)
    weights = _weights(preference, points.shape[1])
    high, low = points.max(axis=0), points.min(axis=0)
    kept = high > low
    for i in np.flatnonzero(~kept):
        log.warning(
            "objective %d has one value, %s, in all %d rows: dropped", i, low[i], len(points)
        )
    if not kept.any() or weights[kept].sum() == 0:
        return np.zeros(len(points))  # nothing to tell the responses apart by
    z = pareto.normalised(points[:, kept], low=low[kept], high=high[kept]) - 1
    if kept.sum() == 1:
        return -z[:, 0]
    direction = weights[kept] / weights[kept].sum() - 1
    direction /= np.linalg.norm(direction)
    along = z @ direction
    return np.linalg.norm(z - along[:, None] * direction, axis=1)


def _weights(preference: tuple[float, ...] | np.ndarray, objectives: int) -> np.ndarray:
    weights = np.asarray(preference, np.float64)
    if objectives < 2:
        raise ValueError(f"scores: wanted at least 2 objectives, found {objectives}")
    if weights.shape != (objectives,):
        raise ValueError(
            f"preference: wanted {objectives} weights, one per objective, found {preference}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"preference: wanted weights >= 0 that are not all 0, found {preference}")
    return weights / weights.sum()
