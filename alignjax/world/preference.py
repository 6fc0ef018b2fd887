"""Preferences in the embedded world: a Bradley-Terry model, or a cycle, which is none."""

import math

import numpy as np
import numpy.typing as npt

from alignjax.errors import UserError, require
from alignjax.world import grammar as text
from alignjax.world.truth import (
    LEVELS,
    FloatArray,
    World,
    find_prompt,
    log_probs,
    risk_scores,
)

_POLITENESS = LEVELS[2]


def preference_matrix(
    world: World, prompt: str, *, temperature: float, cycle: float = 0.0
) -> FloatArray:
    """Computes ``[n, n]`` probabilities that response i is preferred to response j.

        P(i > j) = sigmoid((s_i - s_j) / temperature + cycle c(politeness_i - politeness_j))

    c is 1 for a difference of 1 modulo 3, -1 for 2, and 0 for 0: polite beats neutral, neutral
    beats curt, curt beats polite. For three responses that differ in politeness alone, the
    log-odds round the cycle sum to ``3 cycle`` under P and to 0 under every Bradley-Terry model:
    with ``cycle = 0`` P is Bradley-Terry on the true score, otherwise no such model exists.

    Args:
      world: the world.
      prompt: one of its prompts.
      temperature: > 0, in units of the true score; ``inf``: only the cycle counts.
      cycle: log-odds, any sign.

    Raises:
      UserError: a setting is out of its range, or the prompt is not from the world.
    """
    scores = risk_scores(world, find_prompt(prompt).risk)[0]
    odds = _log_odds(
        scores[:, None] - scores, _POLITENESS[:, None] - _POLITENESS, temperature, cycle
    )
    return np.asarray(np.exp(-np.logaddexp(0, -odds)))


def preference_at(
    world: World, risk: int, first: int, second: int, *, temperature: float, cycle: float = 0.0
) -> float:
    """Computes one entry of :func:`preference_matrix`, by positions in the enumeration."""
    scores = risk_scores(world, risk)[0]
    odds = _log_odds(
        scores[first] - scores[second], _POLITENESS[first] - _POLITENESS[second], temperature, cycle
    )
    return float(np.exp(-np.logaddexp(0, -odds)))


def preference_probability(
    world: World,
    prompt: str,
    first: str,
    second: str,
    *,
    temperature: float,
    cycle: float = 0.0,
) -> float:
    """Computes the probability that ``first`` is preferred to ``second``.

    See :func:`preference_matrix`.

    Raises:
      UserError: a text is malformed, or a setting is out of its range.
    """
    request = find_prompt(prompt)
    places = []
    for name, response in (("first", first), ("second", second)):
        latent = text.parse(request, response)
        if latent is None:
            raise UserError(f"{name}: wanted a response of the embedded world, found {response!r}")
        places.append(text.LATENT_INDEX[latent])
    return preference_at(
        world, request.risk, places[0], places[1], temperature=temperature, cycle=cycle
    )


def _log_odds(
    score_difference: FloatArray,
    level_difference: npt.NDArray[np.int64],
    temperature: float,
    cycle: float,
) -> FloatArray:
    require(temperature > 0, "temperature", "a number > 0", temperature)
    require(math.isfinite(cycle), "cycle", "a finite number", cycle)
    turn = (level_difference + 1) % 3 - 1  # 1, 2 = -2, 0 become 1, -1, 0
    return score_difference / temperature + cycle * turn


def pair_marginals(
    world: World, prompt: str, *, alpha: float, temperature: float, cycle: float = 0.0
) -> tuple[FloatArray, FloatArray]:
    """Computes the distributions of the chosen and the rejected responses of ``world.pairs``.

    Two responses are drawn from the mixture q until they differ, then one is preferred:
    ``chosen(i) = 2 q_i sum_{j != i} q_j P(i > j) / (1 - sum_k q_k^2)``, rejected alike. Their
    equal mixture is the distribution of the responses in pairs, close to q.

    Returns:
      ``[n]`` and ``[n]`` log-probabilities in nats over :func:`enumerate_responses`.
    """
    q = np.exp(log_probs(world, prompt, alpha=alpha))
    together = np.outer(q, q)
    np.fill_diagonal(together, 0.0)
    preferred = together * preference_matrix(world, prompt, temperature=temperature, cycle=cycle)
    scale = 2 / together.sum()
    return np.log(scale * preferred.sum(axis=1)), np.log(scale * preferred.sum(axis=0))
