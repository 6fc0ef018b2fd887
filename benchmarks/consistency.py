"""Measures which losses lead to the preferred distribution, where everything can be enumerated.

    python benchmarks/consistency.py --out=runs/consistency

The policy is a table of logits, the reference the exact mixture alpha p+ + (1 - alpha) p-, and the
shipped loss is minimised over all N labelled responses (see `tests.oracles.tabular`). "TV" is the
total variation between the policy and p+, the mean over prompts. Prints tables; writes
``tabular.json``.
"""

import argparse
import json
import pathlib
import sys
from functools import partial
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax.losses import bco, ddro, dpo, kto, rdro, sft
from alignjax.testing import loss_inputs
from alignjax.types import Baseline, Batch, Logps, Loss
from tests.oracles.tabular import (
    Preferences,
    Rows,
    labelled_rows,
    labelled_weights,
    minimise,
    mismatched_rows,
    pair_rows,
    preferences,
    sample,
    total_variation,
)

KINDS = {
    "Bradley-Terry": preferences(temperature=1.0, cycle=0.0),
    "cyclic": preferences(temperature=1.0, cycle=2.0),
}
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SEEDS = 20
T95 = 2.093  # 97.5% quantile of Student's t with SEEDS - 1 degrees of freedom
BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
FRACTIONS = (0.2, 0.39, 0.5, 0.8)


def ratio_losses(fraction: float) -> dict[str, Loss]:
    """Lists the losses that fit a density ratio; alpha is the data's desirable fraction."""
    return {
        "RDRO": partial(rdro.loss, desirable_fraction=fraction),
        "DDRO": partial(ddro.loss, desirable_fraction=fraction),
        "DDRO, log-sigmoid": partial(ddro.loss_log_sigmoid, desirable_fraction=fraction),
    }


def reward_losses(beta: float) -> dict[str, tuple[Loss, Rows, Baseline | None]]:
    """Lists the losses with a beta, the rows they learn from, and their baselines."""
    bco_baseline = partial(bco.baseline, desirable_fraction=0.5)
    return {
        "KTO": (partial(kto.loss, beta=beta), mismatched_rows(), kto.baseline),
        "BCO": (
            partial(bco.loss, beta=beta, desirable_fraction=0.5),
            labelled_rows(),
            bco_baseline,
        ),
        "DPO": (partial(dpo.loss, beta=beta), pair_rows(), None),
    }


def consistency(kind: Preferences) -> dict[str, Any]:
    """Computes TV by N with the exact mixture as reference, at beta 0.1 and at the best beta."""
    log_ref = np.log(kind.q)
    drawn = {size: sample(kind.pairs, size, SEEDS) for size in SIZES}
    desirable = np.asarray(labelled_rows().batch.desirable)[:, 0]

    def tv(size: int, loss: Loss, rows: Rows, baseline: Baseline | None = None) -> list[float]:
        labelled, pairs = drawn[size]
        weight = pairs if len(rows.index) == pairs.shape[1] else labelled
        if loss is sft.loss:
            weight = labelled * desirable
        found, _ = minimise(loss, rows, weight, log_ref, baseline)
        return total_variation(found, kind.preferred).tolist()

    methods: dict[str, Any] = {
        name: (loss, labelled_rows())
        for name, loss in {**ratio_losses(0.5), "SFT on the preferred": sft.loss}.items()
    }
    by_beta: dict[str, dict[float, float]] = {}
    for name in reward_losses(0.1):
        largest = {b: float(np.mean(tv(SIZES[-1], *reward_losses(b)[name]))) for b in BETAS}
        by_beta[name] = largest
        for beta in dict.fromkeys((0.1, min(BETAS, key=largest.__getitem__))):
            methods[f"{name}, beta {beta:g}"] = reward_losses(beta)[name]
    runs = {name: [tv(size, *method) for size in SIZES] for name, method in methods.items()}
    return {
        "reference": float(total_variation(log_ref, kind.preferred)),
        "by_beta": by_beta,
        "runs": {
            name: {"tv": x, "slopes": [slope(np.array(x), i) for i in range(len(SIZES) - 1)]}
            for name, x in runs.items()
        },
    }


def slope(tv: np.ndarray, begin: int) -> dict[str, float]:
    """Fits the slope of log TV in log N from ``SIZES[begin]`` on, with a 95% t-interval over seeds.

    ``tv`` is ``[sizes, seeds]``.
    """
    each = np.polyfit(np.log(SIZES[begin:]), np.log(tv[begin:]), 1)[0]
    half = T95 * each.std(ddof=1) / np.sqrt(len(each))
    return {"mean": float(each.mean()), "half_width": float(half)}


