"""Rewards-in-Context (RiC): one policy whose prompt states the target rewards.

================================  ==========================================================
paper                             code
================================  ==========================================================
R = (R_1, ..., R_M)               z-scores of a response's rewards: mean 0, deviation 1 over the
                                  training responses
x with R in the prompt            `score_text`, added to a prompt by the recipe
w, a preference                   ``preference``: M weights >= 0; their sum is scaled to 1
preference-to-reward map          `l2`, `linf`, `linear`: targets between low and high
low, high                         `normal_limits` (as published) or `data_limits`
multi-objective rejection         `online_targets`, the targets of samples, and `keep`
================================  ==========================================================

Offline, the policy is trained on every response with a prompt that states the response's rewards.
Online, prompts ask for high rewards on all objectives but one; the policy is trained on samples
with a high reward on some objective, with prompts that state the actual rewards. To follow a
preference, the prompt states the target rewards of that preference.

Reference: Yang et al., Rewards-in-Context: Multi-objective Alignment of Foundation Models with
Dynamic Preference Adjustment, arXiv 2402.10207; code YangRui2015/RiC@0d7267f.
"""

import numpy as np

from alignjax.losses import sft
from alignjax.losses.modpo import preference_weights
from alignjax.types import Array, Batch, Logps, Metrics

RECIPE = "configs/demo/rewards_in_context.py"  # its loss alone is no method: see `losses.methods`


def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Fits responses given the prompt and their rewards, by maximum likelihood.

    The loss of all stages, which is `sft.loss` at K = 1 on prompts that state R::

        loss = -log pi_theta(y | x, R)

    Args:
      logps: ``[B, K]`` nats; ``reference`` is not read.
      batch: ``response_length``, 0 for absent responses.

    Returns:
      ``[B]`` losses in nats per response, and the metrics of `sft.loss`.

    Differs from the paper: no, with one response a row.
    From the authors' code: that averages over the tokens of a batch, so that long responses have
    more weight; here each response has weight 1.

    >>> from alignjax.testing import loss_inputs
    >>> print(loss(*loss_inputs([[-6.0]]))[0])
    [6.]
    """
    return sft.loss(logps, batch)


def score_text(scores: np.ndarray | tuple[float, ...]) -> str:
    """Writes M z-scores for a prompt, rounded to one decimal.

    As published, except that -0.0 is 0.0 here.

    >>> score_text((1.234, -0.04))
    '<rm1_score> 1.2 <rm2_score> 0.0'
    """
    rounded = np.round(np.asarray(scores, np.float64), 1) + 0.0
    return " ".join(f"<rm{i}_score> {x:.1f}" for i, x in enumerate(rounded, start=1))


def normal_limits(
    scores: np.ndarray, *, draws: int = 50_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Takes the smallest and the largest of many standard normal draws, as published.

    They are about -4.2 and 4.2. If the data's z-scores have a smaller range, as with bounded
    rewards, prompts ask for rewards that are not in the training data: see `data_limits`.

    Args:
      scores: ``[N, M]``; only M is read.
      draws: per objective.
      seed: of the draws.

    Returns:
      ``[M]`` low and ``[M]`` high, float64.
    """
    drawn = np.random.default_rng(seed).standard_normal((draws, scores.shape[1]))
    return drawn.min(axis=0), drawn.max(axis=0)


def data_limits(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes the smallest and largest z-score of every objective among the training responses.

    Args:
      scores: ``[N, M]`` z-scores.

    Returns:
      ``[M]`` low and ``[M]`` high, float64.
    """
    scores = np.asarray(scores, np.float64)
    return scores.min(axis=0), scores.max(axis=0)


def l2(preference: tuple[float, ...], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Computes ``low + w / |w| (high - low)``; equal weights give 0.71 of every range if M = 2.

    Args:
      preference: M weights >= 0, not all 0.
      low, high: ``[M]``.

    Returns:
      ``[M]`` target z-scores, float64; `score_text` rounds them.

    Raises:
      ValueError: the weights are negative, all 0 or not M.
    """
    w = preference_weights(preference, len(low))
    return np.asarray(low + w / np.linalg.norm(w) * (high - low))


def linf(preference: tuple[float, ...], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Computes ``low + min(M w, 1) (high - low)``; every weight of at least 1/M gives high.

    Arguments, result and errors as for `l2`.
    """
    w = preference_weights(preference, len(low))
    return np.asarray(low + np.minimum(len(w) * w, 1.0) * (high - low))


def linear(preference: tuple[float, ...], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Computes ``low + w (high - low)``; equal weights give 1/M of every range.

    Arguments, result and errors as for `l2`.
    """
    return np.asarray(low + preference_weights(preference, len(low)) * (high - low))


def online_targets(
    rng: np.random.Generator, count: int, *, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Draws the target rewards of the online stage: high on all objectives but one.

    M places between low and high are drawn uniformly; the lowest one is kept, the others become
    high. So targets with different low objectives do not dominate each other.

    Args:
      rng: random generator.
      count: number of targets.
      low, high: ``[M]``.

    Returns:
      ``[count, M]`` z-scores, float64.
    """
    place = rng.random((count, len(low)))
    least = place.argmin(axis=1)[:, None] == np.arange(len(low))
    return np.asarray(np.where(least, low + place * (high - low), high))


def keep(scores: np.ndarray, *, quantile: float = 0.7) -> np.ndarray:
    """Selects responses that reach a quantile of at least one objective.

    Args:
      scores: ``[N, M]``.
      quantile: in [0, 1].

    Returns:
      ``[N]`` bool.
    """
    return np.asarray((scores >= np.quantile(scores, quantile, axis=0)).any(axis=1))
