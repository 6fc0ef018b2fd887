"""Attention: K responses attend to one shared prompt, and each to itself.

A batch stores every prompt once. Its keys and values are computed once too, and all K responses
attend to them and to their own. `attend` serves full passes, `attend_token` decoding.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models.config import RopeScaling
from alignjax.types import Array

TILE = 64  # positions of a cache that are read at once
_MASKED = -1e30  # finite, so that a query without keys gives numbers, not NaN


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
      scale: factor of the scores; None: ``D ** -0.5``.
      softcap: c in ``c * tanh(score / c)``; None: no cap.

    Returns:
      ``[B, K, T, H, D]``. Scores and softmax are float32 for any input dtype.
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
    # One softmax over both parts; they have different batch axes, so they are not concatenated.
    top = jnp.maximum(prefix.max(-1, keepdims=True), own.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    prefix, own = jnp.exp(prefix - top), jnp.exp(own - top)
    total = prefix.sum(-1) + own.sum(-1)  # [B, K, G, H/G, T]
    out = jnp.einsum("bkghts,bsgd->bktghd", prefix.astype(query.dtype), shared_value)
    out = out + jnp.einsum("bkghts,bksgd->bktghd", own.astype(query.dtype), value)
    out = out / jnp.moveaxis(total, -1, 2)[..., None].astype(query.dtype)
    return out.reshape(b, k, t, h, d)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Cached keys and values, which a new token of each response attends to."""

    shared_key: Array  # [B, G, P, D], of the prefix that all K responses share
    shared_value: Array
    key: Array  # [layers, B, K, G, S, D], of the responses; S is a multiple of `TILE` or below it
    value: Array
    layer: Array  # int32 scalar, the layer to read
    filled: Array  # int32 scalar, how many of the S positions hold a token


def attend_token(
    query: Array,
    key: Array,
    value: Array,
    kept: Kept,
    shared_mask: Array,
    near: Callable[[Array], Array],
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention of one token of each response to itself and to the cache.

    Only the filled tiles of the cache are read. Their number is dynamic, so a loop joins them with
    a running maximum and sum.

    Args:
      query: ``[B, K, H, D]``.
      key, value: ``[B, K, G, D]``, of the token itself; G divides H (grouped queries).
      kept: the cache.
      shared_mask: ``[B, P]`` bool, True where a query may look at a prefix token.
      near: ``[S'] positions -> [S'] bool``, True where a query may look at its own response.
      scale, softcap: as in `attend`.

    Returns:
      ``[B, K, H, D]``. Scores and softmax are float32 for any input dtype.
    """
    b, k, h, d = query.shape
    groups = key.shape[2]
    grouped = query.reshape(b, k, groups, h // groups, d)
    factor = d**-0.5 if scale is None else scale

    def scores(equation: str, keys: Array) -> Array:
        raw = jnp.einsum(equation, grouped, keys, preferred_element_type=jnp.float32)
        return soft_cap(factor * raw, softcap)

    def join(so_far: tuple[Array, ...], scored: Array, equation: str, values: Array) -> Any:
        """Adds scores ``[B, K, G, H/G, S']`` to the running maximum, sum and mixed values."""
        top, total, mixed = so_far
        new_top = jnp.maximum(top, scored.max(axis=-1))
        shrink = jnp.exp(top - new_top)
        weights = jnp.exp(scored - new_top[..., None])
        added = jnp.einsum(equation, weights.astype(query.dtype), values).astype(jnp.float32)
        total = total * shrink + weights.sum(axis=-1)
        return new_top, total, mixed * shrink[..., None] + added

    own = scores("bkghd,bkgsd->bkghs", key[:, :, :, None])[..., 0]
    mixed = jnp.broadcast_to(value[:, :, :, None].astype(jnp.float32), grouped.shape)
    so_far = (own, jnp.ones_like(own), mixed)
    prefix = scores("bkghd,bgpd->bkghp", kept.shared_key)
    prefix = jnp.where(shared_mask[:, None, None, None], prefix, _MASKED)
    so_far = join(so_far, prefix, "bkghp,bgpd->bkghd", kept.shared_value)

    size = min(TILE, kept.key.shape[4])

    def add_tile(number: Array, so_far: tuple[Array, ...]) -> tuple[Array, ...]:
        first = number * size
        key, value = (
            jax.lax.dynamic_slice(
                x, (kept.layer, 0, 0, 0, first, 0), (1, *x.shape[1:4], size, x.shape[5])
            )[0]
            for x in (kept.key, kept.value)
        )
        position = first + jnp.arange(size)
        seen = (position < kept.filled) & near(position)
        scored = jnp.where(seen, scores("bkghd,bkgsd->bkghs", key), _MASKED)
        return join(so_far, scored, "bkghs,bkgsd->bkghd", value)

    tiles = (kept.filled + size - 1) // size
    _, total, mixed = jax.lax.fori_loop(0, tiles, add_tile, so_far)
    return (mixed / total[..., None]).astype(query.dtype).reshape(b, k, h, d)


def soft_cap(x: Array, cap: float | None) -> Array:
    """Returns ``cap * tanh(x / cap)``: about x if x is small, never beyond the cap; None: x."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Array:
    """Returns angular frequencies in radians per token, ``[head_dim / 2]`` float32.

    Linear scaling divides all by ``factor``. With llama3, wavelengths longer than
    ``original_length / low_freq_factor`` are stretched by ``factor``, those shorter than
    ``original_length / high_freq_factor`` are kept, and those between are interpolated linearly in
    ``original_length / wavelength``. Dynamic scaling changes nothing up to ``original_length``
    tokens; longer sequences are refused (`transformer.check_length`).
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
    """Applies rotary position embedding; dimension i pairs with i + D/2.

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
