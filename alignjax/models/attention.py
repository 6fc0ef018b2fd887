"""Attention, in one place: K continuations attend to one shared prompt and each to itself.

A batch stores every prompt once. Its keys and values are computed once too, and all K responses
attend to them, beside their own. Training, scoring and sampling call the same function; they
differ only in how many query tokens there are and in what the masks let through.
"""

import jax
import jax.numpy as jnp

from alignjax.models.config import RopeScaling
from alignjax.types import Array

_MASKED = -1e30  # finite, so that a row with nothing to attend to gives numbers rather than NaN


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array,
    *,
    shared_key: Array | None = None,
    shared_value: Array | None = None,
    shared_mask: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention over a sequence's own tokens and, jointly, a shared prefix.

    Args:
      query: ``[B, K, T, H, D]``, T query tokens of K sequences.
      key, value: ``[B, K, S, G, D]``, the sequences' own tokens; G divides H (grouped queries).
      mask: ``[T, S]`` or ``[B, K, T, S]`` bool, True where a query may look at an own token.
      shared_key, shared_value: ``[B, P, G, D]``, the prefix that all K sequences share.
      shared_mask: ``[B, P]`` or ``[B, T, P]`` bool, True where a query may look at a prefix token.
        All three or none.
      scale: what scores are multiplied by; None: ``D ** -0.5``.
      softcap: c in ``c * tanh(score / c)``; None: scores as they are.

    Returns:
      ``[B, K, T, H, D]``. Scores and softmax are float32 whatever the input type.
    """
    b, k, t, h, d = query.shape
    groups = key.shape[3]
    grouped = query.reshape(b, k, t, groups, h // groups, d)

    def scores(equation: str, keys: Array) -> Array:
        raw = jnp.einsum(equation, grouped, keys, preferred_element_type=jnp.float32)
        return soft_cap((d**-0.5 if scale is None else scale) * raw, softcap)

    own = scores("bktghd,bksgd->bkghts", key)
    own_mask = mask if mask.ndim == 2 else mask[:, :, None, None]
    own = jnp.where(own_mask, own, _MASKED)
    if shared_key is None or shared_value is None or shared_mask is None:
        weights = jax.nn.softmax(own, axis=-1).astype(query.dtype)
        out = jnp.einsum("bkghts,bksgd->bktghd", weights, value)
        return out.reshape(b, k, t, h, d)

    prefix = scores("bktghd,bsgd->bkghts", shared_key)
    each = shared_mask[:, None] if shared_mask.ndim == 2 else shared_mask  # [B, 1 or T, P]
    prefix = jnp.where(each[:, None, None, None], prefix, _MASKED)
    # One softmax over both parts, without joining them: the parts have different batch axes.
    top = jnp.maximum(prefix.max(-1, keepdims=True), own.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    prefix, own = jnp.exp(prefix - top), jnp.exp(own - top)
    total = prefix.sum(-1) + own.sum(-1)  # [B, K, G, H/G, T]
    out = jnp.einsum("bkghts,bsgd->bktghd", prefix.astype(query.dtype), shared_value)
    out = out + jnp.einsum("bkghts,bksgd->bktghd", own.astype(query.dtype), value)
    out = out / jnp.moveaxis(total, -1, 2)[..., None].astype(query.dtype)
    return out.reshape(b, k, t, h, d)


def soft_cap(x: Array, cap: float | None) -> Array:
    """``cap * tanh(x / cap)``: nearly x where x is small, never beyond the cap; None: x itself."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """``[head_dim / 2]`` float32 angular frequencies, radians per token.

    With ``scaling`` of kind linear, all are divided by ``factor``. With llama3, wavelengths longer
    than ``original_length / low_freq_factor`` are stretched by ``factor``, those shorter than
    ``original_length / high_freq_factor`` are kept, and those between are interpolated linearly in
    ``original_length / wavelength``. Dynamic scaling begins beyond ``original_length`` tokens.
    """
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1.0 / theta**exponent
    if scaling is None or scaling.kind == "dynamic":
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    turns = scaling.original_length * frequency / (2 * jnp.pi)  # within the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = jnp.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return frequency * (keep + (1.0 - keep) / scaling.factor)


def rotate(x: Array, angle: Array) -> Array:
    """Rotary position embedding, halves convention (dimension i pairs with i + D/2).

    Args:
      x: ``[..., heads, D]`` queries or keys.
      angle: ``[..., D / 2]`` float32, position times frequency.

    Returns:
      The rotated array, in x's dtype; computed in float32.
    """
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.astype(x.dtype)
