"""Preference Ranking Optimization: whole rankings, with temperatures from the scores."""

import jax
import jax.numpy as jnp

from alignjax.losses.plackett_luce import list_metrics, ranking_scores
from alignjax.losses.rrhf import best_nll
from alignjax.types import Array, Batch, Logps, Metrics, trains


def implicit(logps: Logps) -> Array:
    """Returns ``[B, K]`` log-probabilities per token p, which PRO ranks, nats; no reference."""
    return logps.per_token


@trains(implicit)
def loss(logps: Logps, batch: Batch, *, nll_weight: float = 0.05) -> tuple[Array, Metrics]:
    """Makes each response likelier than those ranked below it, and fits the best one.

    Responses in the order of decreasing score r, p = log pi_theta(y|x) / |y|::

        loss = sum_{k<n} [ log sum_{i>=k} exp(p_i / T_k^i) - p_k / T_k^k ] - c (n - 1)^2 s_1
        1 / T_k^i = r_k - r_i  for i > k;   T_k^k = min_{i>k} T_k^i

    ================================  ======================================
    paper                             code
    ================================  ======================================
    r_pi(x, y), here p                ``logps.per_token``
    s = log pi_theta(y|x)             ``logps.policy``
    r(x, y), the reward model's       ``batch.scores``
    n                                 responses that count, at most K
    1 / T_k^i                         ``gap``: the score of k minus that of i
    c, with beta = c (n - 1)^2        ``nll_weight``
    ================================  ======================================

    Absent responses and those without a finite score do not count. Tied responses are not compared:
    each is chosen from itself and the responses with strictly lower scores. If several are tied for
    best, s_1 is their mean.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order; ``reference`` is not read.
      batch: ``scores [B, K]``, larger is better. Their scale sets the temperatures.
      nll_weight: c, weight of the supervised term; >= 0.

    Returns:
      ``[B]`` losses in nats; `plackett_luce.list_metrics` with p as rewards, and ``nll``, nats
      per response.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.

    Differs from the paper: ties, for which its temperature is infinite.
    From the authors' code: it adds 1e-10 inside the logarithm, and keeps a tied response in the
    sum as exp(0). Its supervised term is the same: summed over tokens, c = 0.05.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -6.0]], length=[[2, 3]], scores=[[0.9, 0.4]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # softplus(0.5 (-2 + 1)) + 0.05 x 2
    0.5741

    Reference: Song et al., Preference Ranking Optimization for Human Alignment, arXiv 2306.17492;
    code AlibabaResearch/DAMO-ConvAI@64f4da7, PRO/train/utils/process_manager.py.
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    p = implicit(logps)
    # [B, k, i]: response k is chosen from itself and the responses i below it.
    below = ranked[:, None, :] & (scores[:, None, :] < scores[:, :, None])
    gap = jnp.where(below, scores[:, :, None] - scores[:, None, :], 0.0)
    own = gap.max(axis=2)[:, :, None] * p[:, :, None]
    choice = below | jnp.eye(p.shape[1], dtype=bool)
    lead = jnp.where(below, gap * p[:, None, :] - own, 0.0)
    terms = jax.nn.logsumexp(lead, axis=2, where=choice)
    nll = best_nll(logps, batch)
    steps = jnp.maximum(ranked.sum(axis=1) - 1, 0)
    losses = terms.sum(axis=1) + nll_weight * steps**2 * nll
    return losses, list_metrics(p, logps.policy, batch) | {"nll": nll}
