"""Measures HPS's Table 2 and its ablation of n at small scale: pair losses under BT, PL and HPS.

    python benchmarks/hps_table.py --data=world --out=runs/hps_table
    python benchmarks/hps_table.py --data=lists --path=/data/bon16.jsonl.gz --out=runs/hps_table
    python benchmarks/hps_table.py --data=world --methods=dpo --preferences=bt,hps --n=2,4,8,16 \
        --out=runs/hps_table
    python benchmarks/hps_table.py --data=world --report --out=runs/hps_table

A cell is a whole run of `configs/demo/hps.py` or `configs/hps_lists.py` with another ``loss`` and
``select``, in a folder of its own. A finished cell is not run again. The cells of one seed and n
begin with the same reference and the same lists, which are made once and copied. One row is one
choice of ``--methods`` and ``--preferences``. Means and standard deviations are over seeds; a seed
changes the split, the initial weights, the reference, the sampled lists and the draws.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import statistics
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax.config import Config, load
from alignjax.evaluation import history
from alignjax.losses import bradley_terry, dpo, exo, hps, ipo, nca, plackett_luce, sppo
from alignjax.recipes import align
from alignjax.runtime import metrics

ROOT = pathlib.Path(__file__).parent.parent
PAIR = {"dpo": dpo.loss, "exo": exo.loss, "ipo": ipo.loss, "sppo": sppo.loss, "nca": nca.loss}
LIST = {
    "dpo": plackett_luce.loss,
    "exo": exo.loss_list,
    "ipo": ipo.loss_list,
    "sppo": sppo.loss_list,
    "nca": nca.loss_list,
}
CONFIGS = {"world": "demo/hps.py", "lists": "hps_lists.py"}
# Best and worst; the whole list; best and drawn. The last two are of DPO alone: with the N of
# Equation 8, and besides with gamma per unit of the scores themselves.
PREFERENCES = ("bt", "pl", "hps", "hps-n", "hps-n-raw")
BETA = 0.1
SHARED = ("sft", "tokenizer.model", "candidates", "before.json")  # made by a seed's first cell
# Columns of the table, by their names in summary.json; it holds more.
COLUMNS = {
    "bleu": "BLEU",
    "bleu_char": "BLEU, characters",
    "true_score": "true score",
    "best/true_score": "of the best",
    "RM_DPO": "RM_DPO",
    "RM_R-DPO": "RM_R-DPO",
    "rewards/accuracies": "accuracy",
    "KL to reference, nats": "KL",
}
AT_KL = ("RM_DPO", "true_score")
# Of the last line of metrics.jsonl, which averages over steps of gamma's last part.
LAST = {
    "negatives/effective": "effective negatives, last part",
    "negatives/p_hardest": "P(hardest), last part",
}
STEPS = 48
# Shorter than the configs, for 45 cells: one pass over the lists, at twice the learning rate.
CHANGES = [
    *(f"train.steps={STEPS}", "train.eval_every=24", "optim.learning_rate=2e-4"),
    *("evaluate.prompts=48", "evaluate.samples=4", "evaluate.during=8"),
]
# A list of 11 costs Plackett-Luce eleven responses a prompt.
ONLY = {
    "world": [],
    "lists": [
        *("train.batch_size=8", "data.max_response_tokens=48", "evaluate.max_new_tokens=48"),
    ],
}


def cell(data: str, path: str, method: str, preference: str, seed: int, n: int) -> Config:
    """Makes the config of one cell; n = 0 keeps the config's number of responses."""
    changes = [f"train.seed={seed}", *CHANGES, *ONLY[data]]
    if path:
        changes.append(f"data.path={path}")
    if n:
        changes.append(f"candidates.samples={n}")
    config = load.load(str(ROOT / "configs" / CONFIGS[data]), changes)
    if preference == "pl":
        loss, select = functools.partial(LIST[method], beta=BETA), None
    elif preference == "bt":
        loss, select = functools.partial(PAIR[method], beta=BETA), bradley_terry.select
    else:
        pair = PAIR[method] if preference == "hps" else hps.loss
        unit = 1.0 if preference == "hps-n-raw" else None
        gamma: Any = hps.curriculum()
        loss, select = (
            functools.partial(pair, beta=BETA),
            functools.partial(hps.select, gamma=gamma, score_sd=unit),
        )
    return dataclasses.replace(config, loss=loss, select=select)


