"""Contrastive Preference Optimization: DPO with a uniform reference, plus an SFT term."""

import jax.numpy as jnp

from alignjax.losses import dpo, sft, simpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, trains


def implicit(logps: Logps) -> Array:
    """Returns CPO's reward s per unit of beta: ``[B, K]`` nats, 0 if absent; no reference."""
    return jnp.where(logps.length > 0, logps.policy, 0.0)


@trains(implicit)
def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Array, Metrics]:
    """Prefers the chosen response by its log-probability, with a supervised term on it.

    The paper's L_prefer + L_NLL, s = log pi_theta(y|x) summed over the tokens, e = 0::

        loss = -(1 - e) log sigma(m) - e log sigma(-m) - alpha s_w / |y_w|,   m = beta (s_w - s_l)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    s = log pi_theta(y|x)             ``logps.policy``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    |y_w|, tokens                     ``logps.length[:, 0]``
    beta                              ``beta``
    alpha (TRL's name; 1 there)       ``nll_weight``
    e (TRL's; 0 in the paper)         ``label_smoothing``
    ================================  ======================================

    For another comparison than DPO's, use `mixed.loss` of that, such as
    ``partial(slic.loss_hinge, implicit=cpo.implicit)``, and of ``sft.loss_chosen``. CPO-SimPO is
    `loss_simpo`.

    Args:
      logps: ``[B, 2]`` nats; ``reference`` is not read.
      batch: not read: the chosen response has index 0.
      beta: reward per nat; > 0.
      nll_weight: weight of the supervised term; >= 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` with ``beta * s`` as rewards, and
      ``nll_per_token``. A pair that lacks a response has only the supervised term.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: its L_NLL is the expectation of -log pi_theta(y_w|x), a sum over the
    tokens; here it is their mean, as in the authors' code.
    From the authors' code: there the mean is over all chosen tokens of a micro-batch, so that long
    responses have more weight; here it is over one response, and each prompt has weight 1.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], length=[[2, 3]])
    >>> print(f"{loss(logps, batch, beta=0.4)[0][0]:.4f}")  # softplus(-2) + 4 / 2
    2.1269

    Reference: Xu et al., Contrastive Preference Optimization: Pushing the Boundaries of LLM
    Performance in Machine Translation, arXiv 2401.08417; code fe1ixxu/ALMA@28997eb,
    utils/cpo_trainer.py.
    """
    dpo.check_pairs(logps, "cpo.loss")
    policy = implicit(logps)
    compared = (logps.length > 0).all(axis=1)
    reward = beta * policy
    margin = reward[:, 0] - reward[:, 1]
    preferred = dpo.logistic(margin, label_smoothing)
    nll = -policy[:, 0] / jnp.maximum(logps.length[:, 0], 1)
    losses = jnp.where(compared, preferred, 0.0) + nll_weight * nll
    return losses, dpo.pair_metrics(reward, policy) | {"nll_per_token": nll}


def loss_simpo(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.25,
    nll_weight: float = 1.0,
    label_smoothing: float = 0.0,
    implicit: Implicit = simpo.implicit,
) -> tuple[Array, Metrics]:
    """Prefers the chosen response per token, by a margin, with a supervised term (CPO-SimPO).

    SimPO's comparison with CPO's supervised term, s / |y| the log-probability per token::

        loss = -log sigma(beta s_w / |y_w| - beta s_l / |y_l| - gamma) - alpha s_w / |y_w|

    ================================  ======================================
    paper                             code
    ================================  ======================================
    beta, gamma                       as in `simpo.loss`
    alpha                             ``nll_weight``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats, with ``length``; ``reference`` is not read.
      batch: not read: the chosen response has index 0.
      beta, gamma_beta_ratio, label_smoothing, implicit: as in `simpo.loss`.
      nll_weight: weight of the supervised term; >= 0.

    Returns:
      ``[B]`` losses in nats; the metrics of `simpo.loss` and ``nll_per_token``.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: no paper has it; the comparison is from arXiv 2405.14734.
    From the authors' code: fe1ixxu/CPO_SIMPO, where the mean is over a batch's chosen tokens.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], length=[[4, 3]])
    >>> print(f"{loss_simpo(logps, batch, beta=2.0, gamma_beta_ratio=1.0)[0][0]:.4f}")
    1.1269
    """
    dpo.check_pairs(logps, "cpo.loss_simpo")
    preferred, metrics = simpo.loss(
        logps,
        batch,
        beta=beta,
        gamma_beta_ratio=gamma_beta_ratio,
        label_smoothing=label_smoothing,
        implicit=implicit,
    )
    imitated, nll = sft.loss_chosen(logps, batch)
    return preferred + nll_weight * imitated, metrics | nll
