"""Measures APO at small scale: four policies against an adversary and a fixed reward model.

    python benchmarks/apo_table.py --out=runs/apo_table
    python benchmarks/apo_table.py --out=runs/apo_table --prepare
    python benchmarks/apo_table.py --out=runs/apo_table --cells=rjs-fixed,dpo-fixed,pg-fixed
    python benchmarks/apo_table.py --out=runs/apo_table --report

A cell is a whole game of `configs/demo/apo.py`, smaller, in a folder of its own. A finished cell is
not run again; a killed one resumes. The cells of a seed begin with one supervised policy and
one reward model of pairs only, both made once; those of one adversary share its first move,
which the policy's method does not change. Two processes can split the work once --prepare has made
what all share: by the adversary, as in the third line, or by --seeds. A seed changes the split, the
initial weights, the order of the rows and every draw. In ``golden-sft`` the policy is trained on
the reward model's golden answers themselves.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax import recipes
from alignjax.commands import export
from alignjax.config import Config, load
from alignjax.config.validate import get
from alignjax.data.records import DataReport, Record
from alignjax.data.splits import split_by_prompt
from alignjax.evaluation.statistics import Z95
from alignjax.losses import apo, bradley_terry, dpo, rrhf, sft
from alignjax.recipes import align
from alignjax.recipes.apo.measure import ACCURACY, BEFORE, ECE, PAIRS, SAMPLES
from alignjax.world import sources as world

ROOT = pathlib.Path(__file__).parent.parent
SIZE = 800
# A smaller network than the config's, and fewer rows, for 51 games.
CHANGES = [
    *("model.width=96", "model.head_dim=24", "model.mlp_width=256", "recipe.game.rounds=2"),
    *(f"data.source.size={SIZE}", f"recipe.game.golden.size={SIZE}"),
    "data.eval_fraction=0.15",
    *("data.max_response_tokens=48", "recipe.game.sampling.max_new_tokens=48"),
    *("evaluate.max_new_tokens=48", "evaluate.prompts=96", "evaluate.during=0"),
    *("train.epochs=2", "train.save_every=1000", "recipe.game.train.save_every=1000"),
    *(
        "recipe.game.train.epochs=2",
        "evaluate.batch_size=96",
        "recipe.game.sampling.batch_size=128",
    ),
]
# What the supervised policy is made from: good and bad responses to prompts of its own.
START = dict(size=1200, seed=0, start=SIZE, responses=8)
START_STEPS = 240
POLICIES: dict[str, dict[str, Any]] = {
    "rjs": dict(select=apo.select_best, loss=sft.loss),
    "rrhf": dict(select=None, loss=rrhf.loss),
    "dpo": dict(select=bradley_terry.select, loss=functools.partial(dpo.loss, beta=0.1)),
    "pg": dict(select=None, loss=functools.partial(apo.loss, beta=0.1)),
}
RATES = {"rjs": 5e-4, "rrhf": 2e-4, "dpo": 2e-4, "pg": 2e-4}  # of the first round
WITH_REFERENCE = ("dpo", "pg")
ADVERSARIES: dict[str, list[str]] = {
    "apo-0.1": ["reward_loss.sample_weight=0.1"],  # the authors'
    "apo-1": ["reward_loss.sample_weight=1"],
    "fixed": ["recipe.game.adversarial=False"],
    "ab": ["reward_loss.sample_weight=0"],
    "gail": ["reward_loss.pair_weight=0"],
    "wgan": [],  # its loss is another function
    "sequential": ["recipe.game.sequential=True"],
}
CELLS = [f"{policy}-{x}" for policy in POLICIES for x in ("apo-0.1", "apo-1", "fixed")]
CELLS += [f"rjs-{adversary}" for adversary in ("ab", "gail", "wgan", "sequential")]
CELLS += ["golden-sft"]
SHARED = ("round-0", "round-1/reward_lists", "round-1/reward", "round-1/policy_lists")


def cell(name: str, seed: int, shared: pathlib.Path) -> Config:
    """Makes the game's config of one cell; golden-sft is made from that of ``rjs-fixed``."""
    policy, _, adversary = ("rjs-fixed" if name == "golden-sft" else name).partition("-")
    rate = RATES[policy]
    mode = "auto" if policy in WITH_REFERENCE else "none"
    changes = [
        *(
            *CHANGES,
            *ADVERSARIES[adversary],
            f"train.seed={seed}",
            f"recipe.game.train.seed={seed}",
        ),
        *(f"optim.learning_rate={rate}", f"recipe.game.learning_rates=({rate}, {0.4 * rate})"),
        *(f"reference.mode={mode}", f"data.cache_dir={shared / 'cache'}"),
    ]
    config = load.load(str(ROOT / "configs" / "demo" / "apo.py"), changes)
    if adversary == "wgan":
        bound: Any = config.reward_loss
        loss = functools.partial(apo.reward_loss_diff, **bound.keywords)
        config = dataclasses.replace(config, reward_loss=loss)
    return dataclasses.replace(config, **POLICIES[policy])


