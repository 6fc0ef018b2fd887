"""Measures which losses lead a small language model to the world's preferred distribution.

    python benchmarks/consistency_world.py --out=runs/consistency --seeds=0,1,2

The data are the 128 prompts about one thing and one request, the 432 responses to each that have at
most one detail, and pairs with cyclic preferences, both responses labelled. p+ is the distribution
of preferred responses, p- that of rejected ones. A supervised stage fits their mixture, the
reference. Every method then runs the recipe on the same pairs. "TV" is the total variation between
the policy and p+ over all texts, at one held-out prompt of each risk. Prints a table and writes
``world.json``; resumes where it was stopped.
"""

import argparse
import functools
import itertools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.data.records import DataReport, Record
from alignjax.losses import bco, ddro, dpo, kto, rdro, sft
from alignjax.models.config import ModelConfig
from alignjax.models.logps import score_responses
from alignjax.models.transformer import init_params
from alignjax.recipes import align
from alignjax.runtime import checkpoint, sharding, stores
from alignjax.stages import data as prepared
from alignjax.training import optim, step
from alignjax.types import Batch, Params
from alignjax.world import grammar
from alignjax.world import sources as world

PREFERENCE: dict[str, float] = dict(temperature=0.05, cycle=2.0)
PROMPTS = [
    grammar.Prompt("guitar", "clean", *rest)
    for rest in itertools.product(
        range(len(grammar.TAILS)), grammar.ADJECTIVES, range(len(grammar.FORMS))
    )
]
SAID = [i for i, latent in enumerate(grammar.LATENTS) if latent.verbosity <= 1]
KTO: dict[str, Any] = dict(loss=kto.loss, select=kto.select, baseline=kto.baseline)
METHODS: dict[str, tuple[float, dict[str, Any]]] = {  # learning rate, fields of Config
    "RDRO": (1e-3, dict(loss=rdro.loss)),
    "DDRO": (1e-3, dict(loss=ddro.loss)),
    "DDRO, log-sigmoid": (1e-3, dict(loss=ddro.loss_log_sigmoid)),
    "KTO, beta 0.1": (1e-3, KTO),
    "KTO, beta 0.1, rate 1e-4": (1e-4, KTO),
    "BCO, beta 0.1": (1e-3, dict(loss=bco.loss, baseline=bco.baseline)),
    "DPO, beta 0.1": (1e-3, dict(loss=partial(dpo.loss, beta=0.1))),
    "DPO, beta 0.1, rate 1e-4": (1e-4, dict(loss=partial(dpo.loss, beta=0.1))),
    "DPO, beta 2": (1e-3, dict(loss=partial(dpo.loss, beta=2.0))),
    "SFT on the preferred": (1e-3, dict(loss=sft.loss, select=sft.select)),
}


@functools.cache
def pairs(risk: int) -> np.ndarray:
    """Computes ``[n, n]`` probabilities of (preferred, rejected) for prompts of this risk.

    As in `sources.pairs`: two different responses of the world's mixture, then a choice.
    """
    prompt = next(grammar.render_prompt(p) for p in PROMPTS if p.risk == risk)
    q = np.exp(world.log_probs(world.DEFAULT_WORLD, prompt, alpha=0.5)[SAID])
    together = np.outer(q, q)
    np.fill_diagonal(together, 0.0)
    beats = world.preference_matrix(world.DEFAULT_WORLD, prompt, **PREFERENCE)
    return 2 * together / together.sum() * beats[np.ix_(SAID, SAID)]


def responses(prompt: grammar.Prompt) -> list[str]:
    """Lists the n possible responses, in the order of every ``[n]``."""
    return [grammar.render(prompt, grammar.LATENTS[i]) for i in SAID]