def population(
    loss: Loss, preferred: np.ndarray, rejected: np.ndarray, fraction: float, log_ref: np.ndarray
) -> np.ndarray:
    """Finds ``[X, n]`` log-probabilities at the minimum for infinitely many labelled responses."""
    weight = labelled_weights(preferred, rejected, fraction)[None]
    return minimise(loss, labelled_rows(), weight, log_ref)[0][0]


def normalised(weight: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(weight / weight.sum(axis=-1, keepdims=True)))


def reductions(kind: Preferences) -> list[dict[str, float]]:
    """Compares class means with the mean over a mixed batch, f = alpha, at infinitely many rows.

    ``predicted`` is the normalised pointwise minimiser of the batch mean.
    """
    p, m = kind.preferred, kind.rejected
    out = []
    for f in FRACTIONS:
        ref = f * p + (1 - f) * m
        row = {"fraction": f, "reference": float(total_variation(np.log(ref), p))}
        for name in ("class_mean", "batch_mean"):
            loss = partial(rdro.loss, desirable_fraction=f, reduction=name)
            row[name] = float(total_variation(population(loss, p, m, f, np.log(ref)), p))
        ratio = f * p / (f * f * p + (1 - f) * (1 - f) * m)
        row["predicted"] = float(total_variation(normalised(ref * ratio), p))
        out.append(row)
    return out


def references(kind: Preferences) -> dict[str, dict[str, float]]:
    """Computes TV at infinitely many labelled responses when the reference is not the mixture.

    ``predicted``: the reference times p+ / (alpha p+ + (1 - alpha) p-), normalised.
    """
    p, m = kind.preferred, kind.rejected
    mixture = (p + m) / 2
    noise = np.random.default_rng(2).normal(size=p.shape)
    candidates = {
        "the mixture": mixture,
        "the mixture, 20% off at random": mixture * np.exp(0.2 * noise),
        "the preferred only": p,
        "the rejected only": m,
        "uniform": np.ones_like(p),
        "other data": preferences(temperature=1.0, cycle=0.0, seed=1).q,
    }
    log_ref = np.stack([normalised(weight) for weight in candidates.values()])
    weight = np.tile(labelled_weights(p, m, 0.5), (len(candidates), 1))
    methods: dict[str, Any] = {n: (loss, labelled_rows()) for n, loss in ratio_losses(0.5).items()}
    methods |= {f"{n}, beta 0.1": how for n, how in reward_losses(0.1).items() if n != "DPO"}
    columns = {"reference": total_variation(log_ref, p)}
    for name, (loss, rows, *baseline) in methods.items():
        found, _ = minimise(loss, rows, weight, log_ref, *baseline)
        columns[name] = total_variation(found, p)
    columns["predicted"] = total_variation(normalised(np.exp(log_ref) * p / mixture), p)
    return {
        where: {name: float(tv[i]) for name, tv in columns.items()}
        for i, where in enumerate(candidates)
    }


def fitted_on_the_same_rows(kind: Preferences) -> list[dict[str, float]]:
    """Fits RDRO when the reference is the maximum-likelihood fit to the same labelled rows."""
    out = []
    for size in SIZES:
        weight, _ = sample(kind.pairs, size, SEEDS)
        counts = weight.reshape(SEEDS, 2, *kind.q.shape) + 1e-9
        found, _ = minimise(
            ratio_losses(0.5)["RDRO"], labelled_rows(), weight, normalised(counts.sum(axis=1))
        )
        imitated = normalised(counts[:, 0])
        out.append(
            {
                "size": size,
                "RDRO": float(total_variation(found, kind.preferred).mean()),
                "SFT on the preferred": float(total_variation(imitated, kind.preferred).mean()),
                "largest difference": float(np.abs(np.exp(found) - np.exp(imitated)).max()),
            }
        )
    return out


def coefficients(fraction: float = 0.39) -> dict[str, Any]:
    """Computes the factor of grad log pi in a response's gradient, before class weights."""
    grid = np.linspace(-6, 6, 121)
    out: dict[str, Any] = {"fraction": fraction, "log_ratio": grid.tolist()}
    losses = {**ratio_losses(fraction), "KTO, beta 0.1": partial(kto.loss, beta=0.1)}
    for name, loss in losses.items():
        for label, share in ((True, fraction), (False, 1 - fraction)):
            case = loss_inputs(
                grid[:, None],
                np.zeros((len(grid), 1)),
                desirable=np.full((len(grid), 1), label),
                baseline=0.0,
            )
            found = _gradient(loss, *case) * (1.0 if loss.func is kto.loss else share)
            out[f"{name}, {'desirable' if label else 'undesirable'}"] = found.tolist()
    return out


