"""Small networks and ragged batches that several tests share, and float64 for exact comparisons."""

import contextlib
import dataclasses
import json
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.data.store import Dataset
from alignjax.models import attention, layer, logps, stream, tiles, transformer
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.types import Batch, Params

# Of the three wavelength bands of the scaling, head_dim 8 has dimensions in each.
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64)

# Unoptimised code: the tests compile much more than they compute.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def model(**changes: Any) -> ModelConfig:
    """A decoder of 2 layers, width 32, vocabulary 64."""
    sizes: dict[str, Any] = dict(
        vocab_size=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48
    )
    return ModelConfig(**{**sizes, **changes})


def params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters with every leaf random: a bias that is not used, or used twice, shows."""
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        x = rng.normal(0, 1, leaf.shape)
        name = path[-1].key
        if name == "scale":
            return (1 + 0.2 * x).astype(leaf.dtype)
        return (x * (0.3 if name == "bias" else leaf.shape[-2] ** -0.5)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def batch(
    prompt_length: Any, response_length: Any, *, p: int = 0, r: int = 0, seed: int = 0
) -> Batch:
    """A batch with these lengths, padded to at least p and r; id 0 is a token like any other.

    The tokens of a row depend on its lengths and the seed, not on how much padding there is.
    """
    prompt_length = np.asarray(prompt_length, np.int32)
    response_length = np.asarray(response_length, np.int32)
    b, k = response_length.shape
    p, r = max(p, prompt_length.max()), max(r, response_length.max())
    prompt, response = np.zeros((b, p), np.int32), np.zeros((b, k, r), np.int32)
    rng = np.random.default_rng(seed)
    for i in range(b):
        prompt[i, p - prompt_length[i] :] = rng.integers(0, 64, prompt_length[i])
        for j in range(k):
            n = response_length[i, j]
            response[i, j, :n] = rng.integers(0, 64, n)
    return Batch(
        prompt=prompt,
        prompt_length=prompt_length,
        response=response,
        response_length=response_length,
        weight=np.ones(b, np.float32),
        prompt_id=np.arange(b, dtype=np.int32) * 5 + 2,
    )


def given(
    prompt: np.ndarray, prompt_length: Any, response: np.ndarray, response_length: Any = None
) -> Batch:
    """A batch of these tokens; without lengths every response fills its row."""
    b, k, r = response.shape
    return Batch(
        prompt=prompt,
        prompt_length=np.asarray(prompt_length, np.int32),
        response=response,
        response_length=np.full((b, k), r, np.int32)
        if response_length is None
        else response_length,
        weight=np.ones(b, np.float32),
        prompt_id=np.arange(b, dtype=np.int32),
    )


def ragged(k: int = 3, *, b: int = 3, p: int = 7, r: int = 6, seed: int = 0) -> Batch:
    """Prompts of 1 to p tokens, responses of 0 (absent) to r tokens; each row has a response."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, p + 1, b)
    prompts[: min(b, 2)] = [1, p][: min(b, 2)]
    responses = rng.integers(1, r + 1, (b, k))
    responses[0, 0] = r
    if k > 1:
        responses[-1, -1] = 0
        responses[0, -1] = 1
    return batch(prompts, responses, p=p, r=r, seed=seed)


@contextlib.contextmanager
def float64(config: ModelConfig, *modules: types.ModuleType) -> Iterator[ModelConfig]:
    """The network in float64: every float32 that its code names is read as float64.

    Yields a config that asks for float64, which configs of runs refuse.
    """
    wide = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    exact = dataclasses.replace(config)
    for field in ("dtype", "param_dtype"):
        object.__setattr__(exact, field, "float64")
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(True))
        for module in (attention, tiles, stream, layer, transformer, logps, *modules):
            stack.enter_context(mock.patch.object(module, "jnp", wide))
        yield exact


def dataset(
    rows: int,
    *,
    k: int = 2,
    objectives: int = 1,
    labels: bool = False,
    longest: tuple[int, int] = (20, 12),
    lists: bool = False,
    seed: int = 0,
) -> Dataset:
    """Prepared rows in memory; ids are 1 to 63. ``lists``: rows hold 1 to k responses."""
    rng = np.random.default_rng(seed)
    kept, prompt_length = [], rng.integers(1, longest[0] + 1, rows).astype(np.int32)
    response_length = rng.integers(1, longest[1] + 1, (rows, k)).astype(np.int32)
    if lists:
        response_length *= np.arange(k) < rng.integers(1, k + 1, (rows, 1))
        response_length[0] = 1  # some row has all k
    for i in range(rows):
        lengths = response_length[i][response_length[i] > 0]
        n = len(lengths)
        kept.append(
            {
                "id": f"row{i}".encode(),
                "domain": b"",
                "prompt": f"prompt {i // 2}".encode(),  # every prompt twice
                "responses": json.dumps([f"response {j}" for j in range(n)]).encode(),
                "prompt_ids": rng.integers(1, 64, prompt_length[i]).astype(np.int32),
                "response_ids": rng.integers(1, 64, lengths.sum()).astype(np.int32),
                "response_length": lengths,
                "scores": rng.normal(size=n * objectives).astype(np.float32),
                "desirable": rng.integers(0, 2, n) if labels else np.zeros(0, np.int64),
            }
        )
    return Dataset(
        prompt_length=prompt_length,
        response_length=response_length,
        objectives=tuple(f"score{m}" for m in range(objectives)),
        labels=_labels(kept),
        digest=f"digest of {rows} rows, seed {seed}",
        report={},
        path="memory",
        _rows=kept,
    )


def bits(tree: Any) -> Any:
    """A copy of every array's bytes, which outlives a donation."""

    def one(x: Any) -> bytes:
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return np.asarray(x).tobytes()

    return jax.tree.map(one, tree)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two trees of arrays, or of their `bits`, are the same to the last bit."""
    first, second = (
        x if isinstance(jax.tree.leaves(x)[0], bytes) else bits(x) for x in (one, other)
    )
    return bool(jax.tree.leaves(first) == jax.tree.leaves(second))


def _labels(rows: list[dict[str, Any]]) -> tuple[int, int]:
    labels = np.concatenate([row["desirable"] for row in rows])
    return int(labels.sum()), int(len(labels) - labels.sum())