def labelled_pairs(report: DataReport, *, size: int, seed: int) -> Iterator[Record]:
    """Makes pairs for `PROMPTS`, the preferred response first, each response with its label."""
    key = np.random.default_rng(seed)
    cumulative = {risk: np.cumsum(pairs(risk)) for risk in range(len(grammar.RISKS))}
    said = {prompt: responses(prompt) for prompt in PROMPTS}
    for i in range(size):
        report.rows_in += 1
        prompt = PROMPTS[key.integers(len(PROMPTS))]
        place = np.searchsorted(cumulative[prompt.risk], key.random(), side="right")
        preferred, rejected = divmod(int(place), len(SAID))
        yield Record(
            id=f"pair-{i}",
            prompt=grammar.render_prompt(prompt),
            responses=(said[prompt][preferred], said[prompt][rejected]),
            desirable=(True, False),
            domain=f"draw {i}",  # the same pair drawn again is no duplicate
        )


def config(name: str, size: int, seed: int, cache: pathlib.Path) -> Config:
    """Makes the config of one run; data and supervised stage are the same for every method."""
    rate, method = METHODS[name]
    return Config(
        data=DataConfig(
            source=partial(labelled_pairs, size=size, seed=seed),
            max_prompt_tokens=32,
            max_response_tokens=48,
            max_drop_fraction=0.02,
            pad_multiple=8,
            cache_dir=str(cache),
        ),
        tokenizer=TokenizerConfig(vocab_size=576),
        model=ModelConfig(
            vocab_size=576, width=64, layers=1, heads=2, kv_heads=2, head_dim=32, mlp_width=176
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=4e-3, epochs=3.0, batch_size=32),
        optim=OptimConfig(learning_rate=rate, schedule=optim.cosine),
        train=TrainConfig(batch_size=32, seed=seed, save_every=10**6),
        evaluate=EvaluateConfig(prompts=0, batch_size=64),
        **method,
    )


def trained(run: Config, workdir: pathlib.Path) -> Params:
    """Loads the final policy of a run."""

    def start() -> Any:
        params = init_params(run.model, jax.random.key(0))
        return step.init_state(params, optim.make(run.optim, 1), jax.random.key(0))

    with stores.open_store(workdir / "checkpoints", keep=1) as store:
        return checkpoint.restore(store, stores.latest(store), _target(start)).params


def reference(run: Config, workdir: pathlib.Path) -> Params:
    """Loads the parameters of the supervised stage."""
    return checkpoint.load_params(
        workdir / "sft" / "params", _target(lambda: init_params(run.model, jax.random.key(0)))
    )


def _target(start: Any) -> Any:
    shapes = jax.eval_shape(start)
    return sharding.abstract(shapes, sharding.shard_tree(shapes, sharding.make_mesh(1, 1, 1)))


def enumerated(params: Params, run: Config, tokenizer: Any, prompt: grammar.Prompt) -> np.ndarray:
    """Computes ``[n]`` log-probabilities of every response to a prompt."""
    encoded = tokenizer.encode(grammar.render_prompt(prompt), responses(prompt))
    length = np.array([len(ids) for ids in encoded.response_ids], np.int32)
    response = np.zeros((len(length), length.max()), np.int32)
    for row, ids in zip(response, encoded.response_ids, strict=True):
        row[: len(ids)] = ids
    prompt_ids = np.zeros((1, 32), np.int32)  # left-padded; none is longer
    prompt_ids[0, -len(encoded.prompt_ids) :] = encoded.prompt_ids
    batch = Batch(
        prompt=prompt_ids,
        prompt_length=np.array([len(encoded.prompt_ids)], np.int32),
        response=response[None],
        response_length=length[None],
        weight=np.ones(1, np.float32),
        prompt_id=np.zeros(1, np.int32),
    )
    return np.asarray(score_responses(params, batch, config=run.model)[0], float)


def held_out_prompts(data: prepared.Prepared) -> list[grammar.Prompt]:
    """Picks one held-out prompt of each risk."""
    rows = data.held_out.dataset
    held_out = {rows[i].prompt for i in range(len(rows))}
    found = {p.risk: p for p in PROMPTS if grammar.render_prompt(p) in held_out}
    return [found[risk] for risk in sorted(found)]


