"""Reads the evaluations during a run's training, and compares runs at the same step or KL."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from alignjax.errors import UserError
from alignjax.runtime.metrics import read

Point = dict[str, float]  # step, kl and other metrics

KL = "kl"
ZERO_AT_START = ("kl", "RM_DPO", "winner_log_ratio", "rewards/margins")


def points(workdir: pathlib.Path) -> list[Point]:
    """Reads the evaluations of a run, in order, under their names without ``eval_``.

    A point at step 0 is added, with the metrics that are 0 while the policy is the reference.

    Raises:
      UserError: the folder has no metrics, or none with a KL.
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--runs: {workdir} holds no run (no metrics.jsonl)")
    history: list[Point] = []
    for line in read(path):
        values: dict[str, Any] = {
            name.removeprefix("eval_"): x for name, x in line.items() if name.startswith("eval_")
        }
        if values.get(KL) is not None:
            kept = {name: float(x) for name, x in values.items() if x is not None}
            history.append({"step": float(line["step"]), **kept})
    if not history:
        raise UserError(
            f"--runs: {workdir} has no evaluations with a KL: train with train.eval_every and "
            "evaluate.during above 0"
        )
    start = {name: 0.0 for name in ZERO_AT_START if name in history[0]}
    return [{"step": 0.0, **start}, *history]


def at_step(history: Sequence[Point], name: str, step: float) -> float | None:
    """Looks up a metric at an evaluated step; None if it was not measured."""
    return next((p.get(name) for p in history if p["step"] == step), None)


def at_kl(history: Sequence[Point], name: str, kl: float) -> float | None:
    """Interpolates a metric between two evaluations, to where training first reaches a KL.

    Returns:
      The metric, or None if the run never reached this KL: nothing is extrapolated.
    """
    along = [(p[KL], p[name]) for p in history if KL in p and name in p]
    for (x, a), (y, b) in itertools.pairwise(along):
        if min(x, y) <= kl <= max(x, y):
            return a if x == y else a + (b - a) * (kl - x) / (y - x)
    return None


def kl_range(history: Sequence[Point]) -> tuple[float, float]:
    """Finds the smallest and the largest KL of a run."""
    values = [p[KL] for p in history if KL in p]
    return min(values), max(values)
