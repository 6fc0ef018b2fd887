"""Checks the numbers and measures the speed of a step on the device at hand, kernel by kernel.

    python benchmarks/accelerator_check.py             # `make gpu-check`; minutes on a GPU
    python benchmarks/accelerator_check.py --small     # two networks in float32, for a CPU

1. Numbers: log-probabilities of ragged responses and their gradient, by every attention kernel that
   supports the network, in float32 (products in full precision) and bfloat16, beside the plain way
   in float32 on the CPU (`tests.oracles.plain`: the prompt repeated, full logits). Networks: plain
   grouped heads; windows with soft-caps and sandwich norms; windows alone; norms on queries and
   keys. An error is relative to the largest number of its array.
2. Speed: DPO steps of 16 ragged pairs (4 with ``--small``) by every kernel: tokens a second, the
   prompt once per response, and the memory of the compiled step.

Exit code 1 if an error is beyond its tolerance.
"""

import argparse
import dataclasses
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

from alignjax.errors import UserError
from alignjax.losses import dpo
from alignjax.models import kernels
from alignjax.models.config import ModelConfig
from alignjax.models.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.training.microbatches import Rooms
from alignjax.training.step import Update, init_state, train_step
from alignjax.types import Batch, Params
from benchmarks.peers_ours import assemble
from benchmarks.peers_steps import Row, draw_rows, tokens_of
from tests.oracles.plain import plain_logps

KERNELS = ("tiles", "xla", "splash", "cudnn")
NETWORKS = {
    "grouped heads": dict(),
    "window, soft-caps, sandwich norms": dict(
        window=64, full_every=2, attention_softcap=20.0, logit_softcap=30.0, sandwich_norms=True
    ),
    "window": dict(window=64),
    "norms on queries and keys": dict(qk_norm=True),
}
# Largest error relative to the largest number. bfloat16 has 8 bits: 2^-8 a product, a few layers.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}
STEPS = 5


def supported(kernel: str, config: ModelConfig) -> bool:
    """Whether a kernel runs this network on the default device."""
    try:
        kernels.choose(dataclasses.replace(config, attention=kernel), jax.default_backend())
    except UserError:
        return False
    return True


def draw(pairs: int, vocab: int, longest: int) -> list[Row]:
    """Draws ragged pairs, cut to a longest prompt and response."""
    rows = draw_rows(pairs, ragged=True)
    return [{name: [i % vocab for i in ids[:longest]] for name, ids in row.items()} for row in rows]


def value_and_gradient(function: Any, params: Params, batch: Batch) -> tuple[Any, Any]:
    """Computes log-probabilities ``[B, K]`` and the gradient of a fixed combination of them."""

    def combined(params: Params) -> tuple[Any, Any]:
        logps = function(params, batch)
        weights = jnp.cos(jnp.arange(logps.size, dtype=jnp.float32)).reshape(logps.shape)
        return (logps * weights).sum(), logps

    (_, logps), gradient = jax.jit(jax.value_and_grad(combined, has_aux=True))(params)
    return jax.device_get((logps, gradient))


def error(found: Any, wanted: Any) -> float:
    """Returns the largest difference of two trees, relative to each array's largest number."""
    of_leaves = jax.tree.map(
        lambda x, y: float(np.abs(np.float32(x) - np.float32(y)).max() / np.abs(y).max()),
        found,
        wanted,
    )
    return max(jax.tree.leaves(of_leaves))


def check_numbers(small: bool) -> bool:
    """Prints the errors of every network, kernel and dtype; returns whether all are small."""
    longest, fine = 48 if small else 192, True
    print(f"{'network':<36} {'kernel':<7} {'dtype':<9} {'logps':>9} {'gradient':>9}")
    for name, changes in list(NETWORKS.items())[: 2 if small else None]:
        shape: dict[str, Any] = dict(
            vocab_size=512, width=128, heads=4, kv_heads=2, head_dim=32, attention="xla"
        )
        config = ModelConfig(**shape, **changes)
        batch = assemble(draw(4, config.vocab_size, longest), (longest, longest))
        with jax.default_device(jax.devices("cpu")[0]):
            params = init_params(config, jax.random.key(0))
            plain = functools.partial(plain_logps, config=config)
            wanted = value_and_gradient(plain, params, batch)
        params = jax.device_put(jax.device_get(params), jax.devices()[0])
        for dtype, tolerance in list(TOLERANCES.items())[: 1 if small else None]:
            for kernel in KERNELS:
                tried = dataclasses.replace(config, dtype=dtype, attention=kernel)
                if not supported(kernel, tried):
                    continue
                with jax.default_matmul_precision("highest"):
                    ours = functools.partial(response_logps, config=tried)
                    found = value_and_gradient(ours, params, batch)
                errors = [error(f, w) for f, w in zip(found, wanted, strict=True)]
                right = max(errors) <= tolerance
                fine &= right
                numbers = " ".join(f"{x:9.1e}" for x in errors)
                print(f"{name:<36} {kernel:<7} {dtype:<9} {numbers}{'' if right else '  WRONG'}")
    return fine


def measure_speed(small: bool) -> None:
    """Prints the speed and memory of a step by every kernel."""
    shape: dict[str, Any] = dict(width=1024, layers=12, heads=16, kv_heads=8, head_dim=64)
    shape |= dict(vocab_size=32_000, mlp_width=2816, dtype="bfloat16")
    if small:
        shape = dict(width=64, layers=1, heads=2, kv_heads=1, head_dim=32, vocab_size=512)
    config = ModelConfig(**shape, param_dtype="float32", remat="full")
    longest = 128 if small else 512
    rows = draw(4 if small else 16, config.vocab_size, longest)
    batch = assemble(rows, (longest, longest))
    optimizer = optax.adamw(1e-6, weight_decay=0.0)
    print(f"\n{'kernel':<7} {'tokens/s':>10} {'ms a step':>10} {'temporary MiB':>14}")
    for kernel in KERNELS:
        tried = dataclasses.replace(config, attention=kernel)
        if not supported(kernel, tried):
            continue
        update = Update(
            apply=functools.partial(response_logps, config=tried),
            loss=functools.partial(dpo.loss, beta=0.1),
            optimizer=optimizer,
            rooms=Rooms(padded=kernel != "tiles"),
        )
        params = jax.jit(functools.partial(init_params, tried))(jax.random.key(0))
        reference = jax.tree.map(jnp.copy, params)
        state = init_state(params, optimizer, jax.random.key(1))
        jitted = jax.jit(functools.partial(train_step, update=update), donate_argnums=0)
        compiled = jitted.lower(state, reference, batch).compile()
        seconds = []
        for _ in range(STEPS + 1):  # the first warms up
            since = time.perf_counter()
            state, scalars = compiled(state, reference, batch)
            float(scalars["loss"])
            seconds.append(time.perf_counter() - since)
        middle = float(np.median(seconds[1:]))
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        rate = tokens_of(rows) / middle
        print(f"{kernel:<7} {rate:>10,.0f} {1000 * middle:>10.1f} {memory:>14,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="what a CPU runs in a minute or two")
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform}: {device.device_kind}\n")
    fine = check_numbers(args.small)
    measure_speed(args.small)
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
