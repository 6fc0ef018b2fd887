"""Measures objectives on labelled responses whose classes have unequal sizes.

    python benchmarks/papers/rdro_ratios.py            # a minute of CPU time

The setting of `benchmarks/consistency.py`: 4 prompts with 24 responses each, cyclic preferences,
tables of logits, N labelled responses of which a fraction is drawn from p+ and the rest from p-;
the reference is the mixture of that fraction, and alpha the fraction. KTO weighs the rarer class so
that both count alike. Each loss is minimised over all rows.

- distance: total variation to p+, mean over prompts.
- gradient: the largest norm of the gradient on the way, relative to the first.

Means over seeds with 95% intervals; medians of gradients.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from alignjax.losses import bco, ddro, kto, rdro, sft
from alignjax.types import Baseline, Loss
from tests.oracles.tabular import (
    Rows,
    labelled_rows,
    labelled_weights,
    minimise,
    mismatched_rows,
    preferences,
    total_variation,
)

FRACTIONS = {"1:9": 0.1, "1:3": 0.25, "1:1": 0.5, "3:1": 0.75, "9:1": 0.9}
KIND = preferences(temperature=1.0, cycle=2.0)


def methods(f: float) -> dict[str, tuple[Loss, Rows, Baseline | None]]:
    """Names the losses at a fraction of desirable rows."""
    rows, of_kto = labelled_rows(), mismatched_rows()
    good = min(1.0, (1 - f) / f)
    balanced = functools.partial(
        kto.loss, beta=0.1, desirable_weight=good, undesirable_weight=min(1.0, f / (1 - f))
    )
    return {
        "RDRO": (functools.partial(rdro.loss, desirable_fraction=f), rows, None),
        "RDRO, batch mean": (
            functools.partial(rdro.loss, desirable_fraction=f, reduction="batch_mean"),
            rows,
            None,
        ),
        "DDRO": (functools.partial(ddro.loss, desirable_fraction=f), rows, None),
        "DDRO, log-sigmoid": (
            functools.partial(ddro.loss_log_sigmoid, desirable_fraction=f),
            rows,
            None,
        ),
        "KTO, beta 0.1, balanced": (balanced, of_kto, kto.baseline),
        "BCO, beta 2": (
            functools.partial(bco.loss, beta=2.0, desirable_fraction=f),
            rows,
            functools.partial(bco.baseline, desirable_fraction=f),
        ),
        "SFT on the desirable": (sft.loss, rows, None),
    }


def draw(f: float, size: int, seeds: int) -> np.ndarray:
    """Draws how often every labelled response is in the data, ``[seeds, B]``."""
    share = labelled_weights(KIND.preferred, KIND.rejected, f)
    share = share / share.sum()
    counts = [np.random.default_rng((s, size)).multinomial(size, share) for s in range(seeds)]
    return np.stack(counts).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=10_000, help="labelled responses")
    args = parser.parse_args()
    seeds, t95 = 20, 2.093  # Student's t, 19 degrees of freedom
    desirable = np.asarray(labelled_rows().batch.desirable)[:, 0]
    cells: dict[str, list[str]] = {"the reference": []}
    for f in FRACTIONS.values():
        log_ref = np.log(f * KIND.preferred + (1 - f) * KIND.rejected)
        cells["the reference"].append(f"{total_variation(log_ref, KIND.preferred):.3f}")
        drawn = draw(f, args.size, seeds)
        for name, (loss, rows, baseline) in methods(f).items():
            weight = drawn * desirable if loss is sft.loss else drawn
            found, trace = minimise(loss, rows, weight, log_ref, baseline)
            distance = total_variation(found, KIND.preferred)
            half = t95 * distance.std(ddof=1) / np.sqrt(seeds)
            norms = trace["grad_norm"]
            largest = np.median(norms.max(axis=1) / norms[:, 0])
            cell = f"{distance.mean():.4f} ± {half:.4f} ({largest:.1f})"
            cells.setdefault(name, []).append(cell)
    print(f"desirable to undesirable, N = {args.size:,} | " + " | ".join(FRACTIONS))
    for name, row in cells.items():
        print(f"{name} | " + " | ".join(row))


if __name__ == "__main__":
    main()
