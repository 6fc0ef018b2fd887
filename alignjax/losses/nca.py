"""Noise Contrastive Alignment: classifies responses as signal or noise by their rewards.

================================  ==========================================================
paper                             code
================================  ==========================================================
r_theta = beta log pi_th / mu     ``beta * implicit(logps)``, mu the reference
r(x, y_i), alpha                  ``batch.scores``, ``alpha``
w_i = softmax(r / alpha)          `plackett_luce.log_shares` of ``batch.scores / alpha``
K                                 responses that count, at most K
beta                              ``beta``
================================  ==========================================================

InfoNCA (`loss_info`) compares the responses of a list with each other; for pairs it is DPO. NCA
compares each response with the reference, so the loss has a minimum in each reward: it keeps the
chosen response's log-probability up, while DPO depends only on the gap.

Reference: Chen et al., Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv
2402.05369; code thu-ml/Noise-Contrastive-Alignment@cbb9248.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import (
    list_metrics,
    log_shares,
    ranking_scores,
)
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Raises the chosen response above the reference and lowers the rejected one below it.

    The NCA loss for preferences, the limit of `loss_list` for alpha -> 0::

        loss = -log sigma(r_w) - (1/2) log sigma(-r_w) - (1/2) log sigma(-r_l)

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, 2 log 2 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: no, nor from TRL's "nca_pair".

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-5.0, -6.0]], [[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # 2 log 2
    1.3863
    """
    dpo.check_pairs(logps, "nca.loss")
    reward = beta * implicit(logps)
    against_noise = jax.nn.log_sigmoid(-reward).mean(axis=1)
    losses = -jax.nn.log_sigmoid(reward[:, 0]) - against_noise
    return losses, dpo.pair_metrics(reward, logps.policy)


def loss_list(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the log-ratio of each response to a target given by its reward.

    The NCA loss, w the softmax of the rewards over the K responses::

        loss = -sum_i [ w_i log sigma(r_theta,i) + (1/K) log sigma(-r_theta,i) ]

    Its minimum is at r_theta,i = log(K w_i) for each response.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, the rewards; their values count, not only their order.
      beta: KL strength, reward per nat; > 0.
      alpha: units of score per nat; > 0. Near 0 only the best response is signal.
      implicit: as in `loss`.

    Returns:
      ``[B]`` losses in nats, 2 log 2 where policy equals reference, 0 for a list with fewer than
      two responses that count; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: there can be fewer than K responses.
    From the authors' code: that adds 0.01 to the first response's score, so that it is the best of
    tied ones, and is written for K = 4.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-5.0, -6.0, -7.0]], [[-5.0, -6.0, -7.0]], scores=[[3, 2, 1]])
    >>> print(f"{loss_list(logps, batch)[0][0]:.4f}")  # 2 log 2
    1.3863
    """
    reward = beta * implicit(logps)
    ranked, share, count = _shares(batch, alpha)
    terms = share * jax.nn.log_sigmoid(reward) + jax.nn.log_sigmoid(-reward) / count
    losses = -jnp.where(ranked & (count > 1), terms, 0.0).sum(axis=1)
    return losses, list_metrics(reward, logps.policy, batch)


def loss_info(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the policy's distribution over a list to the rewards, by cross-entropy.

    The InfoNCA loss, w the softmax of the rewards over the K responses::

        loss = -sum_i w_i log( exp(r_theta,i) / sum_j exp(r_theta,j) )

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, the rewards; their values count, not only their order.
      beta: KL strength, reward per nat; > 0.
      alpha: units of score per nat; > 0. The limit at 0 is `plackett_luce.loss_top1`, for pairs
        DPO.
      implicit: as in `loss`.

    Returns:
      ``[B]`` losses in nats, log K where policy equals reference; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: there can be fewer than K responses.
    From the authors' code: that adds 0.01 to the first response's score, as for `loss_list`.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-5.0, -6.0, -7.0]], [[-5.0, -6.0, -7.0]], scores=[[3, 2, 1]])
    >>> print(f"{loss_info(logps, batch)[0][0]:.4f}")  # log 3
    1.0986
    """
    reward = beta * implicit(logps)
    ranked, share, _ = _shares(batch, alpha)
    losses = -(share * log_shares(reward, ranked)).sum(axis=1)
    return losses, list_metrics(reward, logps.policy, batch)


def _shares(batch: Batch, alpha: float) -> tuple[Array, Array, Array]:
    """Returns ``[B, K]`` which responses count, ``[B, K]`` w, and ``[B, 1]`` their number."""
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    share = jnp.where(ranked, jnp.exp(log_shares(scores / alpha, ranked)), 0.0)
    return ranked, share, jnp.maximum(ranked.sum(axis=1, keepdims=True), 1)
