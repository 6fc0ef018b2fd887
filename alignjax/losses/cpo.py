"""Contrastive Preference Optimization: DPO with a uniform reference, and imitation."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Logps, Metrics, trains


def implicit(logps: Logps) -> Array:
    """CPO's reward s per unit of beta: ``[B, K]`` nats, 0 for absent responses; no reference."""
    return jnp.where(logps.length > 0, logps.policy, 0.0)


@trains(implicit)
def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, nll_weight: float = 1.0
) -> tuple[Array, Metrics]:
    """Prefers the chosen response by its probability alone, and imitates it.

    The paper's L_prefer + L_NLL, s = log pi_theta(y|x) summed over the tokens::

        loss = -log sigma(beta (s_w - s_l)) - alpha s_w / |y_w|

    ================================  ======================================
    paper                             code
    ================================  ======================================
    s = log pi_theta(y|x)             ``logps.policy``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    |y_w|, tokens                     ``logps.length[:, 0]``
    beta                              ``beta``
    alpha (TRL's name; 1 there)       ``nll_weight``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats; ``reference`` is not read.
      batch: not read: which response was chosen is its index.
      beta: reward per nat; > 0.
      nll_weight: weight of the imitation; >= 0.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` with ``beta * s`` as rewards, and
      ``nll_per_token``. A pair that lacks a response compares nothing.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: its L_NLL is the expectation of -log pi_theta(y_w|x), a sum over the
    tokens; here it is their mean, as in the code that gave its results.
    From the authors' code: there the mean runs over all chosen tokens of a micro-batch, so that
    long responses weigh more; here over one response, each prompt with weight 1.

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
    preferred = -jax.nn.log_sigmoid(reward[:, 0] - reward[:, 1])
    nll = -policy[:, 0] / jnp.maximum(logps.length[:, 0], 1)
    losses = jnp.where(compared, preferred, 0.0) + nll_weight * nll
    return losses, dpo.pair_metrics(reward, policy) | {"nll_per_token": nll}
