"""Draws the pictures of docs/papers/rdro.md from what the two consistency benchmarks wrote.

python benchmarks/consistency_plots.py --out=runs/consistency --pictures=docs/images
"""

import argparse
import json
import pathlib
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1}


def consistency(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draws TV by the number of labelled responses, for both kinds of preferences."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
    for axis, (kind, result) in zip(axes, found["consistency"].items(), strict=True):
        for name, run in result["runs"].items():
            tv = np.array(run["tv"])
            style = "-" if name in ("RDRO", "DDRO") else "--"
            axis.plot(found["sizes"], tv.mean(axis=1), style, marker=".", label=name)
        axis.axhline(result["reference"], color="grey", lw=0.8, ls=":", label="the reference")
        axis.set(xscale="log", yscale="log", xlabel="labelled responses N", title=kind)
    axes[0].set_ylabel("total variation to p+")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def weighting(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the two reductions (left) and gradient coefficients before class weights (right)."""
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8))
    fraction = [row["fraction"] for row in found["reductions"]]
    for name, style in (("class_mean", "o-"), ("batch_mean", "s--"), ("reference", ":")):
        axes[0].plot(fraction, [row[name] for row in found["reductions"]], style, label=name)
    axes[0].set(
        xlabel="desirable fraction = alpha", ylabel="total variation to p+", title="reductions"
    )
    axes[0].legend(frameon=False)
    data = found["coefficients"]
    grid = data["log_ratio"]
    for name, color in (("RDRO", "C0"), ("DDRO", "C1"), ("KTO, beta 0.1", "C2")):
        for label, style in (("desirable", "-"), ("undesirable", "--")):
            axes[1].plot(
                grid, data[f"{name}, {label}"], style, color=color, label=f"{name}, {label}"
            )
    axes[1].axvline(-np.log(data["fraction"]), color="grey", lw=0.8, ls=":")
    axes[1].set(
        ylim=(-1.6, 2.2), xlabel="log-ratio T", title=f"d loss / d log pi, alpha {data['fraction']}"
    )
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, path)


def traces(found: dict[str, Any], path: pathlib.Path) -> None:
    """Draws gradient norm and mean log-ratio of each class during training, first seed."""
    methods = ("RDRO", "DDRO", "KTO, beta 0.1", "DPO, beta 0.1, rate 1e-4")
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.6))
    for color, method in zip(("C0", "C1", "C2", "C3"), methods, strict=True):
        data = next(x["traces"] for key, x in found.items() if key.split("/")[0] == method)
        axes[0].plot(data["step"], data["grad_norm"], color=color, label=method)
        axes[1].plot(data["step"], data["preferred"], color=color)
        axes[2].plot(data["step"], data["rejected"], color=color)
    titles = ("gradient norm", "mean log-ratio, preferred", "mean log-ratio, rejected")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="step")
    axes[0].set_yscale("log")
    for axis in axes[1:]:
        axis.set_yscale("symlog", linthresh=0.1)
    axes[2].legend(*axes[0].get_legend_handles_labels(), fontsize=6, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where the numbers are")
    parser.add_argument("--pictures", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    tabular, world = (
        json.loads((arguments.out / name).read_text(encoding="utf-8"))
        for name in ("tabular.json", "world.json")
    )
    with plt.rc_context(STYLE):
        consistency(tabular, arguments.pictures / "rdro_consistency.png")
        weighting(tabular, arguments.pictures / "rdro_weighting.png")
        traces(world, arguments.pictures / "rdro_traces.png")


if __name__ == "__main__":
    main()
