"""Evaluates the error bounds of RDRO and DDRO, where everything can be enumerated.

    python benchmarks/papers/rdro_bounds.py            # half a minute of CPU time

Both papers bound the squared distance between the policy and p+ by a constant times the excess risk
of a density ratio, with Breg of f(t) = t log t - (1 + t) log(1 + t), f''(t) = 1 / (t (1 + t))::

    E_p+[(p - p+)^2] <= 2 / (alpha mu) E_ref[Breg(r* | r)]                     r = p / p_ref   RDRO
    E_p+[(p - p+)^2] <= 2 (1 - alpha)^2 / (alpha^2 m^2 mu) E_p+[Breg(g* | g)]  g = p- / p+     DDRO

where mu is the least f'' over the ratios, and m the least probability in p+. r* is at most 1 /
alpha, so mu of RDRO is at least alpha^2 / (1 + alpha); g* has no such limit. DDRO's bound also
holds without m: |p - p+| is p+ (1 - alpha) |g - g*| / (alpha + (1 - alpha) g), and p+ is at most 1.

The setting is that of `benchmarks/consistency.py`: 4 prompts with 24 responses each, tables of
logits, N labelled responses, the shipped losses minimised. Medians over 20
seeds of means over prompts.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np

from alignjax.losses import ddro, rdro
from tests.oracles.tabular import Preferences, labelled_rows, minimise, preferences, sample

ALPHA = 0.5
SIZES = (1_000, 10_000, 100_000)
RESPONSES = (24, 96, 384, 1536)


def breg(target: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Bregman divergence of ratios from their target, for f(t) = t log t - (1 + t) log(1 + t)."""
    return target * np.log(target / ratio) - (1 + target) * np.log((1 + target) / (1 + ratio))


def curvature(largest: np.ndarray) -> np.ndarray:
    """Least f'' up to the largest ratio: f''(t) = 1 / (t (1 + t)) falls in t."""
    return 1 / (largest * (1 + largest))


def constant_of_rdro(alpha: float) -> float:
    """Returns RDRO's constant, which no distribution changes."""
    return 2 / (alpha * alpha**2 / (1 + alpha))


def constant_of_ddro(alpha: float, curvature: np.ndarray, least: float = 1.0) -> np.ndarray:
    """Returns DDRO's constant; with ``least``, the least probability in p+, as it is printed."""
    return 2 * (1 - alpha) ** 2 / (alpha**2 * least**2 * curvature)


def measure(
    kind: Preferences, size: int, seeds: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (name, the squared distance, a bound of it) of the policies of both losses.

    Both are ``[seeds]``, means over prompts.
    """
    good, bad = kind.preferred, kind.rejected
    ref = ALPHA * good + (1 - ALPHA) * bad
    weight, _ = sample(kind.pairs, size, seeds)
    for name, loss in (("RDRO", rdro.loss), ("DDRO", ddro.loss)):
        found, _ = minimise(
            partial(loss, desirable_fraction=ALPHA), labelled_rows(), weight, np.log(ref)
        )
        policy = np.exp(found.astype(np.float64))
        distance = (good * (policy - good) ** 2).sum(-1).mean(-1)
        if name == "RDRO":
            risk = (ref * breg(good / ref, policy / ref)).sum(-1).mean(-1)
            yield name, distance, constant_of_rdro(ALPHA) * risk
            continue
        target = bad / good
        g = np.maximum((ref / policy - ALPHA) / (1 - ALPHA), ddro.CLAMP)
        risk = (good * breg(target, g)).sum(-1).mean(-1)
        least = curvature(np.maximum(g.max((-1, -2)), target.max()))
        yield f"{name}, as printed", distance, constant_of_ddro(ALPHA, least, good.min()) * risk
        yield f"{name}, without m", distance, constant_of_ddro(ALPHA, least) * risk


def many(responses: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws p+ and p- over so many responses: random texts and scores, Bradley-Terry."""
    rng = np.random.default_rng((seed, responses))
    q = np.exp(rng.normal(size=responses))
    q, score = q / q.sum(), rng.normal(size=responses)
    beats = 1 / (1 + np.exp(score[None] - score[:, None]))
    good = 2 * q * (beats @ q)
    return good, 2 * q - good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    print("Preferences | labelled | bound | squared distance | bound of it | times the distance")
    for name, cycle in (("Bradley-Terry", 0.0), ("cyclic", 2.0)):
        kind = preferences(temperature=1.0, cycle=cycle)
        for size in SIZES:
            for bound, distance, limit in measure(kind, size, args.seeds):
                assert (limit >= distance).all()
                middle = (np.median(x) for x in (distance, limit, limit / distance))
                numbers = " | ".join(f"{x:.1e}" for x in middle)
                print(f"{name} | {size:,} | {bound} | {numbers}")
    print("\nResponses | RDRO | DDRO, as printed | DDRO, without m (medians over seeds)")
    for responses in RESPONSES:
        rows = []
        for seed in range(args.seeds):
            good, bad = many(responses, seed)
            least = curvature((bad / good).max())
            printed = constant_of_ddro(ALPHA, least, good.min())
            rows.append((constant_of_rdro(ALPHA), printed, constant_of_ddro(ALPHA, least)))
        print(f"{responses:,} | " + " | ".join(f"{x:,.3g}" for x in np.median(rows, axis=0)))


if __name__ == "__main__":
    main()
