"""Compares speed and memory of one training step, prompt once and prompt repeated.

    python benchmarks/step.py                          # fixed lengths, and lengths like HH's
    python benchmarks/step.py --data=/data/hh/test.jsonl.gz    # lengths of the real file

One table: {prompt once, prompt repeated} x {reference cached, live} x {fixed, ragged lengths}.
"Repeated" is `tests/oracles/plain.py`: whole sequences, full logits, padded to the batch maximum
(rounded up to 32, so that it compiles a few times only). "Once" is the library's step on
length-bucketed batches. Same parameters, same rows, same loss. Steps of the settings alternate, so
that a machine whose speed drifts slows all of them alike; times are medians.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.data import sources, store
from alignjax.data.batching import Shape, assemble, bucket, deal_batches
from alignjax.data.encode import encode
from alignjax.data.records import DataReport, Record, check
from alignjax.data.tokenizer.load import load
from alignjax.data.tokenizer.training import train_sentencepiece
from alignjax.losses import dpo
from alignjax.models.config import ModelConfig
from alignjax.models.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.training.step import Update, init_state, train_step
from alignjax.types import Batch
from tests.oracles.plain import plain_logps

MODEL = ModelConfig(
    vocab_size=8192,
    width=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    mlp_width=704,
    rope_theta=1e6,
    qkv_bias=True,
    logits_chunk=16,
)
PAIRS = 8
BUCKETS = 8
LONGEST = Shape(512, 256)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One row of the table: how log-probabilities are computed, and the batches to run."""

    name: str
    apply: Callable[..., jax.Array]
    cached: bool
    batches: list[tuple[Batch, int | None]]  # and, for the plain path, the padded length


def fixed(prompt: int, response: int, seed: int = 0) -> Batch:
    """Makes eight pairs, every prompt and response of one length."""
    rng = np.random.default_rng(seed)
    return Batch(
        prompt=rng.integers(4, MODEL.vocab_size, (PAIRS, prompt), np.int32),
        prompt_length=np.full(PAIRS, prompt, np.int32),
        response=rng.integers(4, MODEL.vocab_size, (PAIRS, 2, response), np.int32),
        response_length=np.full((PAIRS, 2), response, np.int32),
        weight=np.ones(PAIRS, np.float32),
        prompt_id=np.arange(PAIRS, dtype=np.int32),
    )


def records_like_hh(count: int, seed: int = 0) -> Iterator[Record]:
    """Draws random words of lengths like HH-RLHF's: median 70 in prompts, 24 in responses."""
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(3000)]

    def text(median: float, sigma: float, longest: int) -> str:
        length = int(np.clip(rng.lognormal(np.log(median), sigma), 1, longest))
        return " ".join(rng.choice(words, length))

    for i in range(count):
        yield Record(
            id=str(i),
            prompt=f"\n\nHuman: {text(70, 0.8, 500)}\n\nAssistant:",
            responses=(" " + text(24, 0.85, 250), " " + text(24, 0.85, 250)),
        )


