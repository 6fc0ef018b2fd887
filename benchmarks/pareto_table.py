"""Compares ParetoHqD and its baselines on the embedded world or on human ratings, in one table.

    python benchmarks/pareto_table.py --out=runs/pareto_table
    python benchmarks/pareto_table.py --out=runs/pareto_table --cells='*-seed0,2-convex/*-seed2'
    python benchmarks/pareto_table.py --out=runs/pareto_table --report
    python benchmarks/pareto_table.py --out=runs/pareto_table --methods='ParetoHqD,one stage'
    python benchmarks/pareto_table.py --out=runs/pareto_table --cases=ratings --path=sfres.json

A cell is a whole run of one method, case and seed in a folder of its own: a finished cell is not
run again, a killed one resumes. ``--cells`` takes patterns of CASE/METHOD-seedN, to split the table
over processes: the cells of one seed and trade-off begin with the same supervised policy, made by
the first of them, and belong into one process. The sizes below give every method about the same
device time, which the table reports as measured; soups and MOD share their experts.

Numbers are means and standard deviations over seeds; a seed changes the split, the initial weights,
the supervised policy and every draw. Hypervolumes are shares of two boxes: the world's own scale,
0 to 1 in each objective, and the smallest box around all methods' points of a case and seed. The
half-width of the 95% interval over held-out prompts (bootstrap) stands in brackets, seeds' mean.

``ratings`` is the real file, UniEval's sfres.json: sentences by meaning representation, rated by
people (`configs/paretohqd_unieval.py`). No rating exists of what a policy samples, so a reward
model with an output per objective is fitted to the ratings first, one per seed, and scores
everything: what is trained on and what is measured. A front is as good as that model, whose
held-out accuracy is in its summary.json.
"""

import argparse
import dataclasses
import fnmatch
import functools
import itertools
import json
import pathlib
import shutil
import statistics
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax import recipes
from alignjax.commands import front as comparing
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
    load,
)
from alignjax.config.validate import get
from alignjax.evaluation import fronts, pareto
from alignjax.losses import apo, grpo, modpo, paretohqd, rewards_in_context, sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import mod, morlhf, soups, supervised
from alignjax.recipes.multi_objective import modpo as modpo_recipe
from alignjax.recipes.multi_objective import paretohqd as paretohqd_recipe
from alignjax.recipes.multi_objective import rewards_in_context as ric_recipe
from alignjax.rewards import scorers
from alignjax.training import optim
from alignjax.world import front as world_front
from alignjax.world import sources as world

ROOT = pathlib.Path(__file__).parent.parent
TWO, THREE = ("helpful", "concise"), ("helpful", "harmless", "concise")
WORLDS = {"2-concave": TWO, "2-convex": TWO, "3-concave": THREE}
RATED = ("informativeness", "naturalness")
CASES = {**WORLDS, "ratings": RATED}
PREFERENCES = {
    2: ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0)),
    3: (
        *((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0)),
        *((1.0, 1.0, 0.0), (1.0, 0.0, 1.0), (0.0, 1.0, 1.0)),
    ),
}
# Optimizer steps, of 8 rows or prompts, that each method spends in all: divided among what it
# trains. From the measured device seconds of seed 0: ROW of one response, PAIR of two with the
# reference, DRAWN of four sampled ones.
ROW, PAIR, DRAWN = 800, 850, 200
LONGEST = 48  # tokens of a response, trained on or measured


def world_of(case: str) -> world.World:
    return world.World(trade_off=case.partition("-")[2])


def on_ratings(out: pathlib.Path, path: str, seed: int) -> Config:
    """Makes the same config on rated sentences; fits the seed's reward model if it is missing."""
    own = [f"data.path={path}", f"train.seed={seed}"]
    folder = out / "shared" / f"reward-model-seed{seed}"
    if not (folder / "summary.json").is_file():
        recipes.run_config(load.load(str(ROOT / "configs" / "rm_unieval.py"), own), folder)
    changes = [
        *own,
        # Not the ratings asked for, so that the model scores the rows as well: one scale for all.
        "data.source.objectives=('overall',)",
        "data.max_drop_fraction=0.5",  # more lists tie in one rating than in two
        f"recipe.objectives.scorer.path={folder}",
        f"tokenizer.path={folder / 'tokenizer.model'}",
        "train.save_every=100000",
    ]
    return load.load(str(ROOT / "configs" / "paretohqd_unieval.py"), changes)


