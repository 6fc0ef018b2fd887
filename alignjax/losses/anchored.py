"""*Anchored* Preference Optimization: compares each response with the reference.

`apo` is another method, *Adversarial* Preference Optimization. TRL's names of the losses here are
"apo_zero", "apo_down" and "apo_zero_unpaired".

================================  ==========================================================
paper                             code
================================  ==========================================================
r = beta log pi_theta / pi_ref    ``beta * implicit(logps)``
y_w, y_l                          response 0 (chosen), 1 (rejected); ``batch.desirable``
beta                              ``beta``
================================  ==========================================================

`loss` (APO-zero) raises the chosen response and lowers the rejected one; it is for chosen responses
that are better than the model's own. `loss_down` (APO-down) lowers both, the rejected one more; it
is for chosen responses that are worse than the model's own.

Reference: D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions:
Addressing Underspecification in Alignment, arXiv 2408.06266.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo, rdro
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Raises the chosen response above the reference and lowers the rejected one below it.

    APO-zero, Eq. 7::

        loss = -sigma(r_w) + sigma(r_l) + 1

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: reward per nat; > 0.
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in [0, 2], 1 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: 1 is added, so that the loss is not negative.
    From the authors' code: not compared. TRL's loss_type "apo_zero" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch, beta=1.0)[0][0]:.4f}")  # sigma(-1) + sigma(-3)
    0.3164
    """
    dpo.check_pairs(logps, "anchored.loss")
    reward = beta * implicit(logps)
    losses = jax.nn.sigmoid(-reward[:, 0]) + jax.nn.sigmoid(reward[:, 1])
    return losses, dpo.pair_metrics(reward, logps.policy)


def loss_down(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Lowers the chosen response below the reference, and the rejected one farther.

    APO-down, Eq. 8::

        loss = sigma(r_w) - sigma(r_w - r_l) + 1

    Where policy equals reference, the chosen response has no gradient and the rejected one is
    lowered.

    Args:
      logps, batch, beta, implicit: as in `loss`.

    Returns:
      ``[B]`` losses in [0, 2], 1 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: as `loss`.

    Differs from the paper: 1 is added, so that the loss is not negative.
    From the authors' code: not compared. TRL's loss_type "apo_down" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-6.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss_down(logps, batch, beta=1.0)[0][0]:.4f}")  # sigma(-1) + sigma(-2)
    0.3881
    """
    dpo.check_pairs(logps, "anchored.loss_down")
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    losses = jax.nn.sigmoid(reward[:, 0]) + jax.nn.sigmoid(-margin)
    return losses, dpo.pair_metrics(reward, logps.policy)


def loss_unpaired(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Array, Metrics]:
    """Raises desirable responses above the reference and lowers the others below it.

    APO-zero without pairs, one term for each response, l_D and l_U the weights::

        loss = l_D sigma(-r)   or   l_U sigma(r)

    This is `kto.loss` with z_0 = 0; it needs neither ``select`` nor ``baseline``.

    Args:
      logps: ``[B, K]`` nats, any K.
      batch: ``desirable [B, K]``; absent responses do not count, and a row's loss is the sum over
        its responses.
      beta: reward per nat; > 0.
      desirable_weight, undesirable_weight: l_D and l_U; >= 0.

    Returns:
      ``[B]`` losses, half the weight for each response where policy equals reference;
      `rdro.label_metrics`.

    Raises:
      ValueError: the data have no labels, or there is no reference (``reference.mode``).

    Differs from the paper: it has pairs; TRL has this form for single responses.
    From the authors' code: not compared. TRL's loss_type "apo_zero_unpaired" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0], [-9.0]], [[-5.0], [-6.0]], desirable=[[1], [0]])
    >>> print("{:.4f} {:.4f}".format(*loss_unpaired(*case, beta=1.0)[0]))
    0.2689 0.0474
    """
    labels = rdro.desirable(batch, "anchored.loss_unpaired")
    ratio = logps.log_ratio
    weight = jnp.where(labels, desirable_weight, undesirable_weight)
    cost = weight * jax.nn.sigmoid(jnp.where(labels, -beta, beta) * ratio)
    return jnp.where(batch.present, cost, 0.0).sum(axis=1), rdro.label_metrics(ratio, batch)
