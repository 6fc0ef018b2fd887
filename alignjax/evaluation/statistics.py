"""Computes means over prompts with 95% intervals."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Z95 = 1.959964  # normal quantile
DRAWS = 2000  # of a bootstrap


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over prompts, and its 95% interval."""

    mean: float
    half_width: float  # of the interval
    count: int  # prompts
    ends: tuple[float, float] | None = None  # of an interval that is not symmetric

    def __post_init__(self) -> None:
        for name in ("mean", "half_width"):  # in a JSON file NaN is null
            if getattr(self, name) is None:
                object.__setattr__(self, name, float("nan"))

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half_width if self.ends is None else self.ends[0]

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half_width if self.ends is None else self.ends[1]

    def __str__(self) -> str:
        if self.ends is None:
            return f"{self.mean:.3f} ± {self.half_width:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, Any]:
        """Returns the numbers for a JSON file; ``Interval(**numbers)`` restores symmetric ones."""
        if self.ends is None:
            return {"mean": self.mean, "half_width": self.half_width, "count": self.count}
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


NOTHING = Interval(float("nan"), float("nan"), 0)


def between(mean: float, low: float, high: float, count: int) -> Interval:
    """Makes an interval from its ends."""
    return Interval(float(mean), float(high - low) / 2, count, (float(low), float(high)))


def mean_over_prompts(values: np.ndarray, prompts: Sequence[object]) -> Interval:
    """Computes a mean with a 95% interval; rows of one prompt are one cluster.

    The interval is ``1.96`` standard errors of the ratio estimator over prompts, so rows of one
    prompt do not count as independent.

    Args:
      values: ``[N]``, NaN for rows without one.
      prompts: ``[N]`` hashable values that are equal for rows of one prompt.
    """
    values, cluster = _clusters(values, prompts)
    if not len(values):
        return NOTHING
    mean, clusters = float(values.mean()), int(cluster.max()) + 1
    if clusters < 2:
        return Interval(mean, float("nan"), clusters)
    residual = np.bincount(cluster, weights=values - mean)
    error = np.sqrt((residual**2).sum() * clusters / (clusters - 1)) / len(values)
    return Interval(mean, float(Z95 * error), clusters)


def bootstrap_over_prompts(values: np.ndarray, prompts: Sequence[object]) -> Interval:
    """Computes a mean with a 95% bootstrap interval; draws prompts, each with all its rows.

    It stays within the range of the values, which matters for shares near 0 or 1.

    Args:
      values: ``[N]``, NaN for rows without one.
      prompts: ``[N]``, as in `mean_over_prompts`.
    """
    values, cluster = _clusters(values, prompts)
    if not len(values):
        return NOTHING
    totals, sizes = np.bincount(cluster, weights=values), np.bincount(cluster)
    samples = resample(len(totals), draws=DRAWS)
    low, high = bootstrap(lambda drawn: totals[drawn].sum() / sizes[drawn].sum(), samples)
    return between(values.mean(), low, high, len(totals))


def _clusters(values: np.ndarray, prompts: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
    """Removes NaN values, and numbers the prompts of the others from 0."""
    has_value = ~np.isnan(values)
    kept = [prompt for prompt, has in zip(prompts, has_value, strict=True) if has]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(kept))}
    return values[has_value], np.array([numbers[prompt] for prompt in kept])


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Computes means of ``[N]`` arrays without NaN; leaves out arrays that have only NaN."""
    kept = {name: x[~np.isnan(x)] for name, x in values.items()}
    return {name: float(x.mean()) for name, x in kept.items() if len(x)}


def resample(count: int, *, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields ``draws`` bootstrap samples: ``[count]`` of ``count`` rows, drawn with replacement."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(0, count, count)


def bootstrap(statistic: Callable[[Any], Any], samples: Iterable[Any]) -> np.ndarray:
    """Computes the 95% interval of a statistic: its 2.5% and 97.5% quantiles over samples.

    Args:
      statistic: from a sample to a number, or an array.
      samples: from `resample`, or drawn in another way.

    Returns:
      ``[2]`` or ``[2, ...]``: low and high.
    """
    return np.quantile([statistic(sample) for sample in samples], [0.025, 0.975], axis=0)
