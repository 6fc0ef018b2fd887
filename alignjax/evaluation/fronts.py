"""What a front is worth: hypervolume, faithfulness to the preferences, collapsed responses.

Axes: P preferences, N prompts, M objectives. **Larger is better** in every objective. A front is
``scores [P, N, M]``, the mean scores of the responses to each prompt for each preference; its
points are the means over prompts.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from alignjax.evaluation import pareto
from alignjax.evaluation.preferences import Estimate, mean_over_prompts

SHORTEST = 5  # tokens; a response of fewer has collapsed
GRAM = 4  # tokens that count as a phrase
REPEATED = 0.5  # share of repeated phrases from which on a response has collapsed
DRAWS = 1000  # of a bootstrap


def repetition(ids: Sequence[Hashable]) -> float:
    """Share of a response's phrases of 4 tokens that stood in it before; 0 for under 4 tokens.

    >>> repetition("abababab"), repetition("abcdefgh")
    (0.6, 0.0)
    """
    phrases = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def is_collapsed(ids: Sequence[Hashable]) -> bool:
    """Whether a response has collapsed: under 5 tokens, or at least half of its phrases repeated.

    Args:
      ids: its tokens, without an end-of-sequence.

    >>> is_collapsed("abcd"), is_collapsed("abcde"), is_collapsed("aaaaa")
    (True, False, True)
    """
    return len(ids) < SHORTEST or repetition(ids) >= REPEATED


def points(scores: np.ndarray) -> list[list[Estimate]]:
    """The mean of every preference and objective, ``[P][M]``, with a 95% interval over prompts."""
    p, n, m = scores.shape
    return [[mean_over_prompts(scores[i, :, j], range(n)) for j in range(m)] for i in range(p)]


def box(fronts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest box around the points of several fronts: ``low [M]`` and ``high [M]``."""
    means = np.concatenate([scores.mean(axis=1) for scores in fronts])
    return means.min(axis=0), means.max(axis=0)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A hypervolume, the share of a box, and the ends of its 95% interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def hypervolume(
    scores: np.ndarray, *, low: np.ndarray, high: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Volume:
    """`pareto.hypervolume` of a front's points, with a bootstrap interval.

    A draw takes N prompts with replacement, the same ones for every preference; the interval is
    from the 2.5% to the 97.5% quantile of the draws. The largest of several means is above the
    mean of the largest, so draws, like the value itself, lie above what infinitely many prompts
    would give; the fewer prompts, the more.

    Args:
      scores: ``[P, N, M]``.
      low, high: ``[M]`` the reference point and the ideal point; see `pareto.hypervolume`.
      seed: of the draws.
      draws: how many.

    Returns:
      Share of the box in [0, 1].

    Raises:
      ValueError: ``high`` is not above ``low`` in every objective.
    """
    n = scores.shape[1]
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n  # [draws, N]
    resampled = np.einsum("dn,pnm->dpm", weight, scores)
    drawn = [pareto.hypervolume(x, low=low, high=high) for x in resampled]
    value = pareto.hypervolume(scores.mean(axis=1), low=low, high=high)
    return Volume(value, float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975)))


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Does asking for more of an objective give more of it."""

    correlation: tuple[float, ...]  # [M] in [-1, 1], 1: always more, or as much
    violations: int  # pairs of preferences that asked for more of an objective and got less
    pairs: int  # pairs that asked for more of an objective, over all objectives

    @property
    def mean(self) -> float:
        return float(np.mean(self.correlation))

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.violations} of {self.pairs} reversed)"


def faithfulness(preferences: np.ndarray, means: np.ndarray) -> Faithfulness:
    """Spearman's rank correlation of an objective's weight with its mean score, by objective.

    Where all weights or all means of an objective are equal it is 0: asking changes nothing.

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


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    below, equal = (f(values[:, None], values).sum(axis=1) for f in (np.greater, np.equal))
    return below + (equal - 1) / 2
