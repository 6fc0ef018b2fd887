"""Bregman Preference Optimization: fits a pair's probability ratio with Bregman divergences."""

import jax.numpy as jnp

from alignjax.losses import dpo, f_dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    power: float = 0.5,
    scale: float = 4.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the ratio of "rejected preferred" to "chosen preferred" by scaled Basu's divergence.

    The row "SBA" of Table 2, R = exp(-beta (T_w - T_l)) the model of that ratio::

        loss = (1 / s) [ R^(lambda + 1) / (lambda + 1) - R^(-lambda) / lambda + 1 / lambda ]

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    lambda                            ``power``
    s                                 ``scale``
    ================================  ======================================

    KLIEP has lambda 0 and s 1, with the limit R + log R; LSIF has lambda 1 and s 1/2, R^2 - 2 / R;
    the logistic form is `dpo.loss`. For labels drawn from a distribution all have the same optimum,
    but they weigh pairs differently during training. With s = 4 the slope where policy equals
    reference is DPO's. Unlike DPO's loss this one is unbounded below: for a pair that is never
    answered the other way it falls without limit, faster for a larger lambda.

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      power: lambda; >= 0.
      scale: s; > 0. The paper's SBA has 4.
      implicit: T, or another reward per unit of beta, as in dpo.loss; those of f_dpo give the
        paper's combination with f-DPO.

    Returns:
      ``[B]`` losses, 1 / (s (lambda + 1)) where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: 1 / (s lambda) is added, so that lambda can be 0; exponentials continue
    as a straight line beyond 40. The default lambda is this package's choice.
    From the authors' code: not compared (aailab-kaist/BPO).

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch, beta=0.25, power=0.0, scale=1.0)[0][0]:.4f}")  # e^-1 - 1
    -0.6321

    Reference: Kim et al., Preference Optimization by Estimating the Ratio of the Data Distribution,
    arXiv 2505.19601.
    """
    dpo.check_pairs(logps, "bpo.loss")
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    fitted = f_dpo.exp(-(power + 1) * margin) / (power + 1)
    # (R^-lambda - 1) / lambda is the margin itself where lambda is 0.
    some = jnp.where(power == 0, 1.0, power)
    gained = jnp.where(power == 0, margin, (f_dpo.exp(some * margin) - 1) / some)
    return (fitted - gained) / scale, dpo.pair_metrics(reward, logps.policy)
