"""Measures every loss in the embedded world: true score, KL and length, at its best setting.

    python benchmarks/losses_table.py --out=runs/losses --losses=dpo.loss,simpo.loss --seeds=0
    python benchmarks/losses_table.py --out=runs/losses --minutes=4
    python benchmarks/losses_table.py --out=runs/losses --report

A cell is a loss, one of three settings and a seed: a whole run, small, in a folder of its own. A
finished cell is not run again and a killed one resumes; ``--minutes`` starts no cell after so many.
The cells of a seed and a kind of data (pairs, lists, labelled responses) begin with one reference.
The settings are 1/3, 1 and 3 times the loss's own ``beta``; of a loss without one, times the
learning rate. A seed changes the split, the initial weights, the reference and the order of rows.
``--report`` writes what is there, unfinished losses too, to docs/losses_table.json, which
`benchmarks/losses_page.py` puts into docs/losses.md. Of a loss the setting of the largest mean true
score is shown: the best of so many settings on the same prompts, so a little too good.
"""

import argparse
import dataclasses
import functools
import importlib
import inspect
import itertools
import json
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax.config import Config, load
from alignjax.losses import bco, hps, kto
from alignjax.recipes import align
from alignjax.world import sources as world

ROOT = pathlib.Path(__file__).parent.parent
TABLE = ROOT / "docs" / "losses_table.json"
# What each loss learns from. Left out are losses of several objectives, of reward models, and
# of golden answers or of samples that the policy draws as it trains: pages of their own have them.
LOSSES = {
    "pairs": """
        dpo.loss ipo.loss ipo.loss_mean exo.loss nca.loss sppo.loss simpo.loss rdpo.loss f_dpo.loss
        robust_dpo.loss slic.loss slic.loss_hinge cpo.loss cpo.loss_simpo orpo.loss rpo.loss
        mixed.loss aot.loss aot.loss_unpaired discopop.loss anchored.loss anchored.loss_down
        alphapo.loss bco.loss_pairs bpo.loss ld_dpo.loss wpo.loss sft.loss_chosen
        """,
    "lists": """
        bradley_terry.loss plackett_luce.loss plackett_luce.loss_top1 robust_plackett_luce.loss
        hps.loss_full hps.loss_two_valid ipo.loss_list exo.loss_list nca.loss_list nca.loss_info
        sppo.loss_list lipo.loss rrhf.loss pro.loss tpo.loss ddo_rm.loss
        """,
    "labels": """
        rdro.loss ddro.loss ddro.loss_log_sigmoid kto.loss bco.loss anchored.loss_unpaired
        """,
}
KIND = {name: kind for kind, names in LOSSES.items() for name in names.split()}
SOURCES = {
    "pairs": functools.partial(world.pairs, size=3000, seed=0, temperature=0.1),
    "lists": functools.partial(world.lists, size=1500, seed=0, responses=4),
    "labels": functools.partial(world.unpaired, size=3000, seed=0),
}
SETTINGS = (1 / 3, 1.0, 3.0)
# Smaller and shorter than `configs/demo/dpo.py`, for hundreds of cells.
CHANGES = [
    *("model.width=96", "model.head_dim=24", "model.mlp_width=256", "data.buckets=1"),
    *("data.max_response_tokens=48", "evaluate.max_new_tokens=48", "data.eval_fraction=0.1"),
    *("sft.steps=250", "train.steps=48", "train.batch_size=16", "train.eval_every=0"),
    *("optim.learning_rate=2e-4", "evaluate.prompts=64", "evaluate.samples=2"),
    *("evaluate.during=0", "sft.truth=None", "train.save_every=1000"),
]
SHARED = ("sft", "tokenizer.model", "before.json")  # made by the first cell of a seed and kind
COLUMNS = {
    "true_score": "true score",
    "KL to reference, nats": "KL",
    "response tokens": "tokens",
}


def function(name: str) -> Callable[..., Any]:
    """Finds a loss by ``file.function``."""
    file, _, loss = name.partition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"alignjax.losses.{file}"), loss)
    return found