def base(case: str, seed: int) -> Config:
    """Makes the config that all methods of a case and seed in the world share."""
    names = CASES[case]
    judge = functools.partial(world.judge, world=world_of(case))
    return Config(
        data=DataConfig(
            source=functools.partial(
                world.lists,
                size=2500,
                seed=seed,
                responses=4,
                objectives=THREE,
                world=world_of(case),
            ),
            max_prompt_tokens=64,
            max_response_tokens=48,
            eval_fraction=0.05,
            max_drop_fraction=0.02,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp_width=176
        ),
        lora=LoraConfig(rank=16, alpha=32.0),
        sft=SftConfig(loss=sft.loss, learning_rate=5e-3, epochs=3.0, batch_size=32),
        recipe=functools.partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=supervised.train,
                scorer=functools.partial(scorers.judged, judge=judge, name=names),
                names=names,
                preferences=PREFERENCES[len(names)],
                box=((0.0, 1.0),) * len(names),
                truth=functools.partial(world_front.attainable, world=world_of(case)),
            ),
        ),
        loss=sft.loss,
        optim=OptimConfig(learning_rate=2e-3, schedule=optim.cosine),
        train=TrainConfig(steps=1, batch_size=8, save_every=100_000, seed=seed),
        evaluate=EvaluateConfig(prompts=64, samples=2, max_new_tokens=LONGEST, batch_size=64),
    )


