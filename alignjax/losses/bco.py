"""Binary Classifier Optimization: a classifier of single labelled responses, with a reward shift.

================================  ==========================================================
paper                             code
================================  ==========================================================
r = beta log pi_theta / pi_ref    ``beta * logps.log_ratio``
delta, the reward shift           ``beta * batch.running_baseline``: `baseline`
D+, D-                            ``batch.desirable``
density ratio of the prompts      ``density_ratio``
================================  ==========================================================

A config sets ``baseline=bco.baseline, loss=bco.loss``, with the same ``reduction`` in both.

Reference: Jung et al., Binary Classifier Optimization for Large Language Model Alignment, arXiv
2404.04656.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax.losses import dpo, rdro
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_fraction: float | None = None,
    reduction: str = "class_mean",
    density_ratio: Callable[[Batch], Array] | None = None,
) -> tuple[Array, Metrics]:
    """Fits a binary classifier, whose logit is the shifted implicit reward, to the labels.

    The binary cross-entropy with reward shift, means over each class, w the density ratio::

        loss = -E_{D+}[log sigma(r - delta)] - E_{D-}[w log sigma(-(r - delta))]

    Args:
      logps: ``[B, K]`` nats, any K.
      batch: ``desirable [B, K]``; ``running_baseline [B]``; absent responses do not count, and a
        row's loss is the sum over its responses.
      beta: KL strength, reward per nat; > 0.
      desirable_fraction: desirable share of the training responses, in (0, 1). The recipe binds it.
      reduction: ``class_mean``, the equation, by the weights of `rdro.loss`; or ``batch_mean``,
        weight 1 for every response.
      density_ratio: ``batch -> [B]``, the probability of a row's prompt among desirable rows
        divided by that among undesirable ones, without gradient; None: 1.

    Returns:
      ``[B]`` losses in nats, log 2 times the class weight for each response where policy equals
      reference and delta is 0; `rdro.label_metrics`. The step logs delta / beta as
      ``running_baseline``.

    Raises:
      ValueError: there is no baseline (set ``baseline`` to `baseline`); or as `rdro.loss`.

    Differs from the paper: the density ratio must be given; it is not fitted here.
    From the authors' code: not compared. TRL averages over the mixed batch, ``batch_mean``.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0], [-9.0]], [[-5.0], [-6.0]], desirable=[[1], [0]],
    ...                    running_baseline=0.5)
    >>> print("{:.4f} {:.4f}".format(*loss(*case, beta=1.0, desirable_fraction=0.5)[0]))
    0.9482 0.0595
    """
    labels = rdro.desirable(batch, "bco.loss")
    if batch.running_baseline is None:
        raise ValueError(
            "bco.loss needs the reward shift: set `baseline` to bco.baseline in the config"
        )
    weights = rdro.class_weights(batch, desirable_fraction, reduction, "bco.loss")
    if density_ratio is not None:
        ratio = jax.lax.stop_gradient(density_ratio(batch))[:, None]
        weights = jnp.where(labels, weights, weights * ratio)
    shift = jax.lax.stop_gradient(batch.running_baseline)[:, None]
    logit = beta * (logps.log_ratio - shift)
    terms = jax.nn.softplus(jnp.where(labels, -logit, logit))
    return (weights * terms).sum(axis=1), rdro.label_metrics(logps.log_ratio, batch)


def loss_pairs(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the classifier to the two responses of a pair, without a reward shift.

    The binary cross-entropy of a chosen (D+) and a rejected (D-) response, delta = 0::

        loss = -log sigma(r_w) - log sigma(-r_l)

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, 2 log 2 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: there is no shift; `loss` has one, for labelled responses.
    From the authors' code: not compared. TRL's DPO loss_type "bco_pair" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]])
    >>> print(f"{loss_pairs(logps, batch, beta=1.0)[0][0]:.4f}")  # softplus(-1) + softplus(-3)
    0.3618
    """
    dpo.check_pairs(logps, "bco.loss_pairs")
    reward = beta * implicit(logps)
    losses = jax.nn.softplus(-reward[:, 0]) + jax.nn.softplus(reward[:, 1])
    return losses, dpo.pair_metrics(reward, logps.policy)


def baseline(
    logps: Logps,
    batch: Batch,
    *,
    desirable_fraction: float | None = None,
    reduction: str = "class_mean",
) -> Array:
    """Computes ``[B]`` log-ratios whose mean over rows is the shift, in nats: delta / beta.

    delta = (E_{D+}[r] + E_{D-}[r]) / 2 with ``class_mean``; the mean over all responses with
    ``batch_mean``. A row of several responses has their mean, so all rows have the same weight.

    Raises:
      ValueError: as `rdro.loss`.
    """
    weights = rdro.class_weights(batch, desirable_fraction, reduction, "bco.baseline")
    halved = weights / (2 if reduction == "class_mean" else 1)
    return (halved * logps.log_ratio).sum(axis=1) / jnp.maximum(batch.present.sum(axis=1), 1)
