"""Identity Preference Optimization: a finite gap between the chosen and the rejected response.

================================  ======================================
paper                             code
================================  ======================================
log pi_theta / pi_ref             ``implicit(logps)``
h(y_w, y_l)                       its difference, response 0 minus 1
y_w, y_l                          response 0 (chosen), 1 (rejected)
tau                               ``beta``
================================  ======================================

Unlike a log-likelihood, the square has its minimum at a finite gap, 1 / (2 beta), even if the
preference is certain.

Reference: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
Preferences, arXiv 2310.12036 (no code published); as run in huggingface/trl and ContextualAI/HALOs.
"""

import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import list_metrics, ordered_pairs
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def implicit_mean(logps: Logps, *, of: Implicit = dpo.implicit) -> Array:
    """Computes ``[B, K]`` implicit rewards per unit of beta: log pi_theta / pi_ref per token, nats.

    With ``dpo.loss`` this is length-normalised DPO (Tulu 3, arXiv 2411.15124), TRL's
    "sigmoid_norm".

    Args:
      logps: ``[B, K]`` nats, with ``length``.
      of: the reward to divide by the number of tokens.

    Raises:
      ValueError: there is no reference (``reference.mode``).
    """
    return of(logps) / jnp.maximum(logps.length, 1)


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the gap between the log-ratios of a pair to a finite target.

    Eq. 17, over the log-probabilities of whole responses::

        loss = (h(y_w, y_l) - 1 / (2 beta))^2

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength tau; > 0. The target gap is 1 / (2 beta) nats.
      implicit: log pi_theta / pi_ref, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats^2, 1 / (4 beta^2) where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: none is published; for the widespread form see `loss_mean`.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(loss(logps, batch, beta=0.5)[0])  # a gap of 4, wanted 1
    [9.]
    """
    dpo.check_pairs(logps, "ipo.loss")
    ratio = implicit(logps)
    losses = (ratio[:, 0] - ratio[:, 1] - 1 / (2 * beta)) ** 2
    return losses, dpo.pair_metrics(beta * ratio, logps.policy)


def loss_mean(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = implicit_mean
) -> tuple[Array, Metrics]:
    """Fits the gap between the per-token log-ratios of a pair to a finite target.

    Eq. 17 with every log-ratio divided by its number of tokens |y|::

        loss = (log_ratio_w / |y_w| - log_ratio_l / |y_l| - 1 / (2 beta))^2

    Args:
      logps: ``[B, 2]`` nats, with ``length``.
      batch: not read.
      beta: KL strength; > 0. The target gap is 1 / (2 beta) nats per token.
      implicit: log-ratio per token, or another reward per unit of beta.

    Returns:
      As `loss`; the rewards are per token too.

    Raises:
      ValueError: as `loss`.

    Differs from the paper: it sums over the tokens; its authors recommended this average to
    implementers, and trainers use it.
    From the authors' code: none is published; TRL's and HALOs' "ipo" is this one.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 6]])
    >>> print(loss_mean(logps, batch, beta=0.5)[0])  # a gap of 1/2 + 3/6, wanted 1
    [0.]
    """
    return loss(logps, batch, beta=beta, implicit=implicit)


def loss_list(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the gaps of all ordered pairs of a list to one target.

    Eq. 17 over P, the pairs of different scores::

        loss = (1/|P|) sum_{(w, l) in P} (h(y_w, y_l) - 1 / (2 beta))^2

    It is a mean over pairs, so that prompts have the same weight for any n; n = 2 is `loss`.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better; only their order counts.
      beta: KL strength; > 0.
      implicit: as in `loss`; `implicit_mean` for lengths that differ.

    Returns:
      ``[B]`` losses in nats^2, 0 for a list of ties; `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: it has only pairs. Three responses cannot all be 1 / (2 beta) apart: at
    the minimum n responses are evenly spaced, 1 / (n beta) apart.
    From the authors' code: none is published. HPS (arXiv 2502.14400) reports an "IPO-PL" without
    its equation.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-9.0, -4.0]], [[-6.0, -5.0]], scores=[[0.1, 0.8]])
    >>> print(loss_list(logps, batch, beta=0.5)[0])
    [9.]
    """
    pairs = ordered_pairs(batch)
    ratio = implicit(logps)
    off = jnp.where(pairs, ratio[:, :, None] - ratio[:, None, :] - 1 / (2 * beta), 0.0)
    losses = (off**2).sum(axis=(1, 2)) / jnp.maximum(pairs.sum(axis=(1, 2)), 1)
    return losses, list_metrics(beta * ratio, logps.policy, batch)
