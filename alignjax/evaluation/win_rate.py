"""Who wins: scores of two policies' responses to the same prompts, compared prompt by prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np

DRAWS = 2000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of the comparisons and its 95% interval over prompts."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclasses.dataclass(frozen=True)
class WinRate:
    """What `win_rate` finds; wins, losses and ties add up to 1."""

    wins: Share
    losses: Share
    ties: Share
    win_rate: Share  # wins + ties / 2
    prompts: int


def win_rate(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, tie: float = 0.0, seed: int = 0
) -> WinRate:
    """Shares of won, lost and tied comparisons of two policies' scored responses.

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
    key = np.random.default_rng(seed)
    n = len(table)
    drawn = np.array([table[key.integers(0, n, n)].mean(axis=0) for _ in range(DRAWS)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    means = table.mean(axis=0)

    def share(i: int) -> Share:
        return Share(float(means[i]), float(low[i]), float(high[i]))

    return WinRate(wins=share(0), losses=share(1), ties=share(2), win_rate=share(3), prompts=n)
