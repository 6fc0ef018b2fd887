"""Measures a front: hypervolume, faithfulness to the preferences, collapsed responses.

Axes: P preferences, N prompts, M objectives. **Larger is better** in every objective. A front is
``scores [P, N, M]``, the mean scores of the responses to each prompt for each preference; its
points are the means over prompts.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from alignjax.evaluation import pareto
from alignjax.evaluation.statistics import Interval, between, bootstrap, mean_over_prompts
from alignjax.losses import paretohqd

SHORTEST = 5  # tokens; a shorter response has collapsed
GRAM = 4  # tokens of a phrase
REPEATED = 0.5  # share of repeated phrases from which on a response has collapsed
DRAWS = 1000  # of a bootstrap


def repetition(ids: Sequence[Hashable]) -> float:
    """Computes the share of phrases of 4 tokens that repeat an earlier one; 0 without phrases.

    >>> repetition("abababab"), repetition("abcdefgh")
    (0.6, 0.0)
    """
    phrases = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def is_collapsed(ids: Sequence[Hashable]) -> bool:
    """Tells whether a response has collapsed: under 5 tokens, or half of its phrases repeated.

    Args:
      ids: its tokens, without an end-of-sequence.

    >>> is_collapsed("abcd"), is_collapsed("abcde"), is_collapsed("aaaaa")
    (True, False, True)
    """
    return len(ids) < SHORTEST or repetition(ids) >= REPEATED


def points(scores: np.ndarray) -> list[list[Interval]]:
    """Averages every preference and objective, ``[P][M]``, with a 95% interval over prompts."""
    p, n, m = scores.shape
    return [[mean_over_prompts(scores[i, :, j], range(n)) for j in range(m)] for i in range(p)]


def box(fronts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the smallest box around the points of several fronts: ``low [M]`` and ``high [M]``."""
    means = np.concatenate([scores.mean(axis=1) for scores in fronts])
    return means.min(axis=0), means.max(axis=0)


def hypervolume(
    scores: np.ndarray, *, low: np.ndarray, high: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Computes `pareto.hypervolume` of a front's points, with a bootstrap interval.

    A draw takes N prompts with replacement, the same ones for every preference; the interval is
    from the 2.5% to the 97.5% quantile of the draws. Value and draws are biased upwards, more so
    for fewer prompts, because the maximum of noisy means is above the maximum of true means.

    Args:
      scores: ``[P, N, M]``.
      low, high: ``[M]`` the reference point and the ideal point; see `pareto.hypervolume`.
      seed: of the draws.
      draws: number of draws.

    Returns:
      The share of the box, in [0, 1].

    Raises:
      ValueError: ``high`` is not above ``low`` in every objective.
    """
    n = scores.shape[1]
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, N]
    resampled = np.einsum("dn,pnm->dpm", weight, scores)

    def volume(points: np.ndarray) -> float:
        return pareto.hypervolume(points, low=low, high=high)

    lowest, highest = bootstrap(volume, resampled)
    return between(volume(scores.mean(axis=1)), lowest, highest, n)


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Whether asking for more of an objective gives more of it."""

    correlation: tuple[float, ...]  # [M] in [-1, 1]
    violations: int  # pairs of preferences that asked for more of an objective and got less
    pairs: int  # pairs of preferences that asked for more of an objective, over all objectives

    @property
    def mean(self) -> float:
        return float(np.mean(self.correlation))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.violations} of {self.pairs} reversed)"


def faithfulness(preferences: np.ndarray, means: np.ndarray) -> Faithfulness:
    """Computes Spearman's rank correlation of each objective's weights with its mean scores.

    If all weights or all means of an objective are equal, it is 0.

    Args:
      preferences: ``[P, M]`` weights, each row summing to 1.
      means: ``[P, M]`` mean scores.
    """
    correlation, violations, pairs = [], 0, 0
    for weight, mean in zip(np.asarray(preferences).T, np.asarray(means).T, strict=True):
        if np.ptp(weight) == 0 or np.ptp(mean) == 0:
            correlation.append(0.0)
        else:
            correlation.append(float(np.corrcoef(_ranks(weight), _ranks(mean))[0, 1]))
        more = weight[:, None] > weight[None, :]
        pairs += int(more.sum())
        violations += int((more & (mean[:, None] < mean[None, :])).sum())
    return Faithfulness(tuple(correlation), violations, pairs)


def upper_hull(points: np.ndarray) -> np.ndarray:
    """Finds the corners of the front that mixtures of points can reach, from left to right.

    Args:
      points: ``[F, 2]``.

    >>> upper_hull(np.array([[0, 3], [1, 1], [2, 2], [3, 0], [0, 0]])).tolist()
    [[0, 3], [2, 2], [3, 0]]
    """
    best = np.unique(points[paretohqd.layers(points) == 0], axis=0)
    chain: list[np.ndarray] = []
    for point in best:
        while len(chain) > 1:
            (ax, ay), (bx, by) = chain[-1] - chain[-2], point - chain[-2]
            if ax * by - ay * bx < 0:  # the path turns right: the last point is a corner
                break
            chain.pop()
        chain.append(point)
    return np.array(chain)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Computes ranks from 0; equal values get the mean of their ranks."""
    below, equal = (f(values[:, None], values).sum(axis=1) for f in (np.greater, np.equal))
    return below + (equal - 1) / 2