def distances(
    params: Params, run: Config, tokenizer: Any, prompts: list[grammar.Prompt]
) -> dict[str, float]:
    """Averages over prompts: TV to p+ and to the mixture, and the share of malformed text."""
    rows = []
    for prompt in prompts:
        plus, minus = (np.log(pairs(prompt.risk).sum(axis=axis)) for axis in (1, 0))
        found = enumerated(params, run, tokenizer, prompt)
        mixture = np.logaddexp(plus, minus) - np.log(2)
        rows.append(
            {
                "to p+": world.total_variation(found, plus),
                "to the mixture": world.total_variation(found, mixture),
                "mixture to p+": world.total_variation(mixture, plus),
                "malformed": 1 - float(np.exp(found).sum()),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def traces(workdir: pathlib.Path, beta: float) -> dict[str, list[float]]:
    """Reads loss, gradient norm and mean log-ratio of each class, every ten steps."""
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "loss" in x]
    out = {name: [x[name] for x in lines] for name in ("step", "loss", "grad_norm")}
    # Half of a row's responses are desirable, and `label_metrics` divides by all of them.
    for ours, label, pair in (
        ("preferred", "log_ratio/desirable", "rewards/chosen"),
        ("rejected", "log_ratio/undesirable", "rewards/rejected"),
    ):
        if label in lines[0]:
            out[ours] = [2 * x[label] for x in lines]
        elif pair in lines[0]:
            out[ours] = [x[pair] / beta for x in lines]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", default="0,1,2", help="of the data, the model and the shuffling")
    parser.add_argument("--size", type=int, default=16_000, help="pairs, held-out ones included")
    parser.add_argument("--methods", default="", help="semicolons between; default: all")
    arguments = parser.parse_args()
    names = arguments.methods.split(";") if arguments.methods else list(METHODS)
    # The methods of all seeds share programs: what is compiled once is kept.
    jax.config.update("jax_compilation_cache_dir", str(arguments.out / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    path = arguments.out / "world.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for seed in map(int, arguments.seeds.split(",")):
        base = arguments.out / f"{arguments.size}-{seed}"
        for name in names:
            key = f"{name}/{arguments.size}/{seed}"
            if key in found:
                continue
            run = config(name, arguments.size, seed, base / "cache")
            workdir = base / name.replace(", ", "-").replace(" ", "-")
            earlier = [x for x in base.glob("*/sft") if x.parent != workdir]
            if earlier and not workdir.exists():  # the same stage on the same data
                shutil.copytree(earlier[0], workdir / "sft")
                shutil.copy(earlier[0].parent / "tokenizer.model", workdir)
            began = time.perf_counter()
            align.run(run, workdir)
            data = prepared.prepare_data(run, workdir)
            prompts = held_out_prompts(data)
            beta = run.loss.keywords["beta"] if name.startswith("DPO") else 1.0
            found[key] = {
                "policy": distances(trained(run, workdir), run, data.tokenizer, prompts),
                "reference": distances(reference(run, workdir), run, data.tokenizer, prompts),
                "traces": traces(workdir, beta),
                "seconds": time.perf_counter() - began,
                "prompts": [grammar.render_prompt(prompt) for prompt in prompts],
            }
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(key, found[key]["policy"], "reference", found[key]["reference"], flush=True)
    table(found)


def table(found: dict[str, Any]) -> None:
    """Prints the mean and the standard deviation over seeds."""
    groups: dict[str, list[dict[str, float]]] = {}
    for key, result in found.items():
        name, size, _ = key.split("/")
        groups.setdefault(f"{int(size):>7,} pairs  {name}", []).append(result["policy"])
        if name == "RDRO":  # every method of a seed has the same one
            groups.setdefault(f"{int(size):>7,} pairs  the reference", []).append(
                result["reference"]
            )
    for title, rows in sorted(groups.items()):
        cells = []
        for column in rows[0]:
            values = [row[column] for row in rows]
            sd = np.std(values, ddof=1) if len(values) > 1 else float("nan")
            cells.append(f"{column} {np.mean(values):.3f} ± {sd:.3f}")
        print(f"{title:<40} {len(rows)} seeds  " + "   ".join(cells))


if __name__ == "__main__":
    main()