def cell(name: str, setting: float, seed: int) -> Config:
    """Makes the config of one cell."""
    config = load.load(str(ROOT / "configs" / "demo" / "dpo.py"), [*CHANGES, f"train.seed={seed}"])
    loss, rate = function(name), config.optim.learning_rate
    beta = inspect.signature(loss).parameters.get("beta")
    if beta is not None:
        loss = functools.partial(loss, beta=beta.default * setting)
    else:
        rate *= setting
    more: dict[str, Any] = {}
    if name == "kto.loss":
        more = {"select": kto.select, "baseline": kto.baseline}
    if name == "bco.loss":
        more = {"baseline": bco.baseline}
    if name.startswith("hps.") and "gamma" in inspect.signature(function(name)).parameters:
        loss = functools.partial(loss, gamma=hps.curriculum())
    return dataclasses.replace(
        config,
        loss=loss,
        data=dataclasses.replace(config.data, source=SOURCES[KIND[name]]),
        optim=dataclasses.replace(config.optim, learning_rate=rate),
        **more,
    )


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies what cells share and the target has not."""
    target.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (source / name).exists() and not (target / name).exists():
            how = shutil.copytree if (source / name).is_dir() else shutil.copy
            how(source / name, target / name)


def run(config: Config, folder: pathlib.Path, shared: pathlib.Path) -> None:
    """Runs a cell unless it has finished, and keeps of it only its numbers."""
    if (folder / "summary.json").is_file():
        return
    copy(shared, folder)
    data = dataclasses.replace(config.data, cache_dir=str(shared / "cache"))
    align.run(dataclasses.replace(config, data=data), folder)
    copy(folder, shared)
    for part in ("checkpoints", "cache", "sft"):
        shutil.rmtree(folder / part, ignore_errors=True)


def numbers(folder: pathlib.Path) -> dict[str, float]:
    """Reads a cell's numbers, and those before alignment; empty if it has not finished."""
    file = folder / "summary.json"
    if not file.is_file():
        return {}
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["table"]
    after = {title: table[name]["after"]["mean"] for name, title in COLUMNS.items()}
    return after | {"score before": table["true_score"]["before"]["mean"]}


def report(out: pathlib.Path) -> dict[str, Any]:
    """Collects every loss's best setting: means over seeds, and their standard deviations."""
    rows = {}
    for name in KIND:
        best: dict[str, Any] = {}
        tried = 0
        for setting in SETTINGS:
            folders = out.glob(f"{name}-{setting:.2f}-seed*")
            found = [x for x in map(numbers, sorted(folders)) if x]
            if not found:
                continue
            tried += 1
            columns = {c: [x[c] for x in found] for c in found[0]}
            row = {
                c: [statistics.mean(v), *([statistics.stdev(v)] if len(v) > 1 else [])]
                for c, v in columns.items()
            }
            row |= {"setting": setting, "seeds": len(found)}
            if not best or row["true score"][0] > best["true score"][0]:
                best = row
        if best:
            rows[name] = best | {"settings": tried, "kind": KIND[name]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--losses", default=",".join(KIND), help="file.function, by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--settings", default="0,1,2", help="which of 1/3, 1 and 3, from 0")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after so many")
    parser.add_argument("--report", action="store_true", help="only collect what is there")
    args = parser.parse_args()
    names = args.losses.split(",")
    for name in names:
        if name not in KIND:
            parser.error(f"--losses: wanted some of {','.join(KIND)}, found {name}")
    out, begun = pathlib.Path(args.out), time.monotonic()
    chosen = [SETTINGS[int(i)] for i in args.settings.split(",")]
    if not args.report:
        for seed, setting, name in itertools.product(args.seeds.split(","), chosen, names):
            if time.monotonic() - begun > 60 * args.minutes:
                break
            folder = out / f"{name}-{setting:.2f}-seed{seed}"
            run(cell(name, setting, int(seed)), folder, out / f"shared-{KIND[name]}-seed{seed}")
    TABLE.write_text(json.dumps(report(out), indent=1) + "\n", encoding="utf-8")
    print(f"{TABLE}: {len(report(out))} losses")


if __name__ == "__main__":
    main()
