"""alignjax's DPO steps, for `peers.py`: the step that a run takes, on the same rows of token ids.

The batches are those of the other programs. The sizes of parts, the loss and the optimizer are what
`python -m alignjax dpo` would take for them, full fine-tuning in float32.
"""

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

import alignjax as aj
from alignjax.losses import dpo
from alignjax.models import stream
from alignjax.models.config import ModelConfig
from alignjax.models.logps import response_logps, score_responses
from alignjax.models.transformer import init_params
from alignjax.training.microbatches import Rooms, choose_sizes, fills_of
from alignjax.training.step import Update, init_state, train_step
from alignjax.types import Batch, Params
from benchmarks.peers_steps import BETA, LEARNING_RATE, SMALL, Row, arguments, run


def load(folder: str) -> tuple[ModelConfig, Params]:
    """Loads a model, or makes the small network."""
    if folder:
        policy = aj.load(folder)
        return policy.config, policy.params
    config = ModelConfig(
        vocab_size=int(SMALL["vocab_size"]),
        width=int(SMALL["hidden_size"]),
        layers=int(SMALL["num_hidden_layers"]),
        heads=int(SMALL["num_attention_heads"]),
        kv_heads=int(SMALL["num_key_value_heads"]),
        head_dim=int(SMALL["hidden_size"] // SMALL["num_attention_heads"]),
        mlp_width=int(SMALL["intermediate_size"]),
        rope_theta=SMALL["rope_theta"],
        qkv_bias=True,
    )
    return config, jax.jit(functools.partial(init_params, config))(jax.random.key(0))


def assemble(batch: list[Row], shape: tuple[int, int]) -> Batch:
    """Pads a batch on the host to P and R; the network sees no padding."""
    (p, r), b = shape, len(batch)
    prompt, response = np.zeros((b, p), np.int32), np.zeros((b, 2, r), np.int32)
    prompt_length, response_length = np.zeros(b, np.int32), np.zeros((b, 2), np.int32)
    for i, row in enumerate(batch):
        ids, *responses = row.values()
        prompt[i, p - len(ids) :], prompt_length[i] = ids, len(ids)
        for k, ids in enumerate(responses):
            response[i, k, : len(ids)], response_length[i, k] = ids, len(ids)
    return Batch(
        prompt=prompt,
        prompt_length=prompt_length,
        response=response,
        response_length=response_length,
        weight=np.ones(b, np.float32),
        prompt_id=np.arange(b, dtype=np.int32),
    )


def rooms_of(batches: list[list[Row]]) -> tuple[Rooms, float]:
    """Chooses the sizes of parts as a run does; and the share of their places that stay empty."""
    lengths = np.array([[sum(map(len, row.values())) for row in batch] for batch in batches])
    room = max(stream.whole_tiles(int(lengths.max())), stream.AT_ONCE)
    sizes = choose_sizes(lengths[:, None], room)
    filled = sum(
        min(size for size in sizes if size >= used)
        for row in lengths
        for used in fills_of(row[None], sizes[-1])
    )
    return Rooms(sizes=sizes, longest=int(lengths.max())), 1 - float(lengths.sum()) / filled


def matmul_rate(size: int = 2048, turns: int = 10) -> float:
    """Measures the FLOPs per second of a product of square matrices, the median of some turns."""
    x = jnp.ones((size, size))
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(turns):
        since = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - since)
    return 2 * size**3 / float(np.median(seconds))


def useful_flops(config: ModelConfig, params: Params, rows: list[Row]) -> float:
    """Counts forward and backward products of all rows, each prompt once; attention left out."""
    kernels = sum(
        x.size for path, x in jax.tree.leaves_with_path(params["layers"]) if "kernel" in str(path)
    )
    tokens = sum(sum(map(len, row.values())) for row in rows)
    scored = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    return 6.0 * (tokens * kernels + scored * config.width * config.vocab_size)


def main() -> None:
    args = arguments()
    config, params = load(args.model)
    config = dataclasses.replace(config, remat=args.remat)
    rows = [row for batch in args.batches for row in batch]
    longest = (
        max(len(row["prompt_ids"]) for row in rows),
        max(max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows),
    )
    batches: list[Any] = [
        assemble(batch, (-(-longest[0] // 16) * 16, -(-longest[1] // 16) * 16))
        for batch in args.batches
    ]
    rooms, empty = rooms_of(args.batches)
    flops, rate = useful_flops(config, params, rows), matmul_rate()
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE, weight_decay=0.0)
    )
    reference = params if args.live else None
    if not args.live:
        kept = [score_responses(params, batch, config=config) for batch in batches]
        batches = [b.replace(ref_logps=np.asarray(x)) for b, x in zip(batches, kept, strict=True)]
    update = Update(
        apply=functools.partial(response_logps, config=config),
        loss=functools.partial(dpo.loss, beta=BETA),
        optimizer=optimizer,
        rooms=rooms,
    )
    state = init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(1))
    if not args.live:
        del params
    jitted = jax.jit(functools.partial(train_step, update=update), donate_argnums=0)
    since = time.perf_counter()
    compiled = jitted.lower(state, reference, batches[0]).compile()
    seconds, box = time.perf_counter() - since, [state]
    del state

    def step(number: int) -> float:
        box[0], scalars = compiled(box[0], reference, batches[number])
        return float(scalars["loss"])

    run(step, args, compile_s=seconds, empty=empty, flops=flops, rate=rate)


if __name__ == "__main__":
    main()
