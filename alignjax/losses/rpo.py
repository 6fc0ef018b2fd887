"""Iterative Reasoning Preference Optimization (RPO): DPO plus an SFT term on chosen responses."""

from alignjax.losses import dpo, sft
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    label_smoothing: float = 0.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to pairs, and keeps the chosen response's probability up.

    Eq. 1 and 2, T = log pi_theta / pi_ref::

        loss = -log sigma(beta (T_w - T_l)) - alpha log pi_theta(y_w|x) / |y_w|

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    alpha                             ``nll_weight``
    |c| + |y|, tokens of the chosen   ``logps.length[:, 0]``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats, with ``length``.
      batch: ``response_length``; the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      nll_weight: alpha, the weight of the supervised term; >= 0.
      label_smoothing: as in `dpo.loss`.
      implicit: T, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats; the metrics of `dpo.loss` and ``nll_per_token``.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: none is published. It is TRL's loss_type ["sigmoid", "sft"] (once
    ``rpo_alpha``), except that its mean is over the chosen tokens of a batch, not of a response.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]])
    >>> print(f"{loss(*case, beta=0.5)[0][0]:.4f}")  # 0.1269 + 4 / 2
    2.1269

    Reference: Pang et al., Iterative Reasoning Preference Optimization, arXiv 2404.19733.
    """
    dpo.check_pairs(logps, "rpo.loss")
    compared, metrics = dpo.loss(
        logps, batch, beta=beta, label_smoothing=label_smoothing, implicit=implicit
    )
    imitated, nll = sft.loss_chosen(logps, batch)
    return compared + nll_weight * imitated, metrics | nll