def methods(case: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any], int, float]]:
    """Lists by name: method, loss, steps of each of its trainings, learning rate."""
    m = len(CASES[case])
    p = len(PREFERENCES[m])
    curated = functools.partial(
        paretohqd_recipe.train, size=100, prompts=250, max_new_tokens=LONGEST, at_once=p
    )
    linear = functools.partial(curated, curate=paretohqd.curate_linear)
    one_stage = functools.partial(curated, two_stages=False)
    # The nearest of all the data, not of its best layers alone.
    all_layers = functools.partial(paretohqd.curate, depth=1_000_000)
    full_data = functools.partial(curated, curate=all_layers)
    conditional = functools.partial(
        ric_recipe.train,
        limits=rewards_in_context.data_limits,
        online_rounds=2,
        online_samples=300,
        originals=1000,
        online_steps=ROW // 5,
        online_learning_rate=5e-4,
        max_new_tokens=LONGEST,
    )
    gradient = functools.partial(apo.loss, beta=0.1)
    expert = functools.partial(morlhf.policy, steps=DRAWN // m, max_new_tokens=LONGEST)
    drawn = functools.partial(morlhf.train, max_new_tokens=LONGEST)
    return {
        "SFT": (supervised.train, sft.loss, 1, 0.0),
        "ParetoHqD": (curated, paretohqd.loss, ROW // (2 * p), 2e-3),
        "linear curation": (linear, paretohqd.loss, ROW // (2 * p), 2e-3),
        "one stage": (one_stage, paretohqd.loss, ROW // p, 2e-3),
        "full data": (full_data, paretohqd.loss, ROW // (2 * p), 2e-3),
        "RiC": (conditional, rewards_in_context.loss, 3 * ROW // 5, 2e-3),
        "MODPO": (modpo_recipe.train, functools.partial(modpo.loss, beta=0.1), PAIR // p, 3e-4),
        "MORLHF": (drawn, gradient, DRAWN // p, 2e-3),
        "MORLHF by PPO": (
            functools.partial(drawn, updates=4),
            functools.partial(grpo.loss_clipped, beta=0.1),
            DRAWN // (2 * p),
            2e-3,
        ),
        "MORLHF x5": (drawn, gradient, 5 * DRAWN // p, 2e-3),
        "soups": (functools.partial(soups.train, expert=expert), gradient, DRAWN // m, 2e-3),
        "MOD": (functools.partial(mod.train, expert=expert), gradient, DRAWN // m, 2e-3),
    }


METHODS = tuple(methods("2-concave"))
# By default not: ParetoHqD without one of its parts, MORLHF in another form or five times the time.
EXTRA = ("one stage", "full data", "MORLHF by PPO", "MORLHF x5")
USUAL = tuple(name for name in METHODS if name not in EXTRA)
EXPERTS = ("soups", "MOD")


def cell(out: pathlib.Path, case: str, method: str, seed: int, path: str) -> Config:
    config = on_ratings(out, path, seed) if case == "ratings" else base(case, seed)
    train, loss, steps, rate = methods(case)[method]
    objectives = dataclasses.replace(get(config, "recipe.objectives"), method=train)
    return dataclasses.replace(
        config,
        recipe=functools.partial(recipes.trace_front, objectives=objectives),
        loss=loss,
        optim=dataclasses.replace(config.optim, learning_rate=rate),
        train=dataclasses.replace(config.train, steps=steps),
    )


def folder_of(out: pathlib.Path, case: str, method: str, seed: int) -> pathlib.Path:
    return out / case / f"{method.replace(' ', '-')}-seed{seed}"


def copy(names: tuple[str, ...], source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies files and folders that exist and are not yet in the target."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            how = shutil.copytree if (source / name).is_dir() else shutil.copy
            how(source / name, target / name)


def run(out: pathlib.Path, case: str, method: str, seed: int, path: str) -> None:
    """Runs a cell unless it has finished; cells share the supervised policy and the experts."""
    folder = folder_of(out, case, method, seed)
    if (folder / "summary.json").is_file():
        return
    shared = out / "shared" / f"{case.partition('-')[2] or case}-seed{seed}"
    copy(("sft", "tokenizer.model"), shared, folder)
    experts = out / "shared" / f"{case}-experts-seed{seed}"
    if method in EXPERTS:
        copy(("morlhf", "seconds"), experts, folder)
    config = cell(out, case, method, seed, path)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, cache_dir=str(shared / "cache"))
    )
    print(f"\n{folder}", flush=True)
    recipes.run_config(config, folder)
    copy(("sft", "tokenizer.model"), folder, shared)
    if method in EXPERTS:
        copy(("morlhf", "seconds"), folder, experts)
    for checkpoints in list(folder.glob("**/checkpoints")):  # the front is measured
        shutil.rmtree(checkpoints)


def numbers(told: dict[str, Any], box: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Reads the numbers of one finished cell."""
    scores = np.array(told["scores"])
    low, high = box if told["box"] is None else np.array(told["box"], np.float64).T
    volume = fronts.hypervolume(scores, low=low, high=high)
    around = fronts.hypervolume(scores, low=box[0], high=box[1])
    faithful = fronts.faithfulness(np.array(told["preferences"]), scores.mean(axis=1))
    return {
        "hypervolume": volume.mean,
        "hypervolume +-": (volume.high - volume.low) / 2,
        "in the box around all": around.mean,
        "in the box around all +-": (around.high - around.low) / 2,
        "faithfulness": faithful.mean,
        "reversed": 100 * faithful.violations / faithful.pairs,
        "collapsed": 100 * float(np.mean(told["collapsed"])),
        "device seconds": told["seconds"],
    }


COLUMNS = {
    "hypervolume": ".3f",
    "in the box around all": ".3f",
    "faithfulness": ".2f",
    "reversed": ".0f",
    "collapsed": ".1f",
    "device seconds": ".0f",
}


def tabulate(out: pathlib.Path, case: str, methods: list[str], seeds: list[int]) -> str:
    """Makes a Markdown table of a case: a row per method, mean ± sd over seeds."""
    found: dict[str, list[dict[str, float]]] = {method: [] for method in methods}
    limits: list[float] = []
    for seed in seeds:
        told = {}
        for method in methods:
            file = folder_of(out, case, method, seed) / "front.json"
            if file.is_file():
                told[method] = json.loads(file.read_text(encoding="utf-8"))
        if not told:
            continue
        box = fronts.box([np.array(x["scores"]) for x in told.values()])
        for method, front in told.items():
            found[method].append(numbers(front, box))
        first = next(iter(told.values()))
        if first["truth"] is not None:
            low, high = np.array(first["box"], np.float64).T
            limits.append(pareto.hypervolume(np.array(first["truth"]), low=low, high=high))
    lines = [f"| {case} | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for method, cells in found.items():
        row = [method, str(len(cells))]
        for name, form in COLUMNS.items():
            values = [x[name] for x in cells]
            text = "-" if not values else format(statistics.mean(values), form)
            if len(values) > 1:
                text += f" ± {format(statistics.stdev(values), form)}"
            if values and f"{name} +-" in cells[0]:
                text += f" [{format(statistics.mean(x[f'{name} +-'] for x in cells), form)}]"
            row.append(text)
        lines.append("| " + " | ".join(row) + " |")
    if limits:
        lines.append(f"\nthe points that a policy can attain: hypervolume {np.mean(limits):.3f}")
    return "\n".join(lines)


def draw(out: pathlib.Path, case: str, methods: list[str], seed: int) -> None:
    """Draws all methods of one seed into one figure."""
    folders = [folder_of(out, case, method, seed) for method in methods]
    ready = [str(folder) for folder in folders if (folder / "front.json").is_file()]
    if ready:
        comparing.run(ready, str(out / f"{case}-seed{seed}.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--cases", default=",".join(WORLDS))
    parser.add_argument("--path", default="", help="sfres.json, for --cases=ratings")
    parser.add_argument("--methods", default=",".join(USUAL))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--cells", default="*", help="patterns of CASE/METHOD-seedN, with commas")
    parser.add_argument("--report", action="store_true", help="only tabulate what is there")
    args = parser.parse_args()
    for name, known in (("cases", CASES), ("methods", METHODS)):
        for value in getattr(args, name).split(","):
            if value not in known:
                parser.error(f"--{name}: wanted some of {','.join(known)}, found {value}")
    if "ratings" in args.cases.split(",") and not (args.path or args.report):
        parser.error("--cases=ratings wants --path=sfres.json")
    out, seeds = pathlib.Path(args.out), [int(x) for x in args.seeds.split(",")]
    cases, wanted = args.cases.split(","), args.methods.split(",")
    # Preferences, seeds and methods compile the same programs; compiling is not timed.
    jax.config.update("jax_compilation_cache_dir", str((out / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    for seed, case, method in itertools.product(seeds, cases, wanted):
        folder = folder_of(out, case, method, seed)
        name = f"{case}/{folder.name}"
        if not args.report and any(fnmatch.fnmatch(name, x) for x in args.cells.split(",")):
            run(out, case, method, seed, args.path)
    for case in cases:
        draw(out, case, wanted, seeds[0])
        print("\n" + tabulate(out, case, wanted, seeds))


if __name__ == "__main__":
    main()