def _gradient(loss: Loss, logps: Logps, batch: Batch) -> np.ndarray:
    """Computes ``[B]`` d loss / d log pi, K = 1."""
    total = jax.grad(lambda policy: loss(logps.replace(policy=policy), batch)[0].sum())
    return np.asarray(total(logps.policy))[:, 0]


def different_supports(size: int = 10_000) -> dict[str, dict[str, float]]:
    """Fits RDRO and DDRO where one third of the responses always wins, one third always loses.

    There p+ / p_ref is 1 / alpha, on the edge of what DDRO can represent; the reference is the
    mixture, or the mixture with noise, as a fitted one has.
    """
    kind = KINDS["cyclic"]
    only = np.arange(kind.q.shape[1]) // 8
    p, m = (np.where(only != side, x, 0.0) for side, x in ((1, kind.preferred), (2, kind.rejected)))
    p, m = (x / x.sum(axis=1, keepdims=True) for x in (p, m))
    mixture = (p + m) / 2
    noise = np.exp(0.2 * np.random.default_rng(2).normal(size=p.shape))
    flat = labelled_weights(p, m, 0.5)
    flat = flat / flat.sum()
    weight = np.stack(
        [np.random.default_rng((s, size)).multinomial(size, flat) for s in range(SEEDS)]
    ).astype(float)
    out = {}
    for where, ref in (("the mixture", mixture), ("20% off at random", mixture * noise)):
        log_ref = normalised(ref)
        for name, loss in ratio_losses(0.5).items():
            found, trace = minimise(loss, labelled_rows(), weight, log_ref)
            ratio = np.exp(found - log_ref)
            tv = total_variation(found, p)
            out[f"{name}, {where}"] = {
                "tv": float(tv.mean()),
                "tv_sd": float(tv.std(ddof=1)),
                "largest_gradient": float(np.median(trace["grad_norm"].max(axis=1))),
                "loss_last": float(np.median(trace["loss"][:, -1])),
                "largest_loss": float(np.median(trace["loss"].max(axis=1))),
                "largest_ratio": float(np.median(ratio.max(axis=(1, 2)))),
            }
    return out


def table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Prints one row per name; columns are the keys of the first row."""
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    print(f"\n{title}\n{'':<{width}} " + " ".join(f"{name:>20}" for name in columns))
    for name, row in rows.items():
        print(f"{name:<{width}} " + " ".join(f"{row[column]:>20.4g}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    jax.config.update("jax_enable_x64", True)
    cyclic = KINDS["cyclic"]
    found = {
        "sizes": SIZES,
        "seeds": SEEDS,
        "consistency": {name: consistency(kind) for name, kind in KINDS.items()},
        "reductions": reductions(preferences(temperature=0.5, cycle=1.0)),
        "references": references(cyclic),
        "fitted_on_the_same_rows": fitted_on_the_same_rows(cyclic),
        "different_supports": different_supports(),
        "coefficients": coefficients(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tabular.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, result in found["consistency"].items():
        sizes = [f"N = {size:,}" for size in SIZES]
        rows = {"the reference": dict.fromkeys(sizes, result["reference"])}
        slopes = {}
        for method, run in result["runs"].items():
            tv = np.array(run["tv"])
            rows[method] = dict(zip(sizes, tv.mean(axis=1).tolist(), strict=True))
            slopes[method] = {"sd at the largest": float(tv[-1].std(ddof=1))}
            for size, one in zip(SIZES, run["slopes"], strict=False):
                slopes[method] |= {
                    f"slope, {size:,} on": one["mean"],
                    f"± ({size:,})": one["half_width"],
                }
        table(f"TV to p+ by the number of labelled responses, {name}, {SEEDS} seeds", rows)
        table("their spread and slopes", slopes)
        betas = {
            method: {str(beta): x for beta, x in row.items()}
            for method, row in result["by_beta"].items()
        }
        table(f"the same at {SIZES[-1]:,}, by beta", betas)
    table("TV by reduction", {f"f = alpha = {row['fraction']}": row for row in found["reductions"]})
    table("TV by reference", found["references"])
    table(
        "reference fitted on the same rows",
        {f"N = {row.pop('size'):,}": row for row in found["fitted_on_the_same_rows"]},
    )
    table("supports that differ", found["different_supports"])


if __name__ == "__main__":
    main()
