"""Measures how the demo spreads over seeds and instruction sets: whether its settings have margin.

    python benchmarks/demo_seeds.py --out=runs/demo_seeds
    python benchmarks/demo_seeds.py --out=runs/demo_seeds --seeds=0,1 --isa=AVX2
    python benchmarks/demo_seeds.py --out=runs/beta --seeds=0 --set loss.beta=0.1
    python benchmarks/demo_seeds.py --out=runs/demo_seeds --report

A run is `configs/demo/dpo.py` in a folder of its own. Its seed changes the world's pairs, the
split, the initial weights, the order of the rows and every draw; with other instructions XLA rounds
differently, as on another CPU. A finished run is not run again; a killed one resumes. The table has
the change of the same prompts' samples, with its 95% interval over prompts, and says which runs
hold: a gain whose interval is above 0, well-formed not lower by more than 2 points, a KL under 3
nats. Give other settings a folder of their own.
"""

import argparse
import json
import os
import pathlib
import statistics as spread
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

from alignjax.evaluation import statistics
from alignjax.evaluation.statistics import Interval
from alignjax.world import sources as world

ROOT = pathlib.Path(__file__).parent.parent
WIDEST = "widest"  # all instructions that the CPU has
KL = "KL to reference, nats"


def run(folder: pathlib.Path, seed: int, isa: str, changes: Sequence[str]) -> None:
    """Runs the demo with a seed, in a process of its own, unless that has ended."""
    if (folder / "summary.json").is_file():
        return
    sets = [f"train.seed={seed}", f"data.source.seed={seed}", *changes]
    command = [sys.executable, "-m", "alignjax", "run", "--config=configs/demo/dpo.py"]
    command += [f"--workdir={folder.resolve()}", *(f"--set={x}" for x in sets)]
    flags = os.environ.get("XLA_FLAGS", "")
    if isa != WIDEST:
        flags = f"{flags} --xla_cpu_max_isa={isa}".strip()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags})
    if done.returncode:
        sys.exit(done.returncode)


def changes_of(folder: pathlib.Path) -> dict[str, tuple[float, float, Interval]]:
    """Means before and after of what the world says of the samples, and the change."""
    sides = []
    for name in ("before", "after"):
        found = json.loads((folder / f"{name}.json").read_text("utf-8"))["samples"]
        sides.append([(x["prompt"], x["response"]) for x in found])
    prompts = [prompt for prompt, _ in sides[0]]
    if prompts != [prompt for prompt, _ in sides[1]]:
        raise SystemExit(f"{folder}: before.json and after.json are not of the same prompts")
    scores = [[world.judge(*sample) for sample in side] for side in sides]
    out = {}
    for name in ("true_score", "well_formed"):
        before, after = (np.array([x[name] for x in side], float) for side in scores)
        change = statistics.mean_over_prompts(after - before, prompts)
        out[name] = (float(before.mean()), float(after.mean()), change)
    return out


def rows(out: pathlib.Path, seeds: Sequence[int], isas: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Reads the runs that have ended."""
    for isa in isas:
        for seed in seeds:
            folder = out / f"{isa}-{seed}"
            if (folder / "summary.json").is_file():
                table = json.loads((folder / "summary.json").read_text("utf-8"))["table"]
                yield {"isa": isa, "seed": seed, "kl": table[KL]["after"]["mean"]} | changes_of(
                    folder
                )


def holds(row: dict[str, Any]) -> bool:
    """Whether a run is as the docstring above wants it."""
    gain, formed = row["true_score"][2], row["well_formed"][2]
    return bool(gain.low > 0 and formed.mean >= -0.02 and row["kl"] < 3)


def tabulate(found: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table, a line for each run and one of the means."""
    lines = [
        "| instructions | seed | true score | gain | well-formed | change | KL, nats | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [
            f"{before:.3f} -> {after:.3f} | {change.mean:+.3f} ± {change.half_width:.3f}"
            for before, after, change in (row["true_score"], row["well_formed"])
        ]
        verdict = "yes" if holds(row) else "NO"
        lines.append(
            f"| {row['isa']} | {row['seed']} | {' | '.join(cells)} | {row['kl']:.2f} | {verdict} |"
        )
    for isa in dict.fromkeys(row["isa"] for row in found):
        mine = [row for row in found if row["isa"] == isa]
        gains, formed = ([x[n][2].mean for x in mine] for n in ("true_score", "well_formed"))
        lines.append(
            f"{isa}, {len(mine)} seeds: gain {of(gains)}, well-formed {of(formed)}, KL "
            f"{of([x['kl'] for x in mine])}; {sum(map(holds, mine))} of {len(mine)} hold"
        )
    return "\n".join(lines)


def of(values: Sequence[float]) -> str:
    """Formats mean, and lowest to highest."""
    return f"{spread.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--isa", default=f"{WIDEST},AVX2", help="as XLA names them, with commas")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of the config")
    parser.add_argument("--report", action="store_true", help="only tabulate what is there")
    args = parser.parse_args()
    out, isas = pathlib.Path(args.out), args.isa.split(",")
    seeds = [int(x) for x in args.seeds.split(",")]
    for seed in [] if args.report else seeds:
        for isa in isas:
            run(out / f"{isa}-{seed}", seed, isa, args.set)
    print(tabulate(list(rows(out, seeds, isas))))


if __name__ == "__main__":
    main()
