"""Alignment via Optimal Transport (AOT): compares sorted reward distributions instead of pairs.

================================  ==========================================================
paper                             code
================================  ==========================================================
u, paired                         log pi_theta(y_w) / pi_theta(y_l), sorted over the batch
v, paired                         the same of the reference, sorted over the batch
u, v, unpaired                    ``implicit(logps)`` of the chosen and the rejected, sorted
beta                              ``beta``
epsilon                           ``label_smoothing``
================================  ==========================================================

Every quantile of the preferred responses' rewards should be above the same quantile of the others:
first-order stochastic dominance. Quantiles are computed over a whole batch, so a step takes a batch
in one part (`types.compares_rows`). The method needs large batches.

Reference: Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, arXiv
2406.05882.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import cpo, dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, compares_rows


@compares_rows
def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> tuple[Array, Metrics]:
    """Raises the policy's sorted margins of all pairs above the reference's.

    Paired AOT, (i) the i-th smallest of the batch, e the smoothing::

        loss = -(1 - e) log sigma(beta (u_(i) - v_(i))) - e log sigma(-beta (u_(i) - v_(i)))

    The term of u_(i) is the loss of the row that u_(i) comes from.

    Args:
      logps: ``[B, 2]`` nats.
      batch: ``weight``: rows of weight 0 do not count, all others count the same.
      beta: reward per nat; > 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference; `dpo.pair_metrics` of the
      log-ratios.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: its other losses of violated quantiles are left out.
    From the authors' code: not compared. TRL's loss_type "aot" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0], [-3.0, -4.0]], [[-5.0, -6.0], [-6.0, -9.0]])
    >>> print("{:.4f} {:.4f}".format(*loss(*case, beta=0.5)[0]))  # 5 and 1 less 3 and 1
    0.3133 0.6931
    """
    dpo.check_pairs(logps, "aot.loss")
    ratio, policy = logps.log_ratio, cpo.implicit(logps)
    margin = policy[:, 0] - policy[:, 1]
    reference = jax.lax.stop_gradient(margin - (ratio[:, 0] - ratio[:, 1]))
    ahead = beta * (margin - _partner(margin, reference, batch))
    return dpo.logistic(ahead, label_smoothing), dpo.pair_metrics(beta * ratio, logps.policy)


@compares_rows
def loss_unpaired(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Raises the sorted rewards of the chosen responses above those of the rejected ones.

    Unpaired AOT, u the chosen and v the rejected responses' log-ratios, of any prompts::

        loss = -(1 - e) log sigma(beta (u_(i) - v_(i))) - e log sigma(-beta (u_(i) - v_(i)))

    Args:
      logps: ``[B, 2]`` nats: a chosen and a rejected response, which need not be of one prompt.
      batch, beta, label_smoothing: as in `loss`.
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      As `loss`; `dpo.pair_metrics` of the unsorted rows.

    Raises:
      ValueError: as `loss`.

    Differs from the paper: here there must be as many chosen as rejected responses, one of each in
    a row.
    From the authors' code: not compared. TRL's loss_type "aot_unpaired" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0], [-3.0, -4.0]], [[-5.0, -6.0], [-6.0, -9.0]])
    >>> print("{:.4f} {:.4f}".format(*loss_unpaired(*case, beta=0.5)[0]))  # 1 and 3 less -3 and 5
    0.1269 1.3133
    """
    dpo.check_pairs(logps, "aot.loss_unpaired")
    ratio = implicit(logps)
    ahead = beta * (ratio[:, 0] - _partner(ratio[:, 0], ratio[:, 1], batch))
    return dpo.logistic(ahead, label_smoothing), dpo.pair_metrics(beta * ratio, logps.policy)


def _partner(of: Array, among: Array, batch: Batch) -> Array:
    """Finds for each row the value of ``among`` with the same rank as the row's in ``of``, [B]."""

    def order(x: Array) -> Array:  # rows of weight 0 come last
        return jnp.argsort(jnp.where(batch.weight > 0, x, jnp.inf))

    return among[order(among)][jnp.argsort(order(of))]