def of_reward_side(
    report: DataReport, *, records: Any, seed: int, eval_fraction: float, policy_fraction: float
) -> Iterator[Record]:
    """Selects the rows of a source that the game gives its reward model, and the held-out rows."""
    rows = list(records(DataReport()))
    train, held_out = split_by_prompt(rows, seed=seed, eval_fraction=eval_fraction)
    mine, _ = split_by_prompt(train, seed=seed + 2**31, eval_fraction=policy_fraction)
    for record in (*mine, *held_out):
        report.rows_in += 1
        yield record


def game_of(config: Config) -> recipes.RoundsConfig:
    """Reads the game's own settings."""
    game: recipes.RoundsConfig = get(config, "recipe.game")
    return game


def alone(config: Config, source: Any, **changes: Any) -> Config:
    """Makes the config of a run without a game, on the reward model's rows of a source."""
    mine = functools.partial(
        of_reward_side,
        records=source,
        seed=config.train.seed,
        eval_fraction=config.data.eval_fraction,
        policy_fraction=game_of(config).policy_fraction,
    )
    data = dataclasses.replace(config.data, source=mine)
    return dataclasses.replace(
        config, data=data, recipe=None, select=None, reward_loss=None, **changes
    )


def prepare(seed: int, shared: pathlib.Path) -> Config:
    """Makes what a seed's cells share, unless it exists; returns a config that starts from it."""
    config = cell("rjs-fixed", seed, shared)
    assert config.sft is not None
    start = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=functools.partial(world.lists, **START)),
        recipe=None,
        reward_loss=None,
        select=None,
        sft=None,
        loss=sft.loss,
        optim=dataclasses.replace(config.optim, learning_rate=config.sft.learning_rate),
        train=dataclasses.replace(config.train, steps=START_STEPS, batch_size=16),
        evaluate=dataclasses.replace(config.evaluate, prompts=0, judge=None),
    )
    if not (shared / "model").is_dir():
        align.run(start, shared / "start")
        export.export(str(shared / "start"), str(shared / "model"))
    config = begin(config, shared)
    if not (shared / "rm" / "summary.json").is_file():
        base = alone(config, config.data.source)
        base = dataclasses.replace(
            base,
            recipe=recipes.train_reward_model,
            loss=None,
            reward_loss=bradley_terry.reward_loss,
            optim=game_of(config).optim,
            train=game_of(config).train,
            evaluate=dataclasses.replace(config.evaluate, judge=None),
        )
        recipes.run_config(base, shared / "rm")
    return config


def begin(config: Config, shared: pathlib.Path) -> Config:
    """Changes a config to the seed's supervised policy and its reward model of pairs only."""
    return dataclasses.replace(
        config,
        sft=None,
        model=dataclasses.replace(config.model, path=str(shared / "model")),
        recipe=functools.partial(
            recipes.play_rounds,
            game=dataclasses.replace(game_of(config), reward_model=str(shared / "rm")),
        ),
    )


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the shared files and folders that exist and are not yet in the target."""
    for name in SHARED:
        if (source / name).is_dir() and not (target / name).exists():
            temporary = target / f"{name}.tmp"
            shutil.copytree(source / name, temporary, dirs_exist_ok=True)
            temporary.rename(target / name)


def run(name: str, seed: int, out: pathlib.Path) -> None:
    """Runs a cell, unless it has ended."""
    folder, shared = out / f"{name}-seed{seed}", out / f"shared-seed{seed}"
    if (folder / "summary.json").is_file():
        return
    prepare(seed, shared)
    config = begin(cell(name, seed, shared), shared)
    if name == "golden-sft":
        align.run(alone(config, game_of(config).golden, loss=sft.loss), folder)
        return
    moves = out / f"shared-{name.partition('-')[2]}-seed{seed}"
    copy(moves, folder)
    recipes.run_config(config, folder)
    copy(folder, moves)


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Reads a cell's summary; {} if it has not ended."""
    file = folder / "summary.json"
    found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def spread(values: Sequence[float]) -> str:
    """Formats mean ± standard deviation over seeds."""
    if not values:
        return "-"
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{sd}"


