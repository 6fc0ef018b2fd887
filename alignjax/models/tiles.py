"""Attention over a stream of tokens, computed only for pairs of tiles that are not empty.

A stream is cut into tiles of `TILE` tokens. Most pairs of a query tile and a key tile are empty:
their tokens belong to different rows, or to different responses of one row. The other pairs are
listed once for all layers, and a loop computes a few of them at a time. Their number is known only
on the device, so the loop's length is dynamic. The work depends on the mask, not on the longest
row. The backward pass recomputes the scores.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alignjax.types import Array

TILE = 64  # tokens of a tile's side
_AT_ONCE = 8  # pairs in one iteration
_MASKED = -1e30  # finite, so that a query without keys gives numbers, not NaN


@flax.struct.dataclass(kw_only=True)
class Seen:
    """Which tokens of a stream see which.

    A token sees the earlier tokens of its own part (the prompt, or one response) and its prompt.
    """

    part: Array  # [T] int32, number of the token's part in the stream; -1: no token
    prompt: Array  # [T] int32, number of the part that is its row's prompt; -1: no token
    position: Array  # [T] int32, tokens before it in its own text


def pairs(seen: Seen) -> tuple[Array, Array]:
    """Lists the pairs of tiles in which a token sees another.

    Args:
      seen: parts of a stream are contiguous, and a row's prompt precedes its responses.

    Returns:
      The tiles of query and key, ``[n, 2]`` int32, with n enough for any stream of T tokens; and
      the number of valid pairs, which come first.
    """
    part, prompt = (x.reshape(-1, TILE) for x in (seen.part, seen.prompt))
    count = len(part)
    # Parts are contiguous: if tokens of two tiles share a part (or a row's prompt), it is the last
    # one of the earlier tile and the first one of the later tile.
    of_row = jnp.where((part == prompt) & (prompt == prompt[:, -1:]), prompt, -2).max(axis=1)
    shared = (part[:, -1, None] == part[None, :, 0]) | (of_row[:, None] == prompt[None, :, 0])
    tile = jnp.arange(count)
    holds = (tile[:, None] == tile) | ((tile[:, None] < tile) & shared)  # [key, query]
    holds &= (part[:, 0] >= 0)[:, None] & (part[:, 0] >= 0)
    most = count * (count + 1) // 2
    most = -(-most // _AT_ONCE) * _AT_ONCE
    query, key = jnp.nonzero(holds.T, size=most, fill_value=0)
    return jnp.stack([query, key], axis=1).astype(jnp.int32), holds.sum().astype(jnp.int32)


def attend(
    query: Array,
    key: Array,
    value: Array,
    seen: Seen,
    listed: tuple[Array, Array],
    full: Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Softmax attention over a stream.

    Args:
      query: ``[T, H, D]``; T is a multiple of `TILE`.
      key, value: ``[T, G, D]``; G divides H (grouped queries).
      seen: which tokens see which.
      listed: from `pairs`.
      full: bool scalar, whether to ignore the window.
      window: tokens that a token sees, itself included; None: all.
      scale: factor of the scores; None: ``D ** -0.5``.
      softcap: c in ``c * tanh(score / c)``; None: no cap.

    Returns:
      ``[T, H, D]``; 0 at positions without a token. Scores and softmax are float32.
    """
    t, heads, size = query.shape
    groups = key.shape[1]
    scale = size**-0.5 if scale is None else scale
    tiles = t // TILE
    # Stack the queries of one group, for one product with the keys that they share.
    q = query.reshape(tiles, TILE, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    q = (q * jnp.asarray(scale, q.dtype)).reshape(tiles, groups, -1, size)
    k, v = (x.reshape(tiles, TILE, groups, size).swapaxes(1, 2) for x in (key, value))
    out = _attend((window, softcap), q, k, v, seen, listed, full)
    out = out.reshape(tiles, groups, heads // groups, TILE, size).transpose(0, 3, 1, 2, 4)
    return out.reshape(t, heads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    how: tuple[int | None, float | None],
    query: Array,
    key: Array,
    value: Array,
    seen: Seen,
    listed: tuple[Array, Array],
    full: Array,
) -> Array:
    return _forward(how, query, key, value, seen, listed, full)[0]


def _scores(how: Any, q: Array, k: Array, seen: Seen, full: Array, at: Array, live: Array) -> Any:
    """Computes scores ``[n, G, H/G * TILE, TILE]``, -1e30 if masked, and the cap's slope."""
    window, softcap = how
    raw = jnp.einsum("ngqd,ngkd->ngqk", q, k, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        raw = softcap * jnp.tanh(raw / softcap)
        slope = 1.0 - jnp.square(raw / softcap)
    part, prompt, position = (x.reshape(-1, TILE) for x in (seen.part, seen.prompt, seen.position))
    to, of = at[:, 0], at[:, 1]  # the query's and the key's tile
    key_part = part[of][:, None]
    sees = (part[to][..., None] == key_part) | (prompt[to][..., None] == key_part)
    distance = position[to][..., None] - position[of][:, None]
    sees &= (distance >= 0) & live[:, None, None] & (key_part >= 0)
    if window is not None:
        sees &= (distance < window) | full
    n, groups, rows, _ = raw.shape
    split = raw.reshape(n, groups, rows // TILE, TILE, TILE)
    masked = jnp.where(sees[:, None, None], split, _MASKED)
    return masked.reshape(raw.shape), slope


def _chunk(listed: tuple[Array, Array], number: Array) -> tuple[Array, Array]:
    first = number * _AT_ONCE
    at = jax.lax.dynamic_slice_in_dim(listed[0], first, _AT_ONCE)
    return at, first + jnp.arange(_AT_ONCE) < listed[1]


def _forward(
    how: Any,
    query: Array,
    key: Array,
    value: Array,
    seen: Seen,
    listed: tuple[Array, Array],
    full: Array,
) -> Any:
    tiles, groups, rows, size = query.shape
    top = jnp.full((tiles, groups, rows), _MASKED, jnp.float32)
    total, mixed = jnp.zeros_like(top), jnp.zeros((*top.shape, size), jnp.float32)

    def body(number: Array, so_far: Any) -> Any:
        top, total, mixed = so_far
        at, live = _chunk(listed, number)
        to, of = at[:, 0], at[:, 1]
        scores, _ = _scores(how, query[to], key[of], seen, full, at, live)
        add = functools.partial(jax.ops.segment_sum, segment_ids=to, num_segments=tiles)
        new = top.at[to].max(scores.max(axis=-1))
        weights = jnp.exp(scores - new[to][..., None])
        weights = jnp.where(scores > 0.5 * _MASKED, weights, 0.0)
        shrink = jnp.exp(top - new)
        values = jnp.einsum(
            "ngqk,ngkd->ngqd",
            weights.astype(value.dtype),
            value[of],
            preferred_element_type=jnp.float32,
        )
        total = total * shrink + add(weights.sum(axis=-1))
        return new, total, mixed * shrink[..., None] + add(values)

    chunks = (listed[1] + _AT_ONCE - 1) // _AT_ONCE
    top, total, mixed = jax.lax.fori_loop(0, chunks, body, (top, total, mixed))
    total = jnp.maximum(total, 1e-30)
    out = (mixed / total[..., None]).astype(query.dtype)
    return out, (query, key, value, seen, listed, full, out, top + jnp.log(total))


def _backward(how: Any, kept: Any, gradient: Array) -> Any:
    query, key, value, seen, listed, full, out, norm = kept
    tiles = len(query)
    inner = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    gradient = gradient.astype(query.dtype)

    def body(number: Array, so_far: Any) -> Any:
        at, live = _chunk(listed, number)
        to, of = at[:, 0], at[:, 1]
        q, k, v, g = query[to], key[of], value[of], gradient[to]
        scores, slope = _scores(how, q, k, seen, full, at, live)
        weights = jnp.where(scores > 0.5 * _MASKED, jnp.exp(scores - norm[to][..., None]), 0.0)
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        back = product("ngqd,ngkd->ngqk", g, v) - inner[to][..., None]
        back = weights * back * (1.0 if slope is None else slope)
        back = back.astype(query.dtype)
        to_query = product("ngqk,ngkd->ngqd", back, k)
        to_key = product("ngqk,ngqd->ngkd", back, q)
        to_value = product("ngqk,ngqd->ngkd", weights.astype(query.dtype), g)
        dq, dk, dv = so_far
        add = functools.partial(jax.ops.segment_sum, num_segments=tiles)
        return dq + add(to_query, to), dk + add(to_key, of), dv + add(to_value, of)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
    chunks = (listed[1] + _AT_ONCE - 1) // _AT_ONCE
    gradients = jax.lax.fori_loop(0, chunks, body, zeros)
    dq, dk, dv = (x.astype(y.dtype) for x, y in zip(gradients, (query, key, value), strict=True))
    return dq, dk, dv, None, None, None


_attend.defvjp(_forward, _backward)
