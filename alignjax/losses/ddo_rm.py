"""DDO-RM: fits the policy's distribution over a list to the same one tilted by the scores."""

import jax
import jax.numpy as jnp

from alignjax.losses import cpo
from alignjax.losses.plackett_luce import list_metrics, log_shares, ranking_scores
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    temperature: float = 1.0,
    implicit: Implicit = cpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the policy's distribution over a list to the same distribution, tilted by the scores.

    With p the policy's probabilities within the list and r the scores; q has no gradient::

        loss = -sum_i q_i log p_i,    q_i proportional to p_i exp(r_i / lambda)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    p_C(y_i), policy on candidates    softmax of ``implicit(logps)``
    r(x, y_i), the reward model       ``batch.scores``
    lambda                            ``temperature``
    candidates C_K                    responses that count, at most K
    ================================  ======================================

    Each step is one step of mirror descent towards larger scores, from the current policy. There is
    no reference, so in the end the best response of a list has all the probability. The paper first
    subtracts from r its mean under p, which does not change q.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order; the reference is not read.
      batch: ``scores [B, K]``, the rewards; their size counts, not only their order.
      temperature: units of score that make up one nat; > 0.
      implicit: the policy's score of a response, log pi_theta; simpo.implicit for its mean over
        tokens.

    Returns:
      ``[B]`` losses in nats; `plackett_luce.list_metrics` of the policy's scores.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.

    Differs from the paper: no. We do not know whether its score of a response is a sum or a mean
    over tokens; lambda = 1 is from its scripts.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-3.0, -3.0]], scores=[[2.0, 0.0]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # p = 1/2: log 2
    0.6931

    Reference: Zhang et al., DDO-RM: Distribution-Level Policy Improvement after Reward Learning,
    arXiv 2604.11119.
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    reward = implicit(logps)
    log_p = log_shares(reward, ranked)
    tilted = jax.lax.stop_gradient(log_p) + jnp.where(ranked, scores, 0.0) / temperature
    q = jnp.where(ranked, jnp.exp(log_shares(tilted, ranked)), 0.0)
    losses = -(q * log_p).sum(axis=1)
    return losses, list_metrics(reward, logps.policy, batch)
