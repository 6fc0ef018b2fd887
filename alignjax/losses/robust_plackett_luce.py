"""Robust Plackett-Luce: the worst case over rankings close to the given one."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo, plackett_luce
from alignjax.losses.plackett_luce import ordered_pairs, ranking_scores
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    rho: float = 0.1,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits rankings by Plackett-Luce, each mixed with the ranking that fits worst.

    The worst case over all labels within total variation rho of the given one is a mixture, as the
    paper shows; PL(ranking) is the loss of `plackett_luce.loss` for a ranking::

        loss = (1 - rho) PL(by decreasing score) + rho PL(by increasing reward)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    reward, beta log pi_theta/pi_ref  ``beta * implicit(logps)``
    ranking                           decreasing ``batch.scores``
    rho, radius of the ambiguity      ``rho``
    K, responses of a list            those that count, at most K
    ================================  ======================================

    For two responses it is (1 - rho) times DPO, plus rho times DPO with the pair in the order that
    the policy contradicts.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better; ties as in `plackett_luce.loss`.
      beta: KL strength, reward per nat; > 0.
      rho: in [0, 1); 0 is `plackett_luce.loss`.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log n! where policy equals reference and nothing is tied, 0 for a list
      of ties; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference (``reference.mode``).

    Differs from the paper: it has no ties; here a list of ties has loss 0. Its term for lists that
    the policy sampled itself is left out.
    From the authors' code: none was found.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-9.0, -4.0]], [[-6.0, -5.0]], scores=[[0.1, 0.8]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # 0.9 x 0.1269 + 0.1 x 2.1269
    0.3269

    Reference: Wu et al., Distributionally Robust Listwise Preference Optimization, arXiv
    2607.01715.
    """
    nominal, metrics = plackett_luce.loss(logps, batch, beta=beta, implicit=implicit)
    worst = _worst_case(beta * implicit(logps), ranking_scores(batch) > -jnp.inf)
    has_pairs = ordered_pairs(batch).any(axis=(1, 2))
    losses = (1 - rho) * nominal + rho * jnp.where(has_pairs, worst, 0.0)
    return losses, metrics


def _worst_case(reward: Array, ranked: Array) -> Array:
    """Computes ``[B]`` Plackett-Luce losses of the ranking by increasing reward, ties by index."""
    order = jnp.argsort(jnp.where(ranked, reward, jnp.inf), axis=1)  # absent ones come last
    reward, ranked = (jnp.take_along_axis(x, order, axis=1) for x in (reward, ranked))
    later = jnp.triu(jnp.ones((reward.shape[1],) * 2, bool))
    choice = (later & ranked[:, None, :]) | jnp.eye(reward.shape[1], dtype=bool)
    lead = reward[:, None, :] - reward[:, :, None]
    terms = jax.nn.logsumexp(lead, axis=-1, where=choice)
    return jnp.where(ranked, terms, 0.0).sum(axis=1)
