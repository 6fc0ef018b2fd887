"""Weighted Preference Optimization (WPO): DPO with more weight on pairs likely under the policy."""

import functools

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Loss, Metrics, reads_squares


@reads_squares
def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits pairs by DPO, weighted by the policy's own probability of their tokens.

    With T = log pi_theta / pi_ref, and v over the tokens of the vocabulary::

        loss = -w(y_w) w(y_l) log sigma(beta (T_w - T_l))
        w(y) = exp(1/|y| sum_t log(pi(y_t|x, y_<t) / sum_v pi(v|x, y_<t)^2)), without gradient

    The sum over v is the mean probability of a token sampled from the policy. Dividing by it gives
    the policy's own samples about the same weight, whether its distribution is sharp or flat.

    ================================  =================================================
    paper                             code
    ================================  =================================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    sum_t log sum_v pi(v)^2           ``logps.log_squares``
    w(y_w) w(y_l)                     ``pair_weight``, a metric
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    ================================  =================================================

    Args:
      logps: ``[B, 2]`` nats, with ``length`` and ``log_squares``, which a step computes for this
        loss.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      label_smoothing: as in `dpo.loss`.
      implicit: T, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats; the metrics of `dpo.loss`, and ``pair_weight``.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), there is no reference
        (``reference.mode``), or no ``log_squares``: a loss without a mark calls this.

    Differs from the paper: the weight is the paper's with sampled alignment; greedy alignment is
    left out. A run has no held-out loss.
    From the authors' code: not compared. TRL 1.16's ``use_weighting`` is the same; under its other
    losses it is `weighted`.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]],
    ...     log_squares=[[-3.0, -7.5]])
    >>> print(f"{loss(*case, beta=0.5)[0][0]:.4f}")  # 0.1269 exp(-0.5 - 0.5)
    0.0467

    Reference: Zhou et al., WPO: Enhancing RLHF with Weighted Preference Optimization, arXiv
    2406.11827.
    """
    fit = functools.partial(dpo.loss, beta=beta, label_smoothing=label_smoothing, implicit=implicit)
    return weighted(logps, batch, loss=fit)


@reads_squares
def weighted(logps: Logps, batch: Batch, *, loss: Loss) -> tuple[Array, Metrics]:
    """Multiplies another loss of pairs by the weights of `loss`.

    Args:
      logps, batch: as of `loss`.
      loss: of pairs, its hyperparameters bound, such as ``partial(ipo.loss, beta=0.1)``.

    Returns:
      ``[B]`` losses; its metrics, and ``pair_weight``.

    Raises:
      ValueError: as `loss`.
    """
    dpo.check_pairs(logps, "wpo")
    weight = _weights(logps).prod(axis=1)
    losses, metrics = loss(logps, batch)
    return weight * losses, metrics | {"pair_weight": weight}


def _weights(logps: Logps) -> Array:
    """Computes ``[B, K]`` weights of responses, without gradient; 1 for absent ones."""
    if logps.log_squares is None:
        raise ValueError(
            "wpo: wanted the policy's squared probabilities, found none: a step sums them only for "
            "a loss that is marked with types.reads_squares, or binds a function that is"
        )
    ahead = jax.lax.stop_gradient(logps.policy - logps.log_squares)
    mean = jnp.where(logps.length > 0, ahead / jnp.maximum(logps.length, 1), 0.0)
    return jnp.exp(mean)
