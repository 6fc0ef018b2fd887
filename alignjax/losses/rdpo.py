"""Length-regularised DPO: DPO with a penalty on the difference in length."""

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def implicit(logps: Logps, *, penalty: float = 0.1) -> Array:
    """Computes ``[B, K]`` rewards per unit of beta: log pi_theta / pi_ref + penalty |y|, nats.

    This is the reward for which the policy is optimal if every token costs ``beta * penalty``
    besides the KL divergence. If the chosen response is longer, its length explains a part of the
    preference, and the gradient is smaller.

    Args:
      logps: ``[B, K]`` nats.
      penalty: alpha / beta, nats per response token; >= 0.

    Raises:
      ValueError: there is no reference (``reference.mode``).
    """
    return logps.log_ratio + penalty * logps.length


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = implicit
) -> tuple[Array, Metrics]:
    """Fits pairs by Bradley-Terry, with a reward that includes the length.

    Eq. 9, T the log-ratio and |y| the tokens of a response::

        loss = -log sigma(beta (T_w - T_l) + alpha (|y_w| - |y_l|))

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``logps.log_ratio``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    alpha                             ``beta`` times `implicit`'s ``penalty``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats, with ``length``.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta; set its penalty with
        ``implicit=partial(rdpo.implicit, penalty=...)`` or ``--set loss.implicit.penalty=...``.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` of the reward with its length term.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: alpha is given per unit of beta, so that the penalty of a token in nats
    does not depend on beta.
    From the authors' code: none is published.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[5, 15]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # margin 2 - 0.5
    0.2014

    Reference: Park et al., Disentangling Length from Quality in Direct Preference Optimization,
    arXiv 2403.19159.
    """
    return dpo.loss(logps, batch, beta=beta, implicit=implicit)
