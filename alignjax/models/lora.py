"""LoRA: trains two thin matrices beside each targeted projection of a frozen base.

Equation (Section 4.1)::

    h = W x + (alpha / r) B A x                                                            (3)

Here inputs are rows: a projection gives ``x W + (alpha / r) (x A) B``. Training never forms
W + A B, and computes no gradient of W.

======================  ==========================================================
paper                   here
======================  ==========================================================
W_0                     ``layers/q/kernel`` and so on, ``[layers, in, out]``
A, transposed           ``layers/q/lora_a``, ``[layers, in, r]``
B, transposed           ``layers/q/lora_b``, ``[layers, r, out]``, 0 at the start
r, alpha                `LoraConfig.rank`, `LoraConfig.alpha`
======================  ==========================================================

Adapters are a tree of the last two leaves only. `join` puts them beside the kernels, where
`layer.Layer` reads them, without copying a kernel. At the start, policy and base are equal bit for
bit.

Differs from the paper: A is uniform with variance 1 / (3 in), which the paper leaves open. From
the authors' code: nothing else. Adapters are always float32: a step of 1e-4 would be lost in
bfloat16.

Reference: Hu et al., LoRA, arXiv 2106.09685; code microsoft/LoRA.
"""

from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models import quantized
from alignjax.models.config import LoraConfig
from alignjax.types import Array, Params


def init(config: LoraConfig, base: Params, key: Array) -> Params:
    """Initialises adapters.

    Args:
      config: rank and targets.
      base: the network's parameters, or their shapes.
      key: PRNG key of the A matrices.
    """
    layers = {}
    for i, name in enumerate(sorted(config.targets)):
        count, rows, columns = base["layers"][name]["kernel"].shape
        of_target, size = jax.random.fold_in(key, i), count * rows * config.rank
        # A flat draw gives the same numbers and compiles much faster.
        values = jax.random.uniform(of_target, (size,), jnp.float32, -1, 1)
        layers[name] = {
            "lora_a": values.reshape(count, rows, config.rank) * rows**-0.5,
            "lora_b": jnp.zeros((count, config.rank, columns), jnp.float32),
        }
    return {"layers": layers}


def join(
    base: Params,
    adapters: Params,
    config: LoraConfig,
    *,
    key: Array | None = None,
    rows: Array | None = None,
) -> Params:
    """Puts adapters beside the base's kernels, in one tree for ``apply``; no array is copied.

    Args:
      base: the network's parameters.
      adapters: from `init`; other trained leaves (a reward head) replace the base's.
      config: its alpha / rank is multiplied into B, which is small.
      key: key of this step's dropout; None: no dropout.
      rows: ``[B]`` int, `Batch.prompt_id`: a row's dropout depends on the key and this number, not
        on its place in the batch or its device.
    """
    layers = dict(base["layers"])
    for i, (name, own) in enumerate(sorted(adapters["layers"].items())):
        added = {"lora_a": own["lora_a"], "lora_b": own["lora_b"] * (config.alpha / config.rank)}
        if config.dropout and key is not None and rows is not None:
            count = len(own["lora_a"])
            of_row = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
            of_layer = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
            added["lora_keys"] = of_layer(of_row, i * count + jnp.arange(count))  # [layers, B]
            added["lora_dropout"] = jnp.full(count, config.dropout, jnp.float32)
        layers[name] = {**layers[name], **added}
    return {**base, **adapters, "layers": layers}


def without(params: Params) -> Params:
    """Removes the adapters that `join` added, which gives the base; no array is copied."""
    layers = {
        name: {leaf: x for leaf, x in own.items() if not leaf.startswith("lora_")}
        for name, own in params["layers"].items()
    }
    return {**params, "layers": layers}


def low_rank(
    x: Array, leaves: dict[str, Any], row: Array | None = None, number: Array | None = None
) -> Array:
    """Computes ``(alpha / r) (x A) B`` of one layer, in x's dtype.

    Args:
      x: ``[S, T, in]``.
      leaves: this layer's leaves from `join`.
      row: ``[S, T]`` int32, the row of each token, which has a key.
      number: ``[S, T]`` int32, the token's number in its row; with the row's key it determines the
        token's dropout.
    """
    if "lora_keys" in leaves and row is not None and number is not None:
        rate = leaves["lora_dropout"]
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(leaves["lora_keys"][row], number)
        draw = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[2:])))
        kept = draw(keys)
        x = jnp.where(kept, x / (1 - rate), 0.0).astype(x.dtype)
    return (x @ leaves["lora_a"].astype(x.dtype)) @ leaves["lora_b"].astype(x.dtype)


def merge(base: Params, adapters: Params, config: LoraConfig) -> Params:
    """Adds adapters to the base, ``W + (alpha / r) A B``, in float32; keeps the base's dtype.

    A quantised base is decoded first, so the result is the trained network up to rounding.
    """
    base = quantized.decode_params(base)
    layers = dict(base["layers"])
    rest = {name: x for name, x in adapters.items() if name != "layers"}
    rest = {
        name: jax.tree.map(lambda x, y: x.astype(y.dtype), x, base[name])
        for name, x in rest.items()
    }
    for name, own in adapters["layers"].items():
        kernel = layers[name]["kernel"]
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        scaled = own["lora_b"].astype(wide) * (config.alpha / config.rank)
        product = jnp.einsum("lir,lro->lio", own["lora_a"].astype(wide), scaled)
        layers[name] = {**layers[name], "kernel": (kernel + product).astype(kernel.dtype)}
    return {**base, **rest, "layers": layers}
