"""What a run measured along its training, as points that runs can be compared at."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from alignjax.errors import UserError
from alignjax.runtime.metrics import read

Point = dict[str, float]  # step, kl and what else was measured there

KL = "kl"
ZERO_AT_START = ("kl", "RM_DPO", "winner_log_ratio", "rewards/margins")


def points(workdir: pathlib.Path) -> list[Point]:
    """The evaluations of a run, in order, under their names without ``eval_``.

    At step 0 stand the metrics that are 0 there, since the policy is then the reference.

    Raises:
      UserError: the folder has no metrics, or none with a KL.
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"--runs: {workdir} holds no run (no metrics.jsonl)")
    found: list[Point] = []
    for line in read(path):
        values: dict[str, Any] = {
            name.removeprefix("eval_"): x for name, x in line.items() if name.startswith("eval_")
        }
        if values.get(KL) is not None:
            kept = {name: float(x) for name, x in values.items() if x is not None}
            found.append({"step": float(line["step"]), **kept})
    if not found:
        raise UserError(
            f"--runs: {workdir} has no evaluations with a KL: train with train.eval_every and "
            "evaluate.during above 0"
        )
    start = {name: 0.0 for name in ZERO_AT_START if name in found[0]}
    return [{"step": 0.0, **start}, *found]


def at_step(history: Sequence[Point], name: str, step: float) -> float | None:
    """A metric at one evaluated step; None where it was not measured."""
    return next((p.get(name) for p in history if p["step"] == step), None)


def at_kl(history: Sequence[Point], name: str, kl: float) -> float | None:
    """A metric where training first comes to a KL, linear between two evaluations.

    Returns:
      None where the run never had this KL: nothing is extrapolated.
    """
    along = [(p[KL], p[name]) for p in history if KL in p and name in p]
    for (x, a), (y, b) in itertools.pairwise(along):
        if min(x, y) <= kl <= max(x, y):
            return a if x == y else a + (b - a) * (kl - x) / (y - x)
    return None


def kl_range(history: Sequence[Point]) -> tuple[float, float]:
    """The smallest and the largest KL of a run."""
    values = [p[KL] for p in history if KL in p]
    return min(values), max(values)
