"""Compiles the four methods at 1.5B, 8B and 70B for TPU slices, without TPUs: do they fit?

    pip install -c requirements.txt -e ".[tpu]"
    python benchmarks/pods_table.py                        # 25 compiles of 10 to 230 s
    python benchmarks/pods_table.py --only=rdro,8b --out=rdro.jsonl

Prints one line of Markdown for each program, with the numbers of the verb ``plan``: per chip and
step memory, FLOPs, bytes; the range of its time from published peaks (everything overlaps, nothing
does); what a million tokens cost at `PRICES`. `RUNS` says on which mesh, and what is changed in the
config because the mesh splits the rows over more devices than the paper's machines.
"""

import argparse
import json
import os
import pathlib
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax.config import load
from alignjax.planning import plan
from alignjax.planning.chips import GIB

PRICES = {"v5p": 4.2, "v5e": 1.2}  # dollars per chip and hour: examples
SMALL, V5P, V5E, LARGE = "v5e:2x4", "v5p:2x2x4", "v5e:16x16", "v5p:8x8x8"


def at_once(tokens: int) -> tuple[str, ...]:
    return (f"train.microbatch_tokens={tokens}",)


ROUNDS = (*at_once(768), "recipe.game.train.microbatch_tokens=1536")  # a row of each player


def sampled(rows: int) -> tuple[str, ...]:
    return (f"evaluate.batch_size={rows}",)


def listed(rows: int) -> tuple[str, ...]:
    return (f"candidates.batch_size={rows}", *sampled(rows))


RUNS: tuple[tuple[str, str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    # config, topology, mesh, changes, parts
    ("hps:1.5b", SMALL, "fsdp=8", at_once(3072) + listed(8), ("step", "sample")),
    ("apo:1.5b", SMALL, "fsdp=8", ROUNDS, ("step", "reward", "sample")),
    ("rdro:1.5b", SMALL, "fsdp=8", at_once(2048), ("step",)),
    ("paretohqd:1.5b", SMALL, "fsdp=8", (), ("step",)),
    ("hps:8b", V5P, "fsdp=16", listed(16), ("step", "sample", "score")),
    ("apo:8b", V5P, "fsdp=16", ROUNDS, ("step", "reward", "sample")),
    ("rdro:8b", V5P, "fsdp=16", at_once(2048), ("step",)),
    ("paretohqd:8b", V5P, "fsdp=8,tensor=2", (), ("step",)),
    ("hps:8b", V5E, "fsdp=64,tensor=4", listed(64), ("step",)),
    ("apo:8b", V5E, "fsdp=64,tensor=4", ROUNDS, ("step", "reward")),
    ("rdro:8b", V5E, "fsdp=64,tensor=4", at_once(1024) + sampled(64), ("step",)),
    (
        "paretohqd:8b",
        V5E,
        "fsdp=64,tensor=4",
        ("train.batch_size=64", *sampled(64)),
        ("step",),
    ),
    ("hps:70b", LARGE, "fsdp=64,tensor=8", listed(64), ("step",)),
    ("apo:70b", LARGE, "fsdp=64,tensor=8", ROUNDS, ("step", "reward")),
    ("rdro:70b", LARGE, "fsdp=64,tensor=8", at_once(1024) + sampled(64), ("step",)),
    (
        "paretohqd:70b",
        LARGE,
        "fsdp=64,tensor=8",
        ("train.batch_size=64", *sampled(64)),
        ("step",),
    ),
)
COLUMNS = (
    "config, program",
    "chips",
    "data x fsdp x tensor",
    "rows x parts",
    "HBM, GiB",
    "PFLOPs",
    "HBM traffic, GiB",
    "sent, GiB",
    "s",
    "tokens/s",
    "$ per million tokens",
)


def cells(one: dict[str, Any]) -> list[str]:
    """Formats the cells of one program, from the mesh on."""
    found, took = one["measured"], one["seconds"]
    mesh = " x ".join(str(n) for n in one["mesh"].values())
    sent = sum(kind["sent"] for kind in found["collectives"].values())
    low, high = one["tokens_per_second"]
    cheap, dear = one["dollars_per_million_tokens"]
    rows = f"{one['batch_size']} x {one['parts']}" if "step" in one["name"] else ""
    return [
        mesh,
        rows,
        f"{found['total'] / GIB:.1f} of {found['limit'] / GIB:.0f}",
        f"{found['flops'] / 1e15:.3f}",
        f"{found['moved'] / GIB:,.0f}",
        f"{sent / GIB:,.1f}",
        f"{took['estimate']:.2f} to {took['at_most']:.2f}",
        f"{low / 1e3:,.0f} to {high / 1e3:,.0f} thousand",
        f"{cheap:.2f} to {dear:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="parts of names, all of which a line has")
    parser.add_argument("--out", default="", help="JSON lines, with all numbers of plan")
    args = parser.parse_args()
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name, topology, mesh, changes, parts in RUNS:
        if not all(x in f"{name} {topology}" for x in args.only.split(",")):
            continue
        method, size = name.split(":")
        config = load.load(f"configs/{method}.py:{size}", list(changes))
        price = PRICES[topology.partition(":")[0]]
        told = plan.run(config, topology, mesh=mesh, parts=parts, price=price)
        for one in told["plans"]:
            program = one["name"].removeprefix("the ")
            if one["measured"]["fits"]:
                lines.append(f"| {' | '.join([f'{name}, {program}', topology, *cells(one)])} |")
            else:
                lines.append(f"| {name}, {program} | {topology} | {mesh} | does not fit |")
            if args.out:
                with open(args.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"config": name, "topology": topology, **one}) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
