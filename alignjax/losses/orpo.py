"""ORPO: supervised fine-tuning plus an odds-ratio preference term, without a reference."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Logps, Metrics, trains

# Log-odds are computed for probabilities up to exp(-1e-6), where they are 13.8: beyond, 1 - p has
# few digits in float32.
LARGEST = -1e-6


def implicit(logps: Logps) -> Array:
    """Returns ``[B, K]`` p of Eq. 3, whose odds ORPO compares, nats per token; no reference."""
    return logps.per_token


@trains(implicit)
def loss(logps: Logps, batch: Batch, *, odds_weight: float = 0.1) -> tuple[Array, Metrics]:
    """Fits the chosen response and raises its odds above the rejected one's.

    Eq. 6 and 7, with p = log P(y|x) the mean over the tokens of Eq. 3::

        loss = -p_w - lambda log sigma( log odds(y_w) - log odds(y_l) )
        log odds(y) = p - log(1 - exp(p))

    ================================  ======================================
    paper                             code
    ================================  ======================================
    log P(y|x), Eq. 3                 ``logps.per_token``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    log odds(y|x), Eq. 4              ``log_odds``
    lambda                            ``odds_weight``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats; ``reference`` is not read.
      batch: not read: the chosen response has index 0.
      odds_weight: lambda, the weight of the odds ratio; > 0.

    Returns:
      ``[B]`` losses in nats per token; `dpo.pair_metrics` with p as rewards (the log odds have the
      same order), ``nll_per_token`` and ``log_odds_ratio``. A pair that lacks a response has only
      the likelihood term.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: above p = -1e-6 the odds are those of p = -1e-6.
    From the authors' code: there the likelihood term is averaged over all tokens of a micro-batch,
    also of the prompt unless --disable_prompt_loss is given; here over the tokens of the response,
    and each prompt has weight 1. TRL's ORPOTrainer also counts the prompt.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -6.0]], length=[[2, 3]])  # p = -1, -2
    >>> losses, metrics = loss(logps, batch, odds_weight=0.5)
    >>> print(f"{losses[0]:.4f} {metrics['log_odds_ratio'][0]:.4f}")
    1.1191 1.3133

    Reference: Hong et al., ORPO: Monolithic Preference Optimization without Reference Model,
    arXiv 2403.07691; code xfactlab/orpo@0f0abfe, src/orpo_trainer.py.
    """
    dpo.check_pairs(logps, "orpo.loss")
    score = implicit(logps)
    odds = log_odds(score)
    ratio = odds[:, 0] - odds[:, 1]
    compared = (logps.length > 0).all(axis=1)
    nll = -score[:, 0]
    losses = nll - odds_weight * jnp.where(compared, jax.nn.log_sigmoid(ratio), 0.0)
    metrics = dpo.pair_metrics(score, logps.policy)
    return losses, metrics | {"nll_per_token": nll, "log_odds_ratio": ratio}


def log_odds(score: Array) -> Array:
    """Computes ``log(p / (1 - p))`` of ``p = exp(score)``, exact near 0 and far below it.

    Args:
      score: log-probabilities, nats. Above -1e-6 the value is constant and the gradient is 0.
    """
    score = jnp.minimum(score, LARGEST)
    return score - jax.nn.log1mexp(-score)
