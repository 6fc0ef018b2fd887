"""Measures calibration: how far a reward model's probabilities of preference are from outcomes.

By Bradley-Terry, a reward r predicts that response i is preferred to j with probability
``p = sigma(r_i - r_j)``. Every pair of a row with different true scores counts in both orders, so
that there are outcomes 0 and 1; bins are over p in [0, 1]::

    ECE = sum_b |sum_{n in b} p_n - sum_{n in b} y_n| / N            equal-width bins
    MCE = max_b |mean_{n in b} p_n - mean_{n in b} y_n|              the same, without empty bins
    ACE = the ECE of adaptive bins with equal numbers of pairs (as far as ties allow)

Reference: Cheng et al., Adversarial Preference Optimization, arXiv 2311.08045 (ECE of reward
models); Nixon et al., Measuring Calibration in Deep Learning, arXiv 1904.01685 (ACE); Naeini et
al., 2015 (ECE, MCE); Guo et al., arXiv 1706.04599 (temperature scaling).
"""

import dataclasses

import numpy as np

BINS = 10
TEMPERATURES = (1e-3, 1e3)  # range of the fit


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs of compared responses, each once."""

    margin: np.ndarray  # [P] reward of the preferred response minus that of the other
    row: np.ndarray  # [P] the row it is from

    def of_rows(self, chosen: np.ndarray) -> "Pairs":
        """Selects the pairs of the rows where ``chosen [N]`` is True."""
        keep = chosen[self.row]
        return Pairs(self.margin[keep], self.row[keep])


@dataclasses.dataclass(frozen=True)
class Bins:
    """The numbers of a reliability diagram; one entry per bin, 0 where it is empty."""

    count: np.ndarray  # comparisons
    predicted: np.ndarray  # mean p
    happened: np.ndarray  # share with y = 1


def pairs(reward: np.ndarray, better: np.ndarray) -> Pairs:
    """Finds all pairs of responses of one row that differ in true score.

    Args:
      reward: ``[N, K]``.
      better: ``[N, K]`` true scores, NaN where a response is absent or has none.
    """
    row, first, second = np.nonzero(better[:, :, None] > better[:, None, :])
    return Pairs(reward[row, first] - reward[row, second], row)


def bins(margin: np.ndarray, *, temperature: float = 1.0, adaptive: bool = False) -> Bins:
    """Bins the probabilities and outcomes of `Pairs.margin`, both orders of each pair.

    Args:
      margin: ``[P]``, the preferred response's reward minus the other's.
      temperature: the margins are divided by it.
      adaptive: bins with equal numbers of comparisons instead of equal width.
    """
    p = _sigmoid(np.concatenate([margin, -margin]) / temperature)
    y = np.repeat([1.0, 0.0], len(margin))
    if adaptive and len(p):
        edges = np.quantile(p, np.arange(1, BINS) / BINS)
        which = np.searchsorted(edges, p, side="left")  # ties stay together
    else:
        which = np.minimum((p * BINS).astype(int), BINS - 1)
    count = np.bincount(which, minlength=BINS)
    each = np.maximum(count, 1)
    return Bins(
        count,
        np.bincount(which, weights=p, minlength=BINS) / each,
        np.bincount(which, weights=y, minlength=BINS) / each,
    )


def measure(margin: np.ndarray, *, temperature: float = 1.0) -> dict[str, float]:
    """Computes ``ece``, ``ace``, ``mce`` (see the module) and ``nll``, nats per pair.

    Returns:
      The four by name; NaN without pairs.
    """
    if not len(margin):
        return dict.fromkeys(("ece", "ace", "mce", "nll"), float("nan"))
    plain, adaptive = (bins(margin, temperature=temperature, adaptive=a) for a in (False, True))
    return {
        "ece": _expected(plain),
        "ace": _expected(adaptive),
        "mce": float(np.abs(plain.predicted - plain.happened).max()),
        "nll": float(_softplus(-margin / temperature).mean()),
    }


def ece_if_calibrated(margin: np.ndarray, *, temperature: float = 1.0, draws: int = 100) -> float:
    """Simulates the mean ECE of a calibrated model, by drawing outcomes from its probabilities.

    With a finite number of pairs, even a calibrated model has an ECE above 0; an ECE near this
    number is no sign of miscalibration. Seeded: the same margins give the same number.
    """
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(draws):
        swap = rng.random(len(margin)) >= _sigmoid(margin / temperature)
        errors.append(_expected(bins(np.where(swap, -margin, margin), temperature=temperature)))
    return float(np.mean(errors)) if len(margin) else float("nan")


def fit_temperature(margin: np.ndarray) -> float:
    """Finds the T that minimises ``mean log(1 + exp(-margin / T))``.

    The loss is convex in 1/T, so its derivative changes sign at most once, and log T is found by
    bisection. If all pairs are ordered correctly the best T is 0, and if the rewards are no better
    than chance it is infinite; then the result is an end of TEMPERATURES.

    Returns:
      T, or 1 without pairs.
    """
    if not len(margin):
        return 1.0

    def slope(log_t: float) -> float:  # d loss / d (1/T)
        return float(-(margin * _sigmoid(-margin / np.exp(log_t))).mean())

    low, high = np.log(TEMPERATURES)
    for _ in range(60):
        middle = (low + high) / 2
        if slope(middle) <= 0:  # a larger 1/T is better; 0: it underflowed
            high = middle
        else:
            low = middle
    return float(np.exp((low + high) / 2))


def _expected(bins: Bins) -> float:
    gap = np.abs(bins.predicted - bins.happened)
    return float((gap * bins.count).sum() / max(bins.count.sum(), 1))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-_softplus(-x))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)
