"""Self-Play Preference Optimization: fits log-ratios to the win rate of each response.

================================  ==========================================================
paper                             code
================================  ==========================================================
log pi_theta / pi_t               ``implicit(logps)``, pi_t the reference
eta                               ``1 / beta``
P(y > pi_t), estimated            1 and 0 for a pair; for a list from ``batch.scores``
================================  ==========================================================

This is one round of the paper's game, with the reference as the opponent pi_t. Further rounds are
runs that start from the last policy, with responses sampled from it.

Reference: Wu et al., Self-Play Preference Optimization for Language Model Alignment, arXiv
2405.00675; code uclaml/SPPO@5e61c4e, sppo/trainer.py and scripts/compute_prob.py.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import list_metrics, ranking_scores
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the chosen response's log-ratio to a positive target, the rejected one's to a negative.

    Eq. 4.7 with win rates 1 for the chosen response and 0 for the rejected one::

        loss = (T_w - 1 / (2 beta))^2 + (T_l + 1 / (2 beta))^2

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: 1 / eta; > 0. The targets are 1 / (2 beta) and -1 / (2 beta) nats.
      implicit: T = log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats^2, 1 / (2 beta^2) where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: it estimates win rates over samples of the policy, see `loss_list`.
    From the authors' code: that uses estimated win rates and halves the sum; this is TRL's
    "sppo_hard".

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]])
    >>> print(loss(logps, batch, beta=0.5)[0])  # ratios 1 and -3, wanted 1 and -1
    [4.]
    """
    dpo.check_pairs(logps, "sppo.loss")
    ratio = implicit(logps)
    losses = (ratio[:, 0] - 1 / (2 * beta)) ** 2 + (ratio[:, 1] + 1 / (2 * beta)) ** 2
    return losses, dpo.pair_metrics(beta * ratio, logps.policy)


def loss_list(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    temperature: float = 1.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits every response's log-ratio to a target given by its win rate against the list.

    Eq. 4.7, with the win rate against pi_t estimated over the K responses::

        loss = (1/K) sum_i (T_i - (P_i - 1/2) / beta)^2,
        P_i = (1/K) sum_j sigma((s_i - s_j) / temperature)

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order; responses that the reference sampled.
      batch: ``scores [B, K]``; their values count, not only their order.
      beta: 1 / eta; > 0.
      temperature: units of score per unit of log-odds of winning; > 0.
      implicit: as in `loss`.

    Returns:
      ``[B]`` losses in nats^2, 0 for a list with fewer than two responses that count;
      `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: the win rates come from scores by Bradley-Terry; a response against
    itself counts 1/2.
    From the authors' code: its win rates are the same, over K = 5 samples scored by a pair ranker;
    but it trains only on the best and the worst response, with half the sum of their squares.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-5.0, -6.0]], [[-5.0, -6.0]], scores=[[50.0, 0.0]])
    >>> print(loss_list(logps, batch, beta=0.5)[0])  # 0, wanted 1/2 and -1/2
    [0.25]
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    count = jnp.maximum(ranked.sum(axis=1, keepdims=True), 1)
    height = jnp.where(ranked, scores, 0.0) / temperature
    wins = jax.nn.sigmoid(height[:, :, None] - height[:, None, :])
    rate = jnp.where(ranked[:, None, :], wins, 0.0).sum(axis=2) / count
    ratio = implicit(logps)
    off = jnp.where(ranked & (count > 1), ratio - (rate - 0.5) / beta, 0.0)
    losses = (off**2).sum(axis=1) / count[:, 0]
    return losses, list_metrics(beta * ratio, logps.policy, batch)
