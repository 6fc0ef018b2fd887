"""Nash-MD: seeks the Nash equilibrium of preferences, against a mixture with the reference."""

import jax
import jax.numpy as jnp

from alignjax.losses import cpo
from alignjax.losses.xpo import half_metrics, halves, mean_where
from alignjax.types import Array, Batch, Logps, Metrics, compares_halves

RECIPE = "configs/demo/grpo.py"  # it learns from the policy's own samples


@compares_halves
def loss(
    logps: Logps, batch: Batch, *, tau: float = 0.1, temperature: float = 1.0
) -> tuple[Array, Metrics]:
    """Raises the probability that a sample is preferred to the opponent's, minus a KL term.

    Nash-MD-PG, over n samples y_i of the policy and n of the opponent, z_j::

        loss = -(1/n) sum_i (P_i - 1/2 - tau T_i)
        its gradient: -(1/n) sum_i (P_i - 1/2 - tau T_i) grad log pi_theta(y_i|x)

        P_i = (1/n) sum_j sigma((r(y_i) - r(z_j)) / temperature),  T_i = log pi_theta / pi_ref (y_i)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    y ~ pi_theta                      responses 0 .. K/2 - 1
    y' ~ pi_theta^beta, the mixture   responses K/2 .. K - 1
    P(y > y' | x)                     sigma of the difference of ``batch.scores``
    tau, mu                           ``tau``, the reference
    beta, the mixture's               ``recipe.opponent``, not this loss's
    ================================  ======================================

    Args:
      logps: ``[B, K]`` nats, K even, with a reference; the opponent's half is not read.
      batch: ``scores [B, K]``. A pair i, i + K/2 counts if both of its responses are present and
        have finite scores.
      tau: strength of the KL to the reference; >= 0.
      temperature: difference of scores at which the better one is preferred with odds e; > 0.

    Returns:
      ``[B]`` losses, 0 for a row without a pair; the metrics of `xpo.half_metrics`; and
      ``preferred``, the mean P.

    Raises:
      ValueError: K is odd, there are no scores, or there is no reference (``reference.mode``).

    Differs from the paper: there P is a model of preferences between two responses; here scores are
    compared by Bradley-Terry, so maximising the score also solves the game. The default values of
    tau and temperature are this package's choice.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -5.0]], [[-2.0, -5.0]], scores=[[2.0, 0.0]])
    >>> value = lambda policy: loss(logps.replace(policy=policy), batch)[0][0]
    >>> print("{:.4f} {:.4f}".format(*jax.grad(value)(logps.policy)[0]))  # P - 1/2 = 0.3808
    -0.3808 0.0000

    Reference: Munos et al., Nash Learning from Human Feedback, arXiv 2312.00886.
    """
    (own, other), both = halves(batch, "nash_md.loss")
    ahead = jnp.where(both, own, 0.0)[:, :, None] - jnp.where(both, other, 0.0)[:, None, :]
    rivals = both[:, None, :]
    shares = jnp.where(rivals, jax.nn.sigmoid(ahead / temperature), 0.0).sum(axis=2)
    preferred = shares / jnp.maximum(rivals.sum(axis=2), 1)
    half = own.shape[1]
    log_ratio = jax.lax.stop_gradient(logps.log_ratio)[:, :half]
    value = preferred - 0.5 - tau * log_ratio
    policy = cpo.implicit(logps)[:, :half]
    score = policy - jax.lax.stop_gradient(policy)  # 0 in value, log pi in gradient
    losses = -mean_where(both, value * (1 + score))
    metrics = half_metrics(logps, own, other, both)
    return losses, metrics | {"preferred": mean_where(both, preferred)}
