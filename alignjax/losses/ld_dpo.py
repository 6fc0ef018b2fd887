"""Length-desensitised DPO (LD-DPO): DPO where the excess tokens of a longer response count less."""

import dataclasses
import functools

import jax

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Loss, Metrics, reads_tail


@reads_tail
def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits pairs by DPO, where tokens beyond the length of the shorter response count less.

    With l the length of the shorter response and p_i the probability of token i::

        loss = -log sigma(beta (T_w - T_l)),  T = log pi^_theta / pi^_ref
        pi^(y|x) = p_1 ... p_l (p_{l+1} ... p_|y|)^alpha

    ================================  =================================================
    paper                             code
    ================================  =================================================
    pi^(y|x)                          ``policy - (1 - alpha) * policy_tail`` of logps
    T = log pi^_theta / pi^_ref       ``implicit`` of these
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    alpha                             ``alpha``
    ================================  =================================================

    Args:
      logps: ``[B, 2]`` nats, with the tails, which a step computes for this loss; every step runs
        the reference, because its cache has no tails.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      alpha: weight of the excess tokens, in [0, 1]; 1 is DPO.
      label_smoothing: as in `dpo.loss`.
      implicit: T, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference; `dpo.pair_metrics` of the
      weighted log-probabilities.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), there is no reference
        (``reference.mode``), or there are no tails: a loss without a mark calls this.

    Differs from the paper: no. Rewards of held-out responses count all tokens, and there is no
    held-out loss, because evaluation has only tables of whole responses.
    From the authors' code: not compared. TRL 1.16's ``ld_alpha`` is the same; for its other losses
    it is `weighted`.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]],
    ...     policy_tail=[[0.0, -4.0]], reference_tail=[[0.0, -2.0]])
    >>> print(f"{loss(*case, beta=0.5, alpha=0.5)[0][0]:.4f}")  # (-4 + 5) - (-7 + 5) = 3
    0.2014

    Reference: Liu et al., Length Desensitization in Direct Preference Optimization, arXiv
    2409.06411.
    """
    dpo.check_pairs(logps, "ld_dpo.loss")
    fit = functools.partial(dpo.loss, beta=beta, label_smoothing=label_smoothing, implicit=implicit)
    return weighted(logps, batch, loss=fit, alpha=alpha)


@reads_tail
def weighted(
    logps: Logps, batch: Batch, *, loss: Loss, alpha: float = 0.5
) -> tuple[Array, Metrics]:
    """Fits pairs by another loss, where tokens beyond the shorter response's length count less.

    Args:
      logps, batch, alpha: as of `loss`.
      loss: of pairs, its hyperparameters bound, such as ``partial(ipo.loss, beta=0.1)``.

    Returns:
      Losses and metrics of that loss.

    Raises:
      ValueError: there are no tails, see `loss`; or as that loss.
    """
    reference, tail = logps.reference, logps.reference_tail
    if logps.policy_tail is None or (reference is not None and tail is None):
        raise ValueError(
            "ld_dpo: wanted the tokens beyond the shorter response, found none: a step sums them "
            "only for a loss that is marked with types.reads_tail, or binds a function that is"
        )
    policy = logps.policy - (1 - alpha) * logps.policy_tail
    if reference is not None and tail is not None:
        reference = jax.lax.stop_gradient(reference - (1 - alpha) * tail)
    return loss(dataclasses.replace(logps, policy=policy, reference=reference), batch)
