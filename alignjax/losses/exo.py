"""Efficient Exact Optimization: the reverse KL divergence to the preferred distribution.

================================  ==========================================================
paper                             code
================================  ==========================================================
log pi_theta / pi_ref             ``implicit(logps)``
beta_pi                           ``beta``
beta_r                            ``beta_r``
f_pi, over the K responses        softmax of ``beta * implicit(logps)``
f_r                               softmax of ``batch.scores / beta_r``; 1 - e, e for pairs
epsilon                           ``label_smoothing``
================================  ==========================================================

DPO minimises the forward divergence between the same two distributions, which spreads the policy
over all preferred responses; this one seeks modes, like reinforcement learning with a KL penalty.

Reference: Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, arXiv
2402.00856; code haozheji/exact-optimization@1278978, src/align_stage/loss.py.
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
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits a pair's probabilities to its label, by the reverse KL divergence.

    Section 3.2 (EXO-pref), p the softmax of the pair's two rewards r = beta log pi_theta/pi_ref::

        loss = p_w log(p_w / (1 - e)) + p_l log(p_l / e)

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: beta_pi, reward per nat; > 0.
      label_smoothing: e, the probability that the rejected response gets; in (0, 0.5).
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, 0 where p_w = 1 - e; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), label_smoothing is a number out of its
        range, or there is no reference (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: there the logarithms of 1 - e and e are 0 and -10, so e is 4.5e-5 and
    the label does not sum to 1; the default here is TRL's 1e-3.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-5.0, -6.0]], [[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # -log 2 - log(0.001 x 0.999) / 2
    2.7612
    """
    dpo.check_pairs(logps, "exo.loss")
    if isinstance(label_smoothing, float | int) and not 0 < label_smoothing < 0.5:
        raise ValueError(
            f"exo.loss: label_smoothing: wanted a number in (0, 0.5), found {label_smoothing}: the "
            "divergence from a certain label is infinite"
        )
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    log_label = jnp.stack([jnp.log1p(-label_smoothing), jnp.log(label_smoothing)])
    log_p = jax.nn.log_sigmoid(jnp.stack([margin, -margin], axis=1))
    losses = (jnp.exp(log_p) * (log_p - log_label)).sum(axis=1)
    return losses, dpo.pair_metrics(reward, logps.policy)


def loss_list(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    beta_r: float = 1.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits a list's probabilities to its scores, by the reverse KL divergence.

    Section 3.2 (EXO-rw), over the K responses of a prompt::

        loss = sum_i f_pi(i) log(f_pi(i) / f_r(i))

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, the rewards; their values count, not only their order.
      beta: beta_pi, reward per nat; > 0.
      beta_r: units of score per nat; > 0. The optimum is pi_ref exp(score / (beta beta_r)),
        normalised.
      implicit: as in `loss`.

    Returns:
      ``[B]`` losses in nats, 0 where f_pi = f_r; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: no; K responses give an estimate that becomes exact as K grows.
    From the authors' code: no.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-3.0, -4.0]], [[-4.0, -4.0]], scores=[[0.5, 0.0]])
    >>> print(f"{loss_list(logps, batch, beta=0.5)[0][0]:.4f}")
    0.0000
    """
    ranked = ranking_scores(batch) > -jnp.inf
    reward = beta * implicit(logps)
    log_f = log_shares(reward, ranked)
    log_label = log_shares(ranking_scores(batch) / beta_r, ranked)
    losses = jnp.where(ranked, jnp.exp(log_f) * (log_f - log_label), 0.0).sum(axis=1)
    return losses, list_metrics(reward, logps.policy, batch)
