"""XPO: online DPO against the reference's samples, with a bonus for exploration."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import ranking_scores
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, compares_halves

RECIPE = "configs/demo/grpo.py"  # it learns from the policy's own samples


@compares_halves
def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    alpha: float = 1e-5,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Prefers the better of two samples, one of the policy and one of the reference.

    Algorithm 1, over the n pairs of a prompt, y_i a sample of the policy and z_i one of the
    reference; the better of the two is y^+, the other y^-::

        loss = (1/n) sum_i alpha log pi_theta(z_i) - log sigma(beta (T(y_i^+) - T(y_i^-)))

    ================================  ======================================
    paper                             code
    ================================  ======================================
    tau ~ pi^t, the policy            responses 0 .. K/2 - 1
    tau~ ~ pi~, the reference         responses K/2 .. K - 1
    beta log pi / pi_ref              beta T, T = ``implicit(logps)``
    beta, alpha                       ``beta``, ``alpha``
    ================================  ======================================

    The first term is for exploration: of two policies that explain the preferences equally well, it
    favours the one with lower probabilities of the reference's samples.

    Args:
      logps: ``[B, K]`` nats, K even, with a reference.
      batch: ``scores [B, K]``, larger for the better response. A pair counts if both of its
        responses are present and have finite scores; if the scores are equal, it has only the first
        term.
      beta: KL strength, reward per nat; > 0.
      alpha: weight of the bonus; >= 0. 0 is online DPO against the reference's samples.
      implicit: T, or another loss's reward per unit of beta.

    Returns:
      ``[B]`` losses in nats, 0 for a row without a pair; ``scores``, the policy's mean; ``wins``,
      the share of pairs in which its sample is the better one, a tie as one half; and ``kl``, the
      mean log-ratio of its samples.

    Raises:
      ValueError: K is odd, there are no scores, or there is no reference (``reference.mode``).

    Differs from the paper: its D_pref has all pairs so far, here only those of this step; the paper
    has one pair per prompt, here n are averaged. The default alpha is this package's choice:
    log pi_theta of a whole response is of order 100 nats.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -5.0]], [[-3.0, -5.0]], scores=[[1.0, 0.0]])
    >>> print(f"{loss(logps, batch, beta=1.0, alpha=0.1)[0][0]:.4f}")  # 0.3133 - 0.1 * 5
    -0.1867

    Reference: Xie et al., Exploratory Preference Optimization: Harnessing Implicit Q*-Approximation
    for Sample-Efficient RLHF, arXiv 2405.21046.
    """
    (own, other), both = halves(batch, "xpo.loss")
    reward = beta * implicit(logps)
    half = own.shape[1]
    sign = jnp.sign(jnp.where(both, own - other, 0.0))
    margin = sign * (reward[:, :half] - reward[:, half:])
    compared = jnp.where(sign != 0, -jax.nn.log_sigmoid(margin), 0.0)
    bonus = jnp.where(both, logps.policy[:, half:], 0.0)
    losses = mean_where(both, alpha * bonus + compared)
    return losses, half_metrics(logps, own, other, both)


def halves(batch: Batch, loss_name: str) -> tuple[tuple[Array, Array], Array]:
    """Splits the scores of a batch into the policy's and its opponent's.

    Returns:
      Both ``[B, K/2]``, without gradient; and ``[B, K/2]`` bool, whether both of a pair count.

    Raises:
      ValueError: K is odd, or see `plackett_luce.ranking_scores`.
    """
    scores = ranking_scores(batch)
    if scores.shape[1] % 2:
        raise ValueError(
            f"{loss_name}: wanted an even number of responses per prompt, half of them the "
            f"policy's and half another policy's, found {scores.shape[1]}"
        )
    own, other = jnp.split(scores, 2, axis=1)
    return (own, other), (own > -jnp.inf) & (other > -jnp.inf)


def mean_where(mask: Array, values: Array) -> Array:
    """Averages ``[B, n]`` values where the mask is True: ``[B]``, 0 where it is never True."""
    return jnp.where(mask, values, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)


def half_metrics(logps: Logps, own: Array, other: Array, both: Array) -> Metrics:
    """Computes metrics of the policy's half of the responses, in the pairs that count."""
    won = jnp.where(both, jnp.sign(jnp.where(both, own - other, 0.0)), 0.0)
    log_ratio = jax.lax.stop_gradient(logps.log_ratio)[:, : own.shape[1]]
    return {
        "scores": mean_where(both, own),
        "wins": mean_where(both, (won + 1) / 2),
        "kl": mean_where(both, log_ratio),
    }
