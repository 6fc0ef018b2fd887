"""RRHF: lists ranked by the policy's own length-normalised log-probabilities."""

import jax
import jax.numpy as jnp

from alignjax.losses.plackett_luce import list_metrics, ranking_scores
from alignjax.types import Array, Batch, Logps, Metrics, trains


def implicit(logps: Logps, *, length_penalty: float = 1.0) -> Array:
    """Computes p, which RRHF ranks: ``[B, K]`` log-probability / |y|^length_penalty."""
    length = jnp.maximum(logps.length, 1).astype(logps.policy.dtype)
    return jnp.where(logps.length > 0, logps.policy, 0.0) / length**length_penalty


@trains(implicit)
def loss(
    logps: Logps, batch: Batch, *, rank_weight: float = 1.0, length_penalty: float = 1.0
) -> tuple[Array, Metrics]:
    """Ranks the responses like their scores, and fits the best one.

    Eq. 1 to 4, p_i = s_i / |y_i|^a with s = log pi_theta(y|x) summed over the tokens::

        loss = w sum_{r_i < r_j} max(0, p_i - p_j) - s_best

    ================================  ======================================
    paper                             code
    ================================  ======================================
    p_i, Eq. 1                        ``logps.policy / length**length_penalty``
    r_i                               ``batch.scores``
    best, the largest r               ``batch.scores`` equal to the list's largest
    w (1)                             ``rank_weight``
    a (1)                             ``length_penalty``
    ================================  ======================================

    Absent responses and those without a finite score do not count. Tied responses are not compared;
    if several are tied for best, s_best is their mean.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order; ``reference`` is not read.
      batch: ``scores [B, K]``, larger is better.
      rank_weight: w; >= 0.
      length_penalty: a; 0 ranks by the log-probability of the whole response.

    Returns:
      ``[B]`` losses in nats, equal to the negative log-probability of the best response if the
      order is right; `plackett_luce.list_metrics` with p as rewards, and ``nll``, nats.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.

    Differs from the paper: it does not define ties.
    From the authors' code: there the supervised term is a mean over the micro-batch's padded
    positions, not a sum; the first of tied responses counts as best; and w is 100. To approximate
    it, set rank_weight to 100 times the usual number of tokens and divide the learning rate by it.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -6.0]], length=[[2, 4]], scores=[[0.9, 0.1]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # p = -2, -1.5: max(0, -1.5 + 2) + 4
    4.5000

    Reference: Yuan et al., RRHF: Rank Responses to Align Language Models with Human Feedback
    without tears, arXiv 2304.05302; code GanjinZero/RRHF@026adca, train.py.
    """
    scores = ranking_scores(batch)
    p = implicit(logps, length_penalty=length_penalty)
    # [B, i, j]: response i is scored below response j.
    below = (scores > -jnp.inf)[:, :, None] & (scores[:, :, None] < scores[:, None, :])
    excess = jnp.where(below, jax.nn.relu(p[:, :, None] - p[:, None, :]), 0.0)
    nll = best_nll(logps, batch)
    losses = rank_weight * excess.sum(axis=(1, 2)) + nll
    return losses, list_metrics(p, logps.policy, batch) | {"nll": nll}


def best_nll(logps: Logps, batch: Batch) -> Array:
    """Computes ``[B]`` negative log-probabilities of the best response, nats, summed over tokens.

    Of responses tied for best it is the mean; 0 for a list without a scored response.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    scores = ranking_scores(batch)
    best = (scores > -jnp.inf) & (scores == scores.max(axis=1, keepdims=True))
    return -jnp.where(best, logps.policy, 0.0).sum(axis=1) / jnp.maximum(best.sum(axis=1), 1)
