"""SLiC-HF: a hinge loss on the log-probability margin of a pair.

================================  ======================================
paper                             code
================================  ======================================
log P_theta(y|x)                  ``logps.policy``, summed over tokens
y+, y-                            response 0 (chosen), 1 (rejected)
y_ref                             response 0: the chosen one
delta                             ``margin``
lambda                            ``nll_weight``
================================  ======================================

Reference: Zhao et al., SLiC-HF: Sequence Likelihood Calibration with Human Feedback, arXiv
2305.10425.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, trains


def implicit(logps: Logps) -> Array:
    """Returns ``[B, K]`` log P, which `loss` compares, nats; 0 if absent; no reference."""
    return jnp.where(logps.length > 0, logps.policy, 0.0)


@trains(implicit)
def loss(
    logps: Logps, batch: Batch, *, margin: float = 1.0, nll_weight: float = 0.1
) -> tuple[Array, Metrics]:
    """Fits a margin of log-probability between chosen and rejected, and the chosen response.

    Eq. 1, with y_ref the chosen response::

        loss = max(0, delta - log P(y+) + log P(y-)) - lambda log P(y_ref)

    Args:
      logps: ``[B, 2]`` nats; ``reference`` is not read.
      batch: not read: the chosen response has index 0.
      margin: delta, nats; > 0.
      nll_weight: lambda; >= 0.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` with log P as rewards, and ``nll``, nats per
      response. A pair that lacks a response has only the supervised term.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: y_ref is always the chosen response; there it may also be the target
    of supervised fine-tuning. The HPS paper (arXiv 2502.14400, Eq. 16) prints the last term inside
    the max; then a pair beyond its margin would have no supervised term.
    From the authors' code: none is published. ContextualAI/HALOs has the same two terms, delta 1
    and lambda 0.1.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -4.5]])
    >>> print(f"{loss(logps, batch)[0][0]:.4f}")  # 1 - 0.5 + 0.1 x 4
    0.9000
    """
    dpo.check_pairs(logps, "slic.loss")
    policy = implicit(logps)
    compared = (logps.length > 0).all(axis=1)
    hinge = jax.nn.relu(margin - policy[:, 0] + policy[:, 1])
    nll = -policy[:, 0]
    losses = jnp.where(compared, hinge, 0.0) + nll_weight * nll
    return losses, dpo.pair_metrics(policy, policy) | {"nll": nll}


def loss_hinge(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits a margin of 1 between the implicit rewards of chosen and rejected.

    Only the calibration term, on log-ratios instead of log-probabilities; T is
    ``implicit(logps)``, log pi_theta / pi_ref::

        loss = max(0, 1 - beta (T_w - T_l))

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; the margin of the log-ratios is 1 / beta nats; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses, 1 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: that calibrates log-probabilities and has a regulariser; here the
    reference is the regulariser.
    From the authors' code: none is published; TRL's loss_type "hinge" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss_hinge(logps, batch)[0][0]:.4f}")  # 1 - 0.1 x 4
    0.6000
    """
    dpo.check_pairs(logps, "slic.loss_hinge")
    reward = beta * implicit(logps)
    losses = jax.nn.relu(1.0 - (reward[:, 0] - reward[:, 1]))
    return losses, dpo.pair_metrics(reward, logps.policy)
