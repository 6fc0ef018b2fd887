"""Who wins: scores of two policies' responses to the same prompts, compared prompt by prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alignjax.evaluation.statistics import Interval, between, bootstrap, resample

DRAWS = 2000  # of the bootstrap


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

    At each prompt every one of our responses is compared with every one of theirs, and each prompt
    counts alike. Two scores tie when they differ by at most ``tie``. Intervals are the 2.5% and the
    97.5% quantile over `DRAWS` draws of prompts with replacement.

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
    table = np.array(rows)  # [prompts, 4]
    samples = resample(len(table), draws=DRAWS, seed=seed)
    low, high = bootstrap(lambda rows: table[rows].mean(axis=0), samples)
    wins, losses, ties, win_rate = (
        between(*numbers, len(table)) for numbers in zip(table.mean(axis=0), low, high, strict=True)
    )
    return WinRate(wins, losses, ties, win_rate, len(table))
