"""Lays a batch out as a stream of tokens: its rows end to end, without padding.

A row is its prompt followed by its K responses. Rows without a response, such as fillers, take no
room. Each place (a device, or a group that shares its rows) lays out its own rows in one stream, so
the assignment of rows to streams depends on the mesh only.

A stream has room for a fixed number of tokens. Rows that do not fit go into further streams, which
run one after the other: `parts` assigns rows to streams.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from alignjax.models import layout
from alignjax.models.tiles import TILE, Seen
from alignjax.types import Array, Batch

# Default number of tokens that run through the network at a time on a device: enough for fast
# matrix products, few enough for a laptop.
AT_ONCE = 1024


@flax.struct.dataclass(kw_only=True)
class Stream:
    """The tokens of B rows in S places, each a stream of T tokens."""

    token: Array  # [S, T] int32
    seen: Seen  # [S, T] each
    row: Array  # [S, T] int32, its row of the batch
    number: Array  # [S, T] int32, its number in the row, independent of the other rows
    # The response tokens of a place, in the first of T entries: the token before each, and its id.
    before: Array  # [S, T] int32
    target: Array  # [S, T] int32
    scored: Array  # [S] int32, the number of response tokens
    first: Array  # [B, K] int32, the entry of a response's first token among them
    last: Array  # [B, K] int32, the position in the stream of a response's last token


def lengths(batch: Batch) -> Array:
    """Counts the tokens of each row in a stream, ``[B]``; 0 for a row without a response."""
    tokens = batch.response_length.sum(axis=1)
    return jnp.where(tokens > 0, batch.prompt_length + tokens, 0)


def whole_tiles(tokens: int) -> int:
    """Rounds a number of tokens up to whole tiles."""
    return -(-tokens // TILE) * TILE


def rows_of_place(batch: Batch) -> int:
    """Counts the rows of a place."""
    b = len(batch.prompt)
    return b // layout.places(batch.prompt, b)


def most(batch: Batch) -> int:
    """Returns the most tokens that a place can have, with all padding, in whole tiles."""
    _, k, r = batch.response.shape
    return whole_tiles(rows_of_place(batch) * (batch.prompt.shape[1] + k * r))


def pack(batch: Batch) -> Stream:
    """Lays a batch out in streams of ``batch.room`` tokens; 0: room for all."""
    b, k, r = batch.response.shape
    places = layout.places(batch.prompt, b)
    prompt_length = jnp.where(lengths(batch) > 0, batch.prompt_length, 0)
    of_part = jnp.concatenate([prompt_length[:, None], batch.response_length], axis=1)
    ids = jnp.concatenate([batch.prompt, batch.response.reshape(b, k * r)], axis=1)
    lay_out = functools.partial(_lay_out, room=batch.room or most(batch), widths=(ids.shape[1], r))
    out: Stream = jax.vmap(lay_out)(*(x.reshape(places, b // places, -1) for x in (of_part, ids)))
    out = dataclasses.replace(
        out,
        row=out.row + jnp.arange(places)[:, None] * (b // places),
        first=out.first.reshape(b, k),
        last=out.last.reshape(b, k),
    )
    return jax.tree.map(layout.of_rows, out)


def _lay_out(of_part: Array, ids: Array, *, room: int, widths: tuple[int, int]) -> Stream:
    """Lays out the rows of one place; rows are numbered from 0.

    Args:
      of_part: ``[rows, 1 + K]`` int32, lengths of the prompt and of each response.
      ids: ``[rows, P + K*R]`` int32, padded.
      room: T.
      widths: P + K*R and R.
    """
    rows, k = len(of_part), of_part.shape[1] - 1
    p = widths[0] - k * widths[1]
    end = jnp.cumsum(of_part.reshape(-1)).astype(jnp.int32)
    start = end - of_part.reshape(-1)
    slot = jnp.arange(room, dtype=jnp.int32)
    filled = slot < end[-1]
    part = jnp.searchsorted(end, slot, side="right", method="scan_unrolled").astype(jnp.int32)
    part = jnp.minimum(part, len(end) - 1)
    row, branch = part // (1 + k), part % (1 + k)
    prompt, offset = row * (1 + k), slot - start[part]
    is_prompt, prompt_length = branch == 0, of_part[row, 0]
    column = jnp.where(is_prompt, p - prompt_length, p + (branch - 1) * widths[1]) + offset
    token = jnp.where(filled, ids.reshape(-1)[row * widths[0] + column], 0)
    seen = Seen(
        part=jnp.where(filled, part, -1),
        prompt=jnp.where(filled, prompt, -1),
        position=jnp.where(filled, jnp.where(is_prompt, 0, prompt_length) + offset, 0),
    )
    (at,) = jnp.nonzero(filled & ~is_prompt, size=room, fill_value=0)
    # The prompt's last token precedes the first token of every response.
    opening = start[prompt[at]] + prompt_length[at] - 1
    before = jnp.where(start[part[at]] == at, opening, at - 1)
    responses = of_part[:, 1:].reshape(-1)
    return Stream(
        token=token,
        seen=seen,
        row=row,
        number=branch * 2**16 + offset,
        before=jnp.where(slot < responses.sum(), before, 0).astype(jnp.int32),
        target=token[at],
        scored=responses.sum().astype(jnp.int32),
        first=(jnp.cumsum(responses) - responses).reshape(rows, k),
        last=jnp.maximum(end.reshape(rows, 1 + k)[:, 1:] - 1, 0),
    )


def by_response(values: Array, stream: Stream, batch: Batch) -> Array:
    """Moves values of response tokens from ``[S, T]`` to ``[B, K, R]``, 0 at padding."""
    b, k, r = batch.response.shape
    places, room = values.shape
    t = jnp.arange(r)
    at = jnp.minimum(stream.first[..., None] + t, room - 1)
    padded = jnp.take_along_axis(values, at.reshape(places, -1), axis=1).reshape(b, k, r)
    return jnp.where(t < batch.response_length[..., None], padded, 0.0)


def parts(batch: Batch, room: int) -> tuple[Array, Array]:
    """Assigns the rows of each place to streams of ``room`` tokens, by first-fit of sorted rows.

    Args:
      batch: no row is longer than ``room``.
      room: tokens of a stream.

    Returns:
      The stream of each row, ``[B]`` int32; and the tokens of stream i in the place where it is
      fullest, ``[B]`` int32, 0 if there is no such stream.
    """
    b = len(batch.prompt)
    places = layout.places(batch.prompt, b)
    rows = b // places

    def assign(tokens: Array) -> tuple[Array, Array]:
        order = jnp.argsort(-tokens, stable=True)

        def put(used: Array, row: Array) -> tuple[Array, Array]:
            to = jnp.argmax(used + tokens[row] <= room)
            return used.at[to].add(tokens[row]), to

        used, chosen = jax.lax.scan(put, jnp.zeros(rows, tokens.dtype), order)
        return jnp.zeros(rows, jnp.int32).at[order].set(chosen.astype(jnp.int32)), used

    number, used = jax.vmap(assign)(lengths(batch).reshape(places, rows))
    return number.reshape(b), used.max(axis=0)


def only(batch: Batch, kept: Array) -> Batch:
    """Removes the responses and the weight of all rows except ``kept [B]``."""
    return dataclasses.replace(
        batch,
        response_length=jnp.where(kept[:, None], batch.response_length, 0),
        weight=jnp.where(kept, batch.weight, 0.0),
    )


def in_parts(function: Callable[[Batch], Any], batch: Batch) -> Any:
    """Runs a function on one stream of a batch at a time, and adds the results; without a gradient.

    Args:
      function: returns e.g. a tree of ``[B, K]`` arrays, 0 for absent responses.
      batch: B rows.
    """
    _, k, r = batch.response.shape
    longest = whole_tiles(batch.prompt.shape[1] + k * r)
    most_tokens = most(batch)
    room = min(most_tokens, max(longest, AT_ONCE))
    if batch.room or room == most_tokens:
        return function(batch)
    number, used = parts(batch, room)

    def run(i: Array) -> Any:
        return function(dataclasses.replace(only(batch, number == i), room=room))

    # jit, so that eval_shape and the loop trace it once: both pass an int32 that is not weak.
    run, first = jax.jit(run, inline=True), jnp.int32(0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, first))
    return jax.lax.fori_loop(
        first, (used > 0).sum(), lambda i, sums: jax.tree.map(jnp.add, sums, run(i)), zeros
    )


def over_filled(
    function: Callable[..., Any], tables: Any, arrays: Any, ids: Array, filled: Array, size: int
) -> Any:
    """Applies a function to the filled entries of streams, ``size`` of each at a time.

    The backward pass recomputes each call. A custom gradient is needed because the number of calls
    is dynamic, and JAX does not differentiate such loops.

    Args:
      function: maps ``tables``, ``[S, size, ...]`` arrays and ids to a tree of ``[S, size]``
        arrays.
      tables: shared by all calls; differentiated.
      arrays: a tree of ``[S, N, ...]`` arrays; differentiated.
      ids: ``[S, N]`` int32.
      filled: ``[S]`` int32, the number of filled entries of each stream, its first ones.
      size: entries of a stream in one call.

    Returns:
      A tree of ``[S, N]`` arrays, 0 at entries of no call.
    """
    n = ids.shape[1]
    if size >= n:
        return function(tables, arrays, ids)
    more = -n % size
    ids, arrays = jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)]), (ids, arrays)
    )
    turns = (filled.max() + size - 1) // size
    cut, paste = functools.partial(_cut, size=size), functools.partial(_paste, size=size)

    @jax.custom_vjp
    def run(tables: Any, arrays: Any, ids: Array, turns: Array) -> Any:
        shapes = jax.eval_shape(function, tables, *cut(jnp.int32(0), (arrays, ids)))
        zeros = jax.tree.map(lambda x: jnp.zeros((x.shape[0], n + more), x.dtype), shapes)
        return jax.lax.fori_loop(
            0, turns, lambda i, out: paste(i, out, function(tables, *cut(i, (arrays, ids)))), zeros
        )

    def forward(tables: Any, arrays: Any, ids: Array, turns: Array) -> Any:
        return run(tables, arrays, ids, turns), (tables, arrays, ids, turns)

    def backward(kept: Any, gradient: Any) -> Any:
        tables, arrays, ids, turns = kept

        def body(i: Array, so_far: Any) -> Any:
            part = cut(i, ids)
            _, pull = jax.vjp(lambda t, x: function(t, x, part), tables, cut(i, arrays))
            to_tables, to_arrays = pull(cut(i, gradient))
            sums, out = so_far
            return jax.tree.map(lambda a, x: a + x, sums, to_tables), paste(i, out, to_arrays)

        wide = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "f4")), tables)
        sums, out = jax.lax.fori_loop(0, turns, body, (wide, jax.tree.map(jnp.zeros_like, arrays)))
        return jax.tree.map(lambda x, y: x.astype(y.dtype), sums, tables), out, None, None

    run.defvjp(forward, backward)
    return jax.tree.map(lambda x: x[:, :n], run(tables, arrays, ids, turns))


def _cut(i: Array, tree: Any, size: int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, 1), tree)


def _paste(i: Array, tree: Any, part: Any, size: int) -> Any:
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y.astype(x.dtype), i * size, 1),
        tree,
        part,
    )