def pooled(estimates: Sequence[dict[str, float]]) -> str:
    """Formats the mean over seeds, with a 95% interval from the seeds' intervals over prompts."""
    if not estimates:
        return "-"
    half = sum(x["half_width"] ** 2 for x in estimates) ** 0.5 / len(estimates)
    mean = statistics.mean(x["mean"] for x in estimates)
    return f"{mean:+.3f} ± {half:.3f}"


def tabulate(names: Sequence[str], seeds: Sequence[int], out: pathlib.Path) -> str:
    """Makes Markdown tables of the policies and of the reward models, by round."""
    runs = {n: [s for seed in seeds if (s := read(out / f"{n}-seed{seed}"))] for n in names}
    games = {n: [s["rounds"] for s in found] for n, found in runs.items() if n != "golden-sft"}
    count = max((len(h) for found in games.values() for h in found), default=1)
    after = range(1, count)
    lines = ["| policy: true score | seeds | start | " + " | ".join(f"round {t}" for t in after)]
    lines = [lines[0] + " | KL, nats |", "|---" * (len(after) + 4) + "|"]
    for name, found in games.items():
        scores = [
            spread([h[t]["policy"]["true_score"]["mean"] for h in found if t < len(h)])
            for t in range(count)
        ]
        kl = spread([h[-1]["policy"]["KL to reference, nats"]["mean"] for h in found])
        lines.append(f"| {name} | {len(found)} | {' | '.join(scores)} | {kl} |")
    if sfts := runs.get("golden-sft"):
        sides = [
            spread([s["table"]["true_score"][x]["mean"] for s in sfts]) for x in ("before", "after")
        ]
        kl = spread([s["table"]["KL to reference, nats"]["after"]["mean"] for s in sfts])
        empty = " | -" * (len(after) - 1)
        lines.append(f"| golden-sft | {len(sfts)} | {' | '.join(sides)}{empty} | {kl} |")
    for where in (PAIRS, SAMPLES, BEFORE) if games else ():
        heads = [f"round {t}: {x}" for t in after for x in ("accuracy", "ECE", "of pairs alone")]
        lines += ["", f"| reward model on {where} | " + " | ".join(heads) + " | ahead, last |"]
        lines.append("|---" * (len(heads) + 2) + "|")
        for name, found in games.items():
            cells = []
            for t in after:
                mine = [h[t]["reward_model"][where] for h in found if where in h[t]["base"]]
                base = [h[t]["base"][where] for h in found if where in h[t]["base"]]
                cells += [
                    spread([x[ACCURACY]["mean"] for x in mine]),
                    spread([x[ECE] for x in mine]),
                    spread([x[ACCURACY]["mean"] for x in base]),
                ]
            ahead = pooled([h[-1]["ahead"][where] for h in found if where in h[-1]["ahead"]])
            lines.append(f"| {name} | {' | '.join(cells)} | {ahead} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--prepare", action="store_true", help="only make what cells share")
    parser.add_argument("--report", action="store_true", help="only tabulate what is there")
    args = parser.parse_args()
    out, names = pathlib.Path(args.out), args.cells.split(",")
    unknown = [name for name in names if name not in CELLS]
    if unknown:
        parser.error(f"--cells: wanted some of {','.join(CELLS)}, found {unknown[0]}")
    seeds = [int(x) for x in args.seeds.split(",")]
    for seed in [] if args.report else seeds:
        prepare(seed, out / f"shared-seed{seed}")
        for name in [] if args.prepare else names:
            run(name, seed, out)
    print(tabulate(names, seeds, out))
    print(
        "\nmean ± standard deviation over seeds; ahead: the last round's accuracy less that of the "
        "reward model of the pairs\nalone, on the same samples, with the 95% interval over prompts "
        f"(normal quantile {Z95:.2f})."
    )


if __name__ == "__main__":
    main()
