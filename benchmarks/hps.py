"""Measures the cost of lists of n responses: BT and HPS score two, Plackett-Luce scores all n.

    python benchmarks/hps.py

Two tables, for the pair of best and worst (BT), the pair of best and drawn (HPS; both choose before
the forward pass) and Plackett-Luce with the prompt run once and repeated, prompts as long as
responses: milliseconds per step, relative to n = 2; and useful tokens per second: those of the
prompts, counted once, and of the responses that the loss compares. Settings alternate; times are
medians.
"""

import functools
import pathlib
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.losses import bradley_terry, dpo, hps, plackett_luce
from alignjax.models.config import ModelConfig
from alignjax.models.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.training.step import Update, init_state, train_step
from alignjax.types import Batch
from tests.oracles.plain import plain_logps

MODEL = ModelConfig(vocab_size=2048, width=128, mlp_width=352, logits_chunk=16)
PROMPTS, TOKENS = 8, 64
REPEATS = 7


def lists(n: int) -> Batch:
    """Makes eight prompts with n scored responses each, of equal lengths, reference cached."""
    rng = np.random.default_rng(0)
    shape = (PROMPTS, n)
    return Batch(
        prompt=jnp.asarray(rng.integers(4, MODEL.vocab_size, (PROMPTS, TOKENS), np.int32)),
        prompt_length=jnp.full(PROMPTS, TOKENS, jnp.int32),
        response=jnp.asarray(rng.integers(4, MODEL.vocab_size, (*shape, TOKENS), np.int32)),
        response_length=jnp.full(shape, TOKENS, jnp.int32),
        weight=jnp.ones(PROMPTS),
        prompt_id=jnp.arange(PROMPTS),
        scores=jnp.asarray(rng.normal(size=shape), jnp.float32),
        ref_logps=jnp.zeros(shape, jnp.float32),
    )


def compiled(name: str, n: int) -> Any:
    """Makes a function that runs one step and returns its seconds."""
    how: dict[str, Any] = {
        "bt": dict(apply=response_logps, loss=dpo.loss, select=bradley_terry.select),
        "hps": dict(
            apply=response_logps, loss=hps.loss, select=functools.partial(hps.select, gamma=1.0)
        ),
        "pl, prompt once": dict(apply=response_logps, loss=plackett_luce.loss, select=None),
        "pl, repeated": dict(apply=plain_logps, loss=plackett_luce.loss, select=None),
    }[name]
    optimizer = optax.adamw(1e-6)
    params = jax.jit(functools.partial(init_params, MODEL))(jax.random.key(0))
    state = init_state(params, optimizer, jax.random.key(1))
    step = jax.jit(
        functools.partial(
            train_step,
            update=Update(
                apply=functools.partial(how["apply"], config=MODEL),
                optimizer=optimizer,
                loss=how["loss"],
                select=how["select"],
            ),
        ),
        donate_argnums=0,
    )
    box = [state]
    batch = lists(n)

    def run() -> float:
        since = time.perf_counter()
        box[0], scalars = step(box[0], None, batch)
        jax.block_until_ready(scalars)
        return time.perf_counter() - since

    run()  # compiles
    return run


def main() -> None:
    names, sizes = ("bt", "hps", "pl, prompt once", "pl, repeated"), (2, 4, 8, 16)
    runs = {(name, n): compiled(name, n) for name in names for n in sizes}
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(REPEATS):
        for key, run in runs.items():
            run()  # the step before it may have been another's, and have left memory to fetch again
            times[key].append(run())
    kind = jax.devices()[0].device_kind
    print(f"{kind}, jax {jax.__version__}; {PROMPTS} prompts, {TOKENS} + n x {TOKENS} tokens")
    head = "".join(f"{f'n={n}':>18}" for n in sizes)
    print(f"{'ms per step (relative to n=2)':<30}{head}")
    median = {key: float(np.median(found)) for key, found in times.items()}
    for name in names:
        cells = [(median[name, n], median[name, n] / median[name, 2]) for n in sizes]
        print(f"{name:<30}" + "".join(f"{t * 1e3:>10.1f} ({ratio:.2f})" for t, ratio in cells))
    print(f"{'useful tokens per second':<30}{head}")
    for name in names:
        scored = [n if name.startswith("pl") else 2 for n in sizes]
        rates = [
            PROMPTS * TOKENS * (1 + k) / median[name, n] for n, k in zip(sizes, scored, strict=True)
        ]
        print(f"{name:<30}" + "".join(f"{rate:>18,.0f}" for rate in rates))


if __name__ == "__main__":
    main()
