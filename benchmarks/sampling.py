"""Compares the time of sampling K responses in one call with K calls for one each.

    python benchmarks/sampling.py                     # K=8, prompts of 256 tokens, responses of 128
    python benchmarks/sampling.py --batch=16 --vocab=32000 --dtype=bfloat16 --repeats=10

Prompts are twice as long as responses, no response ends before its room is full; parameters and
prompts are random (``--seed``). The settings take turns, so that a machine whose speed drifts slows
all of them alike; one turn before, which compiles, does not count. Seconds are medians over the
turns, with the lowest and the highest; processor seconds, of all threads of this process, are what
to read where other work shares the cores, and mean nothing where the device is no CPU. A ratio is
of the two times of one turn.
"""

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax.config import SamplingConfig
from alignjax.models.config import ModelConfig
from alignjax.models.transformer import init_params
from alignjax.sampling.decode import sample


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Measures a call in seconds and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - wall, time.process_time() - processor


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = dict(samples=8, prompt=256, response=128, batch=4)
    sizes |= dict(vocab=4096, width=256, layers=4, repeats=5, seed=0)
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value}, if not given")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser.parse_args()


def main() -> None:
    args = options()
    config = ModelConfig(
        vocab_size=args.vocab,
        width=args.width,
        layers=args.layers,
        heads=args.width // 64,
        kv_heads=max(args.width // 128, 1),
        head_dim=64,
        mlp_width=args.width * 11 // 4,
        dtype=args.dtype,
        param_dtype=args.dtype,
    )
    params = jax.jit(functools.partial(init_params, config))(jax.random.key(args.seed))
    rng = np.random.default_rng(args.seed)
    rows = (
        rng.integers(0, args.vocab, (args.batch, args.prompt), np.int32),
        np.full(args.batch, args.prompt, np.int32),
        np.arange(args.batch, dtype=np.int32),
    )
    k, key = args.samples, jax.random.key(args.seed)

    def draw(samples: int, number: int = 0) -> object:
        return sample(
            params,
            *rows,
            jax.random.fold_in(key, number),
            config=config,
            settings=SamplingConfig(samples=samples, max_new_tokens=args.response),
            eos=(args.vocab,),  # an id that is never drawn
        )

    runs: dict[str, Callable[[], object]] = {
        f"K={k}, one call": lambda: draw(k),
        f"K=1, {k} calls": lambda: [jax.block_until_ready(draw(1, i)) for i in range(k)],
    }
    for run in runs.values():
        jax.block_until_ready(run())
    # [turn, setting, wall or processor]
    found = np.array([[timed(run) for run in runs.values()] for _ in range(args.repeats)])
    size = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    print(
        f"{jax.devices()[0].device_kind}; {size:.1f} million parameters ({args.layers} layers, "
        f"width {args.width}, vocabulary {args.vocab}, {args.dtype}); {args.batch} prompts of "
        f"{args.prompt} tokens, {k} responses of {args.response} tokens to each; {args.repeats} "
        f"turns, seed {args.seed}"
    )
    print(f"{'':<16}{'seconds':>24}{'processor seconds':>24}{'tokens/s':>10}")
    tokens = args.batch * k * args.response
    for i, name in enumerate(runs):
        wall, processor = found[:, i].T
        rate = tokens / np.median(wall)
        print(f"{name:<16}{spread(wall):>24}{spread(processor):>24}{rate:>10,.0f}")
    wall, processor = (found[:, 0] / found[:, 1]).T
    print(f"{'ratio':<16}{spread(wall):>24}{spread(processor):>24}")


def spread(x: np.ndarray) -> str:
    return f"{np.median(x):.3f} ({x.min():.3f} to {x.max():.3f})"


if __name__ == "__main__":
    main()