def ragged(path: str, batches: int) -> tuple[list[Any], list[Any], str]:
    """Draws batches of an epoch: bucketed for one path, padded to their longest for the other."""
    report = DataReport()
    source = sources.hh(report, path=path) if path else records_like_hh(2000)
    records = list(check(source, report))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/tokenizer.model"
        texts = (t for r in records for t in (str(r.prompt), *r.responses))
        train_sentencepiece(texts, vocab_size=MODEL.vocab_size, path=model)
        encoded = encode(
            records,
            load(model),
            max_prompt_tokens=LONGEST.prompt,
            max_response_tokens=LONGEST.response,
            report=report,
        )
        store.write(encoded, f"{folder}/rows", report)
        dataset = store.open_dataset(f"{folder}/rows")
        rows = rng.permutation(len(dataset))
        data = bucket(dataset, count=BUCKETS, multiple=16)
        # As in a run, where rows left over at the end of an epoch come first in the next.
        schedule = deal_batches(
            data.shapes,
            data.assignment,
            batch_size=PAIRS,
            order=np.tile(rows, 2).tolist(),
            batches=len(rows) // PAIRS,
        )
        ours = [
            (assemble(dataset, schedule.rows[i], schedule.shapes[schedule.shape[i]]), None)
            for i in rng.choice(len(schedule), batches, replace=False)
        ]
        plain = []
        whole = rows[: len(rows) // PAIRS * PAIRS].reshape(-1, PAIRS)
        for picked in whole[rng.choice(len(whole), batches, replace=False)]:
            total = dataset.prompt_length[picked] + dataset.response_length[picked].max(axis=1)
            plain.append((assemble(dataset, picked, LONGEST), int(-(-total.max() // 32) * 32)))
        lengths = (
            f"{len(dataset)} rows, prompt median {np.median(dataset.prompt_length):.0f} "
            f"max {dataset.prompt_length.max()}, response median "
            f"{np.median(dataset.response_length):.0f} max {dataset.response_length.max()} tokens; "
            f"{batches} random batches"
        )
    return ours, plain, lengths


def compile_step(setting: Setting) -> tuple[list[Callable[[], float]], float, float]:
    """Compiles every shape of a setting.

    Returns:
      One function per batch that runs a step and returns its seconds; seconds of compilation;
      largest MiB of temporary memory of a step.
    """
    optimizer = optax.adamw(1e-6)
    params = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
    box = [init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(1))]
    ref_params = None if setting.cached else params
    compiled: dict[Any, Any] = {}
    seconds, memory = 0.0, 0.0
    runs = []
    for host, total in setting.batches:
        batch = jax.tree.map(jnp.asarray, host)
        if setting.cached:
            zeros = jnp.zeros(batch.response_length.shape, jnp.float32)
            batch = dataclasses.replace(batch, ref_logps=zeros)
        key = (batch.prompt.shape, batch.response.shape, total)
        if key not in compiled:
            extra = {} if total is None else {"total": total}
            step = functools.partial(
                train_step,
                update=Update(
                    apply=functools.partial(setting.apply, config=MODEL, **extra),
                    optimizer=optimizer,
                    loss=functools.partial(dpo.loss, beta=0.1),
                ),
            )
            since = time.perf_counter()
            lowered = jax.jit(step, donate_argnums=0).lower(box[0], ref_params, batch)
            compiled[key] = lowered.compile()
            seconds += time.perf_counter() - since
            memory = max(memory, compiled[key].memory_analysis().temp_size_in_bytes / 2**20)

        def run(step: Any = compiled[key], batch: Batch = batch) -> float:
            since = time.perf_counter()
            box[0], scalars = step(box[0], ref_params, batch)
            jax.block_until_ready(scalars)
            return time.perf_counter() - since

        runs.append(run)
    return runs, seconds, memory


def measure(settings: list[Setting], repeats: int) -> None:
    """Runs the settings in turn and prints a table; ratios are to the first setting."""
    ready = [compile_step(s) for s in settings]
    for runs, _, _ in ready:
        runs[0]()
    totals: list[list[float]] = [[] for _ in settings]
    for _ in range(repeats):
        for i, (runs, _, _) in enumerate(ready):
            totals[i].append(sum(run() for run in runs))
    print(
        f"{'setting':<28}{'pairs/s':>9}{'tokens/s':>10}{'per resp.':>11}{'temp MiB':>10}"
        f"{'compiles':>10}{'compile s':>11}{'ratio':>8}"
    )
    base = np.median(totals[0])
    for setting, (runs, seconds, memory), times in zip(settings, ready, totals, strict=True):
        pairs = sum(float(b.weight.sum()) for b, _ in setting.batches)
        prompts = sum(int((b.prompt_length * b.weight).sum()) for b, _ in setting.batches)
        responses = sum(int(b.response_length.sum()) for b, _ in setting.batches)
        middle = float(np.median(times))
        shapes = len({(b.prompt.shape, b.response.shape, t) for b, t in setting.batches})
        print(
            f"{setting.name:<28}{pairs / middle:>9.1f}{(prompts + responses) / middle:>10,.0f}"
            f"{(2 * prompts + responses) / middle:>11,.0f}{memory:>10.0f}{shapes:>10}"
            f"{seconds:>11.1f}{base / middle:>8.2f}"
        )
        del runs


def four(once: list[Any], plain: list[Any]) -> list[Setting]:
    """Lists the settings of one table; ratios refer to the first."""
    return [
        Setting("repeated, reference live", plain_logps, False, plain),
        Setting("repeated, reference cached", plain_logps, True, plain),
        Setting("once, reference live", response_logps, False, once),
        Setting("once, reference cached", response_logps, True, once),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="HH-RLHF file; without it, lengths like HH's")
    parser.add_argument("--batches", type=int, default=24, help="batches of the ragged table")
    parser.add_argument("--repeats", type=int, default=5, help="timed passes; medians are printed")
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {PAIRS} pairs a step, {MODEL}\n")
    print("tokens/s counts a prompt once; 'per resp.' counts it once per response, as peers do.\n")
    print("fixed lengths: prompt 64, responses 64")
    batch = fixed(64, 64)
    measure(four([(batch, None)], [(batch, 128)]), args.repeats * 2)
    once, plain, lengths = ragged(args.data, args.batches)
    print(f"\nragged lengths: {lengths}")
    measure(four(once, plain), max(1, args.repeats // 2))


if __name__ == "__main__":
    main()
