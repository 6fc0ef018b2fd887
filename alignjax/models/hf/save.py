"""Saves parameters in transformers' format: config.json, sharded safetensors, an index."""

import functools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson, tensorfile
from alignjax.models.hf.families import ASIDE, tensor_name
from alignjax.models.hf.load import INDEX
from alignjax.types import Array, Params

SHARD_BYTES = 5 * 10**9  # the most in one file, unless a single tensor is larger

_DROPPED = ("dtype", "auto_map", "transformers_version", "_name_or_path")  # no longer true


def save_model(
    folder: pathlib.Path,
    params: Params,
    config: ModelConfig,
    *,
    dtype: str,
    original: dict[str, Any],
    outputs: tuple[str, ...] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, then the tensors, one at a time, then the index.

    Args:
      folder: exists; the caller renames it when it is complete.
      params: of a policy or a reward model, in the tree of ``init_params``, on any devices of this
        process.
      config: the network.
      dtype: of the stored tensors: float32 | bfloat16.
      original: the config.json of the model that training started from, empty if none. Its family
        and its fields that do not change the computation (token ids, context length) are kept.
      outputs: the names of a reward model's outputs.
      shard_bytes: the most bytes in one file.

    Raises:
      UserError: no family has this combination of options.
    """
    content = configjson.write(config, original.get("model_type", ""), outputs)
    kept = {k: v for k, v in original.items() if k in ASIDE and k not in _DROPPED}
    content = {**kept, **content, "torch_dtype": dtype}
    write_json(folder / "config.json", content)
    sources = _sources(params, config, np.dtype(dtype))
    shards: list[list[tensorfile.Source]] = [[]]
    filled = 0
    for source in sources:
        size = source[1].itemsize * math.prod(source[2])
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(source)
        filled += size
    if len(shards) == 1:
        tensorfile.write(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensorfile.write(folder / name, shard)
        weight_map.update({source[0]: name for source in shard})
    total = sum(s[1].itemsize * math.prod(s[2]) for s in sources)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _sources(params: Params, config: ModelConfig, dtype: np.dtype) -> list[tensorfile.Source]:
    """Lists every tensor, ordered by layer; kernels are transposed, as in files."""
    take = jax.jit(functools.partial(jax.lax.dynamic_index_in_dim, axis=0, keepdims=False))
    outside, layers = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tensor, transposed = tensor_name(name, config), name.endswith("kernel")
        shape = leaf.shape[1:] if "{}" in tensor else leaf.shape
        shape = tuple(shape[::-1] if transposed else shape)

        def get(
            leaf: Array = leaf, transposed: bool = transposed, i: int | None = None
        ) -> np.ndarray:
            array = np.asarray(leaf if i is None else take(leaf, i))
            return array.T if transposed else array

        if "{}" not in tensor:
            outside.append((tensor, dtype, shape, get))
            continue
        layers += [
            (i, (tensor.format(i), dtype, shape, functools.partial(get, i=i)))
            for i in range(leaf.shape[0])
        ]
    return outside + [source for _, source in sorted(layers, key=lambda x: (x[0], x[1][0]))]


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, indented as transformers does."""
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
