"""Computes the best mean scores that any policy can reach in the embedded world.

A policy may answer a prompt with a mixture of responses. So the mean scores that policies can reach
are the average of the prompts' convex hulls: a convex set, and each point of its front is the best
for some weights. It bulges outwards even where the front over the responses to one prompt
(``World.trade_off``) bulges inwards.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from alignjax.errors import UserError, did_you_mean
from alignjax.world.truth import DEFAULT_WORLD, SCORES, World, find_prompt, risk_scores

DIRECTIONS = 200  # weights to try, at least


def attainable(
    prompts: Sequence[str], names: tuple[str, ...], *, world: World = DEFAULT_WORLD
) -> np.ndarray:
    """Computes points of the attainable front: mean scores of the best responses for some weights.

    Args:
      prompts: of the world, to average over.
      names: of the M objectives, out of ``SCORES``.
      world: the truth.

    Returns:
      ``[F, M]`` float64, F distinct points, ordered by their weights.

    Raises:
      UserError: a prompt is not from the world, or a name is not in ``SCORES``.
    """
    for name in names:
        if name not in SCORES:
            raise UserError(
                f"objectives.names: wanted scores of the world, {', '.join(SCORES)}, found "
                f"{name!r}{did_you_mean(name, SCORES)}"
            )
    columns = [SCORES.index(name) for name in names]
    risks = np.bincount([find_prompt(prompt).risk for prompt in prompts], minlength=3)
    tables = [risk_scores(world, risk)[columns] for risk in range(3)]  # [M, n] each
    points = []
    for weights in _simplex(len(names)):
        best = [table[:, np.argmax(weights @ table)] for table in tables]
        points.append(risks @ np.array(best) / risks.sum())
    return np.array(list(dict.fromkeys(map(tuple, points))))


def _simplex(m: int) -> np.ndarray:
    """Makes ``[W, m]`` evenly spread weights; none is 0, which would leave ties."""
    parts = 1
    while len(list(itertools.combinations(range(parts + m - 1), m - 1))) < DIRECTIONS:
        parts += 1
    bars = np.array(list(itertools.combinations(range(parts + m - 1), m - 1)))
    edges = np.concatenate(
        [np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), parts + m - 1)], axis=1
    )
    return (np.diff(edges, axis=1) - 1) / parts + 1e-6
