"""LiPO: preference lists as a ranking problem, by pairs weighted like DCG (LiPO-lambda)."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import list_metrics, ranking_scores
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to all pairs of a list, weighted by their effect on the DCG.

    The lambda loss, with s = beta T; tau(i) is the rank of s_i within its list, 1 the largest::

        loss = sum_{psi_i > psi_j} D_ij log(1 + exp(-(s_i - s_j)))
        D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + tau(i)) - 1 / log(1 + tau(j))|

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    psi_i, a label in [0, 1]          ``batch.scores``
    G_i = 2^psi_i - 1                 ``gain`` (the 1 cancels)
    tau(i)                            ``position``; no gradient
    beta                              ``beta``
    ================================  ======================================

    Absent responses and those without a finite score do not count and have no rank. Tied scores are
    not compared. Of responses with equal s, the one with the lower score is ranked first, as the
    worst case; if the scores are tied too, they share the mean of their ranks. So the order in the
    batch does not matter, and where policy equals reference there is a gradient, although all s are
    0.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better. Their scale counts, by 2^psi: scale rewards to
        about [0, 1], like win rates; from 128 on float32 overflows.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses, nats times the weights; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: it does not define ties. The logarithm of its discount is taken to be
    natural; base 2 would multiply the loss by log 2.
    From the authors' code: none is published.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-9.0, -4.0]], [[-6.0, -5.0]], scores=[[0.0, 1.0]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # DPO's 0.1269 (1/log 2 - 1/log 3)
    0.0676

    Reference: Liu et al., LiPO: Listwise Preference Optimization through Learning-to-Rank, arXiv
    2402.01878, section 3.
    """
    reward = beta * implicit(logps)
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf

    # The arrays below are [B, i, j]: response i compared with response j.
    gap = reward[:, :, None] - reward[:, None, :]
    ahead = (gap < 0) | ((gap == 0) & (scores[:, None, :] < scores[:, :, None]))
    level = (
        (gap == 0) & (scores[:, None, :] == scores[:, :, None]) & ~jnp.eye(gap.shape[1], dtype=bool)
    )
    others = jnp.where(ahead, 1.0, jnp.where(level, 0.5, 0.0)) * ranked[:, None, :]
    position = 1.0 + others.sum(axis=2)

    preferred = ranked[:, None, :] & (scores[:, :, None] > scores[:, None, :])
    gain, discount = jnp.exp2(scores), 1.0 / jnp.log1p(position)
    weight = jnp.where(preferred, _differences(gain) * _differences(discount), 0.0)
    losses = (weight * jax.nn.softplus(-gap)).sum(axis=(1, 2))
    return losses.astype(reward.dtype), list_metrics(reward, logps.policy, batch)


def _differences(x: Array) -> Array:
    return jnp.abs(x[:, :, None] - x[:, None, :])
