"""Quantises a frozen base to 8 or 4 bits: codes and scales replace each projection's kernel.

Equation (Section 3; here the scales are not quantised again)::

    Y = X doubleDequant(c_1, c_2, W_NF4) + X L_1 L_2                                       (5)

``int8``: ``W = scale * code``, one scale per output. ``nf4``: ``W = scale * level[code]``, one
scale per output and block of 64 inputs; the 16 levels are quantiles of a normal distribution.
Scales are float32: 8 and 4.5 bits per weight. Embeddings, norms, biases and the output head are
not quantised.

======================  ==========================================================
paper                   here
======================  ==========================================================
W_NF4                   ``layers/q/kernel/codes``, uint8 ``[layers, in, out / 2]``
c_1, c_2                ``layers/q/kernel/scale``, float32 ``[layers, in / 64, out]``
L_1, L_2                the adapters of `lora`
======================  ==========================================================

qwix computes codes and scales (``quantize``, ``dequantize``). On some backends it keeps a 4-bit
code in a byte; here two codes share a byte on every backend.

Differs from the paper: scales are float32, not quantised again: 0.37 more bits per weight.
Reference: Dettmers et al., QLoRA, arXiv 2305.14314; code google/qwix.
"""

import functools
import math

import jax
import jax.numpy as jnp

from alignjax.types import Array, Params

BLOCK = 64  # inputs that share a scale in nf4


@functools.partial(jax.jit, static_argnames="kind")
def encode(kernel: Array, kind: str) -> dict[str, Array]:
    """Quantises stacked kernels to codes and scales.

    Args:
      kernel: ``[layers, in, out]``; out is even.
      kind: int8 | nf4.
    """
    import qwix  # only runs that quantise need it

    block = math.gcd(kernel.shape[1], BLOCK)

    def layer(x: Array) -> dict[str, Array]:
        x = x.astype(jnp.float32)
        if kind == "int8":
            q = qwix.quantize(x, jnp.int8, channelwise_axes=(1,))
            return {"codes": q.qvalue, "scale": q.scale}
        q = qwix.quantize(x, "nf4", channelwise_axes=(1,), tiled_axes={0: block})
        codes = q.qvalue.astype(jnp.uint8)
        return {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": q.scale}

    return jax.lax.map(layer, kernel)  # one layer at a time: float32 copies stay small


def decode(leaves: dict[str, Array]) -> Array:
    """Decodes codes and scales, of all layers or of one, to ``[..., in, out]`` float32 kernels."""
    import qwix

    codes, kind = leaves["codes"], "int8"
    if codes.dtype == jnp.uint8:
        halves = jnp.stack([codes & 15, codes >> 4], axis=-1)
        codes, kind = halves.reshape(*codes.shape[:-1], -1), "nf4"
    return qwix.dequantize(qwix.QArray(codes, leaves["scale"], qtype=kind))


# Recomputed in the backward pass, because the decoded kernels of all layers need much memory.
@jax.checkpoint
def product(x: Array, leaves: dict[str, Array]) -> Array:
    """Computes ``x W`` of one layer, in x's dtype; decodes W only for this product.

    Args:
      x: ``[B, S, in]``.
      leaves: codes and scale of one projection.
    """
    return x @ decode(leaves).astype(x.dtype)


def decode_params(params: Params) -> Params:
    """Decodes every quantised kernel of a parameter tree, to the dtype of its norms."""
    stored = params["norm"]["scale"].dtype
    layers = {
        name: {**own, "kernel": decode(own["kernel"]).astype(stored)}
        if isinstance(own.get("kernel"), dict)
        else own
        for name, own in params["layers"].items()
    }
    return {**params, "layers": layers}


def kernel_name(path: str) -> bool:
    """Whether a parameter is a projection's kernel; only these are quantised."""
    return path.startswith("layers/") and path.endswith("/kernel")
