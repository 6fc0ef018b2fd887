"""AlphaPO: SimPO with a reward that is a power of the probability instead of its logarithm."""

from alignjax.losses import f_dpo, simpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def implicit(logps: Logps, *, alpha: float = 0.25, of: Implicit = simpo.implicit) -> Array:
    """Computes ``[B, K]`` implicit rewards per unit of beta: (1 - p^-alpha) / alpha, p per token.

    Args:
      logps: ``[B, K]`` nats.
      alpha: positive values make the reward flatter for likely responses and steeper for unlikely
        ones, negative values the reverse; not 0 (the limit at 0 is ``of`` itself).
      of: log p; cpo.implicit for the probability of the whole response.
    """
    return (1.0 - f_dpo.exp(-alpha * of(logps))) / alpha


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 2.5,
    gamma_beta_ratio: float = 0.1,
    label_smoothing: float = 0.0,
    implicit: Implicit = implicit,
) -> tuple[Array, Metrics]:
    """Raises the reward of the chosen response above the rejected one's, by a margin.

    With the reward r of the paper, pi(y|x)^(1/|y|) the probability per token::

        loss = -log sigma(r(y_w) - r(y_l) - gamma),   r = beta (1 - pi(y|x)^(-alpha/|y|)) / alpha

    ================================  ======================================
    paper                             code
    ================================  ======================================
    r / beta                          ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    alpha                             ``alpha`` of `implicit`
    beta                              ``beta``
    gamma                             ``beta * gamma_beta_ratio``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats, with ``length``; the reference is not read, so the config may have
        ``reference.mode="none"``.
      batch: not read: the chosen response has index 0.
      beta: > 0.
      gamma_beta_ratio: the margin per unit of beta; >= 0.
      label_smoothing: as in `simpo.loss`.
      implicit: the reward per unit of beta; ``--set loss.implicit.alpha=...`` changes alpha if the
        config binds ``implicit=partial(alphapo.implicit, alpha=...)``.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics`, whose margins do not subtract gamma.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: it has gamma itself as a hyperparameter; here exponentials continue as a
    straight line beyond 40 nats.
    From the authors' code: none was found. TRL's "alphapo" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -6.0]], length=[[2, 3]])
    >>> print(f"{loss(logps, batch, gamma_beta_ratio=0.0)[0][0]:.4f}")  # margin 3.647
    0.0257

    Reference: Gupta et al., AlphaPO: Reward Shape Matters for LLM Alignment, arXiv 2501.03884.
    """
    return simpo.loss(
        logps,
        batch,
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
        label_smoothing=label_smoothing,
        implicit=implicit,
    )
