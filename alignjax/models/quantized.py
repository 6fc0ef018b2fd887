"""A frozen base in 8 or 4 bits: codes and scales in the place of each projection's kernel.

Equation (Section 3, of which the second quantisation of the scales is left out)::

    Y = X doubleDequant(c_1, c_2, W_NF4) + X L_1 L_2                                       (5)

``int8``: ``W = scale * code``, one scale for each output. ``nf4``: ``W = scale * level[code]``, one
scale for each output and block of 64 inputs; the 16 levels are quantiles of a normal distribution.
Scales are float32: 8 bits and 4.5 bits a weight. Embeddings, norms, biases and the output head stay
as they are.

======================  ==========================================================
paper                   here
======================  ==========================================================
W_NF4                   ``layers/q/kernel/codes``, uint8 ``[layers, in, out / 2]``
c_1, c_2                ``layers/q/kernel/scale``, float32 ``[layers, in / 64, out]``
L_1, L_2                the adapters of `lora`
======================  ==========================================================

The numbers are qwix's (``quantize``, ``dequantize``). The library keeps a 4-bit code in a byte
where the backend does not pack them; here two share a byte on every backend.

Differs from the paper: scales are float32, not quantised again, which takes 0.37 bits more.
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
    import qwix  # quick to load, but only runs that quantise need it

    block = math.gcd(kernel.shape[1], BLOCK)

    def layer(x: Array) -> dict[str, Array]:
        x = x.astype(jnp.float32)
        if kind == "int8":
            q = qwix.quantize(x, jnp.int8, channelwise_axes=(1,))
            return {"codes": q.qvalue, "scale": q.scale}
        q = qwix.quantize(x, "nf4", channelwise_axes=(1,), tiled_axes={0: block})
        codes = q.qvalue.astype(jnp.uint8)
        return {"codes": codes[:, ::2] | codes[:, 1::2] << 4, "scale": q.scale}

    return jax.lax.map(layer, kernel)  # a layer at a time: float32 copies stay small


def decode(leaves: dict[str, Array]) -> Array:
    """Decodes codes and scales, of all layers or of one, to ``[..., in, out]`` float32 kernels."""
    import qwix

    codes, kind = leaves["codes"], "int8"
    if codes.dtype == jnp.uint8:
        halves = jnp.stack([codes & 15, codes >> 4], axis=-1)
        codes, kind = halves.reshape(*codes.shape[:-1], -1), "nf4"
    return qwix.dequantize(qwix.QArray(codes, leaves["scale"], qtype=kind))


# Recomputed in the backward pass: kept, the kernels of all layers would be in memory at once.
@jax.checkpoint
def product(x: Array, leaves: dict[str, Array]) -> Array:
    """``x W`` of one layer, in x's dtype; W is decoded for this product alone.

    Args:
      x: ``[B, S, in]``.
      leaves: codes and scale of one projection.
    """
    return x @ decode(leaves).astype(x.dtype)


def decode_params(params: Params) -> Params:
    """Decodes every quantised kernel of a parameter tree, to the type of its norms."""
    stored = params["norm"]["scale"].dtype
    layers = {
        name: {**own, "kernel": decode(own["kernel"]).astype(stored)}
        if isinstance(own.get("kernel"), dict)
        else own
        for name, own in params["layers"].items()
    }
    return {**params, "layers": layers}


def kernel_name(path: str) -> bool:
    """Whether a parameter is a projection's kernel: those alone are quantised."""
    return path.startswith("layers/") and path.endswith("/kernel")