def copy(names: tuple[str, ...], source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies files and folders that exist and are not yet in the target."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            how = shutil.copytree if (source / name).is_dir() else shutil.copy
            how(source / name, target / name)


def run(config: Config, folder: pathlib.Path, shared: pathlib.Path) -> None:
    """Runs a cell unless it has finished; cells of a seed share their reference and lists."""
    if (folder / "summary.json").is_file():
        return
    copy(SHARED, shared, folder)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, cache_dir=str(shared / "cache"))
    )
    align.run(config, folder)
    copy(SHARED, folder, shared)


def numbers(folder: pathlib.Path, kl: float) -> dict[str, float]:
    """Reads one cell's numbers by column; empty if it has not finished."""
    file = folder / "summary.json"
    if not file.is_file():
        return {}
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["table"]
    found = {
        title: table[name]["after"]["mean"] for name, title in COLUMNS.items() if name in table
    }
    along = history.points(folder)
    for name in AT_KL:
        value = history.at_kl(along, name, kl)
        if value is not None:
            found[f"{COLUMNS[name]} at KL {kl:g}"] = value
    for line in metrics.read(folder / "metrics.jsonl"):
        found |= {title: line[name] for name, title in LAST.items() if name in line}
    return found


def tabulate(folders: dict[str, list[pathlib.Path]], kl: float) -> str:
    """Makes a Markdown table: a row per cell, a column per metric, mean ± sd over seeds."""
    rows: dict[str, dict[str, str]] = {}
    for row, seeds in folders.items():
        found: dict[str, list[float]] = {}
        for folder in seeds:
            for name, value in numbers(folder, kl).items():
                found.setdefault(name, []).append(value)
        most = max((len(x) for x in found.values()), default=0)
        rows[row] = {"seeds": str(most)}
        for name, x in found.items():
            spread = f" ± {statistics.stdev(x):.3f}" if len(x) > 1 else ""
            few = f" ({len(x)} of {most})" if len(x) < most else ""
            rows[row][name] = f"{statistics.mean(x):.3f}{spread}{few}"
    names = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row, cells in rows.items():
        lines.append(f"| {row} | " + " | ".join(cells.get(name, "-") for name in names) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", choices=("world", "lists"), required=True)
    parser.add_argument("--path", default="", help="the file of --data=lists")
    parser.add_argument("--out", required=True)
    parser.add_argument("--methods", default=",".join(PAIR))
    parser.add_argument("--preferences", default=",".join(PREFERENCES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--n", default="0", help="responses per prompt; 0: as in the config")
    parser.add_argument("--kl", type=float, default=1.0, help="KL at which runs are compared, nats")
    parser.add_argument("--report", action="store_true", help="only tabulate what is there")
    args = parser.parse_args()
    for name, known in (("methods", PAIR), ("preferences", PREFERENCES)):
        for value in getattr(args, name).split(","):
            if value not in known:
                parser.error(f"--{name}: wanted some of {','.join(known)}, found {value}")
    out = pathlib.Path(args.out) / args.data
    seeds = [int(x) for x in args.seeds.split(",")]
    sizes = [int(x) for x in args.n.split(",")]
    folders: dict[str, list[pathlib.Path]] = {}
    for n, method, preference in itertools.product(
        sizes, args.methods.split(","), args.preferences.split(",")
    ):
        if preference.startswith("hps-") and method != "dpo":
            continue
        name = f"{method}-{preference}" + (f"-n{n}" if n else "")
        folders[name.upper()] = [out / f"{name}-seed{seed}" for seed in seeds]
        if args.report:
            continue
        for seed, folder in zip(seeds, folders[name.upper()], strict=True):
            shared = out / f"shared-seed{seed}"
            if n:  # lists of its own, from the same reference
                copy(SHARED[:2], shared, out / f"shared-n{n}-seed{seed}")
                shared = out / f"shared-n{n}-seed{seed}"
            run(cell(args.data, args.path, method, preference, seed, n), folder, shared)
    print(tabulate(folders, args.kl))


if __name__ == "__main__":
    main()
