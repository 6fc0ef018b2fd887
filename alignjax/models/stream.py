"""A batch as a stream of tokens: its rows end to end, without padding.

A row is its prompt and then its K responses, each as long as it is. Rows without a response, such
as those that only fill a batch up, take no room. Rows are split over places as the devices hold
them, and every place lays out its own: which rows lie in one stream depends on the mesh alone.

A stream has room for a fixed number of tokens. What does not fit into one goes into several, one
after the other: `parts` says which row goes into which.
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

# Tokens that pass through the network at a time on a device, where nobody says how many: enough for
# products that are as quick as they get, few enough for a laptop.
AT_ONCE = 1024


@flax.struct.dataclass(kw_only=True)
class Stream:
    """The tokens of B rows in S places, each a stream of T tokens."""

    token: Array  # [S, T] int32
    seen: Seen  # [S, T] each
    row: Array  # [S, T] int32, which row of the batch
    number: Array  # [S, T] int32, of the token in its row: where it is, whatever lies around it
    # The response tokens of a place, the first ones of T: the token before each, and its own id.
    before: Array  # [S, T] int32
    target: Array  # [S, T] int32
    scored: Array  # [S] int32, how many there are
    first: Array  # [B, K] int32, which of them is the first one of a response
    last: Array  # [B, K] int32, where in its stream is the last token of a response


def lengths(batch: Batch) -> Array:
    """``[B]`` tokens of each row in a stream; 0 for a row without a response."""
    tokens = batch.response_length.sum(axis=1)
    return jnp.where(tokens > 0, batch.prompt_length + tokens, 0)


def whole_tiles(tokens: int) -> int:
    """Rounds up to whole tiles."""
    return -(-tokens // TILE) * TILE


def rows_of_place(batch: Batch) -> int:
    """Counts the rows that a place has."""
    b = len(batch.prompt)
    return b // layout.places(batch.prompt, b)


def most(batch: Batch) -> int:
    """How many tokens a place has at most: all padding counted, in whole tiles."""
    _, k, r = batch.response.shape
    return whole_tiles(rows_of_place(batch) * (batch.prompt.shape[1] + k * r))


def pack(batch: Batch) -> Stream:
    """Lays a batch out in streams with room for ``batch.room`` tokens, or for all."""
    b, k, r = batch.response.shape
    places = layout.places(batch.prompt, b)
    prompt_length = jnp.where(lengths(batch) > 0, batch.prompt_length, 0)
    of_part = jnp.concatenate([prompt_length[:, None], batch.response_length], axis=1)
    ids = jnp.concatenate([batch.prompt, batch.response.reshape(b, k * r)], axis=1)
    one = functools.partial(_lay_out, room=batch.room or most(batch), widths=(ids.shape[1], r))
    out: Stream = jax.vmap(one)(*(x.reshape(places, b // places, -1) for x in (of_part, ids)))
    out = dataclasses.replace(
        out,
        row=out.row + jnp.arange(places)[:, None] * (b // places),
        first=out.first.reshape(b, k),
        last=out.last.reshape(b, k),
    )
    return jax.tree.map(layout.of_rows, out)


def _lay_out(of_part: Array, ids: Array, *, room: int, widths: tuple[int, int]) -> Stream:
    """Lays out the rows of one place; rows count from 0.

    Args:
      of_part: ``[rows, 1 + K]`` int32 tokens of the prompt and of each response.
      ids: ``[rows, P + K*R]`` int32, padded.
      room: T.
      widths: P + K*R and R.
    """
    rows, k = len(of_part), of_part.shape[1] - 1
    p = widths[0] - k * widths[1]
    end = jnp.cumsum(of_part.reshape(-1)).astype(jnp.int32)
    start = end - of_part.reshape(-1)
    slot = jnp.arange(room, dtype=jnp.int32)
    there = slot < end[-1]
    part = jnp.searchsorted(end, slot, side="right", method="scan_unrolled").astype(jnp.int32)
    part = jnp.minimum(part, len(end) - 1)
    row, branch = part // (1 + k), part % (1 + k)
    prompt, offset = row * (1 + k), slot - start[part]
    is_prompt, prompt_length = branch == 0, of_part[row, 0]
    column = jnp.where(is_prompt, p - prompt_length, p + (branch - 1) * widths[1]) + offset
    token = jnp.where(there, ids.reshape(-1)[row * widths[0] + column], 0)
    seen = Seen(
        part=jnp.where(there, part, -1),
        prompt=jnp.where(there, prompt, -1),
        position=jnp.where(there, jnp.where(is_prompt, 0, prompt_length) + offset, 0),
    )
    (at,) = jnp.nonzero(there & ~is_prompt, size=room, fill_value=0)
    # The prompt's last token comes before the first one of every response.
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
    """``[S, T]`` values of scored tokens -> ``[B, K, R]``, 0 at padding."""
    b, k, r = batch.response.shape
    places, room = values.shape
    t = jnp.arange(r)
    at = jnp.minimum(stream.first[..., None] + t, room - 1)
    found = jnp.take_along_axis(values, at.reshape(places, -1), axis=1).reshape(b, k, r)
    return jnp.where(t < batch.response_length[..., None], found, 0.0)


def parts(batch: Batch, room: int) -> tuple[Array, Array]:
    """Deals the rows of every place to as few streams of ``room`` tokens as first-fit finds.

    Args:
      batch: no row is longer than ``room``.
      room: tokens of a stream.

    Returns:
      ``[B]`` int32 the stream of each row; and ``[B]`` int32 the tokens of the fullest place's
      stream i, 0 where there is none.
    """
    b = len(batch.prompt)
    places = layout.places(batch.prompt, b)
    rows = b // places

    def one(tokens: Array) -> tuple[Array, Array]:
        order = jnp.argsort(-tokens, stable=True)

        def put(used: Array, row: Array) -> tuple[Array, Array]:
            to = jnp.argmax(used + tokens[row] <= room)
            return used.at[to].add(tokens[row]), to

        used, chosen = jax.lax.scan(put, jnp.zeros(rows, tokens.dtype), order)
        return jnp.zeros(rows, jnp.int32).at[order].set(chosen.astype(jnp.int32)), used

    number, used = jax.vmap(one)(lengths(batch).reshape(places, rows))
    return number.reshape(b), used.max(axis=0)


def only(batch: Batch, kept: Array) -> Batch:
    """Takes the responses and the weight of all rows but ``kept [B]`` away."""
    return dataclasses.replace(
        batch,
        response_length=jnp.where(kept[:, None], batch.response_length, 0),
        weight=jnp.where(kept, batch.weight, 0.0),
    )


def in_parts(function: Callable[[Batch], Any], batch: Batch) -> Any:
    """Adds up a function over the streams that a batch fills, one at a time; it has no gradient.

    Args:
      function: gives 0 for absent responses; a tree of ``[B, K]`` arrays, say.
      batch: B rows.
    """
    _, k, r = batch.response.shape
    longest = whole_tiles(batch.prompt.shape[1] + k * r)
    whole = most(batch)
    room = min(whole, max(longest, AT_ONCE))
    if batch.room or room == whole:
        return function(batch)
    number, used = parts(batch, room)

    def one(i: Array) -> Any:
        return function(dataclasses.replace(only(batch, number == i), room=room))

    # Traced once, for its shapes and for the loop: both give it an int32 that is not weak.
    one, first = jax.jit(one, inline=True), jnp.int32(0)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first))
    return jax.lax.fori_loop(
        first, (used > 0).sum(), lambda i, sums: jax.tree.map(jnp.add, sums, one(i)), zeros
    )


def over_filled(
    function: Callable[..., Any], tables: Any, arrays: Any, ids: Array, filled: Array, size: int
) -> Any:
    """Applies a function to the filled places of streams, ``size`` of each at a time.

    Args:
      function: from ``tables``, ``[S, size, ...]`` arrays and ids to a tree of ``[S, size]``
        arrays.
      tables: whatever all calls share; differentiated.
      arrays: a tree of ``[S, N, ...]`` arrays; differentiated.
      ids: ``[S, N]`` int32.
      filled: ``[S]`` int32, how many places of each are filled, the first ones.
      size: places at a time; what a call computes is computed again in the backward pass.

    Returns:
      A tree of ``[S, N]`` arrays, 0 at places that are in no call.
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
            mine = cut(i, ids)
            _, pull = jax.vjp(lambda t, x: function(t, x, mine), tables, cut(i, arrays))
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
