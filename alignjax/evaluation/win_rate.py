"""Computes win rates from the scores of two policies' responses to the same prompts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alignjax.evaluation.statistics import DRAWS, Interval, between, bootstrap, resample


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Shares of the comparisons; wins, losses and ties add up to 1."""

    wins: Interval
    losses: Interval
    ties: Interval
    win_rate: Interval  # wins + ties / 2
    prompts: int


def compare(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, tie: float = 0.0, seed: int = 0
) -> WinRate:
    """Compares the scored responses of two policies: shares won, lost and tied.

    For each prompt every response of ours is compared with every response of theirs; all prompts
    have the same weight. Scores that differ by at most ``tie`` are a tie. Intervals are the 2.5%
    and 97.5% quantiles of `DRAWS` draws of prompts with replacement.

    Args:
      ours: for each prompt ``[k]`` scores, larger is better; k may differ between prompts.
      theirs: for the same prompts, in the same order, ``[k']`` scores.
      tie: in units of the score, >= 0.
      seed: of the bootstrap.
    """
    rows = []
    for x, y in zip(ours, theirs, strict=True):
        difference = np.subtract.outer(np.asarray(x, np.float64), np.asarray(y, np.float64))
        won, tied = (difference > tie).mean(), (np.abs(difference) <= tie).mean()
        rows.append((won, (difference < -tie).mean(), tied, won + tied / 2))
    return _rate(np.array(rows), seed)


def of_shares(wins: np.ndarray, *, seed: int = 0) -> WinRate:
    """Computes the win rate from shares won, ``[prompts]`` in [0, 1]; one half is a tie."""
    won, lost = np.maximum(2 * wins - 1, 0), np.maximum(1 - 2 * wins, 0)
    return _rate(np.stack([won, lost, 1 - won - lost, wins], axis=1), seed)


def at_equal_length(wins: np.ndarray, longer: np.ndarray) -> float:
    """Estimates the win rate for responses of equal length.

    Fits ``P(win) = sigmoid(a + b tanh(d / sd(d)))`` by logistic regression on the difference of
    lengths d, and returns ``sigmoid(a)``. This is the length term of AlpacaEval 2, without the
    terms for models and prompts.

    Args:
      wins: ``[N]`` in [0, 1].
      longer: ``[N]`` length of ours minus that of theirs, in any unit.

    Reference: Dubois et al., Length-Controlled AlpacaEval, arXiv 2404.04475.
    """
    spread = float(np.std(longer))
    x = np.tanh(longer / spread) if spread else np.zeros(len(wins))
    features, weights = np.stack([np.ones(len(wins)), x], axis=1), np.zeros(2)
    ridge = np.diag([1e-6, 1e-3])  # separable data have no finite fit
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ weights))
        slope = features.T @ (p - wins) / len(wins) + ridge @ weights
        curve = (features.T * (p * (1 - p))) @ features / len(wins) + ridge
        weights = weights - np.linalg.solve(curve, slope)
    return float(1 / (1 + np.exp(-weights[0])))


def _rate(table: np.ndarray, seed: int) -> WinRate:
    """Computes shares with intervals from a table ``[prompts, 4]``."""
    samples = resample(len(table), draws=DRAWS, seed=seed)
    low, high = bootstrap(lambda rows: table[rows].mean(axis=0), samples)
    wins, losses, ties, win_rate = (
        between(*numbers, len(table)) for numbers in zip(table.mean(axis=0), low, high, strict=True)
    )
    return WinRate(wins, losses, ties, win_rate, len(table))
