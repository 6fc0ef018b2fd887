"""Splits a batch into parts that pass through the network one after the other, and adds them up.

Parts have different weights, so functions return weighted sums in float32, not means; the sums are
divided once at the end. So the split changes only rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alignjax.errors import UserError
from alignjax.models import stream
from alignjax.models.stream import whole_tiles
from alignjax.types import Array, Batch, Metrics, Params

_SIZES = 3  # sizes of parts at most; the program of a step has a copy of the network for each
_LEAST = 512  # tokens of the smallest size that is worth a copy of the network
_SAVES = 0.04  # share of all tokens that another size must save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rooms:
    """How many tokens of a device's rows pass through the network at a time."""

    sizes: tuple[int, ...] = ()  # ascending; a part gets the smallest that holds it
    longest: int = 0  # tokens of the longest row of the data; 0: unknown, at most a padded row's
    given: int = 0  # train.microbatch_tokens; 0: as many as the longest row needs
    whole: bool = False  # every batch is one part, because the loss compares its rows
    padded: bool = False  # a fused kernel takes padded rows: parts have equal numbers of rows

    def at(self, batch: Batch) -> tuple[int, ...]:
        """Computes the sizes for a batch; none is larger than the whole batch needs.

        Raises:
          UserError: a row may be longer than ``given``.
        """
        k, r = batch.response.shape[1:]
        if self.whole:
            most = stream.most(batch)
            return (*(size for size in self.sizes if size < most), most)
        most, longest = stream.most(batch), self.longest or batch.prompt.shape[1] + k * r
        if 0 < self.given < longest:
            raise UserError(
                f"train.microbatch_tokens: wanted at least {longest}, the tokens of the longest "
                f"prompt with its {k} responses, found {self.given}"
            )
        sizes = self.sizes or (whole_tiles(self.given) or stream.AT_ONCE,)
        if sizes[-1] < longest:
            sizes = (*sizes, whole_tiles(longest))
        below = tuple(size for size in sizes if size < most)
        return sizes if below == sizes else (*below, most)

    def single(self, batch: Batch) -> bool:
        """Tells whether every batch of this shape is one part."""
        if self.padded:
            return self.equal_parts(batch) == 1
        return self.at(batch)[-1] == stream.most(batch)

    def equal_parts(self, batch: Batch) -> int:
        """Computes the number of parts of a batch of padded rows; a part has at least one row."""
        rows, (k, r) = stream.rows_of_place(batch), batch.response.shape[1:]
        if self.whole or not self.given:
            return 1
        fitting = max(1, self.given // (batch.prompt.shape[1] + k * r))
        return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)


AUTO = Rooms()


def weighted_sums(loss: Array, metrics: Metrics, weight: Array) -> tuple[Array, Metrics]:
    """Computes ``sum_b weight_b x_b`` of the losses and of every metric, in float32.

    Rows of weight 0 do not count, even if their values are NaN.

    Raises:
      AssertionError: the losses or a metric are not ``[B]``. A loss of ``[B, 1]`` would broadcast
        with the weights to ``[B, B]``, and its mean would be wrong.
    """
    chex.assert_equal_shape([weight, loss, *metrics.values()])

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(weight > 0, x.astype(jnp.float32) * weight, 0.0))

    return total(loss), {name: total(x) for name, x in metrics.items()}


def split(batch: Batch, parts: int) -> Batch:
    """Reshapes ``[B, ...]`` to ``[parts, B / parts, ...]``; row i goes to part i % parts.

    So every row stays on its device.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )


def add_up(function: Callable[[Batch], Any], batch: Batch, rooms: Rooms) -> Any:
    """Adds up a function over the parts of a batch, in float32.

    Args:
      function: from a batch to a tree of sums over rows. The batch has some of the rows, or all
        rows, some of them without weight and responses.
      batch: all rows.
      rooms: how many tokens pass through the network at a time.
    """
    if rooms.padded:
        count = rooms.equal_parts(batch)
        if count == 1:
            return function(batch)
        rows = split(batch, count)
        return _loop(count, lambda i: function(jax.tree.map(lambda x: x[i], rows)))
    sizes = rooms.at(batch)
    if sizes == (stream.most(batch),):
        return function(batch)
    number, used = stream.parts(batch, sizes[-1])

    def one(i: Array) -> Any:
        rows = stream.only(batch, number == i)
        ways = [functools.partial(_with_room, function, size) for size in sizes]
        return jax.lax.switch(jnp.searchsorted(jnp.array(sizes), used[i]), ways, rows)

    return one(jnp.int32(0)) if rooms.single(batch) else _loop((used > 0).sum(), one)


def _with_room(function: Callable[[Batch], Any], size: int, rows: Batch) -> Any:
    return function(dataclasses.replace(rows, room=size))


def _loop(count: int | Array, one: Callable[[Array], Any]) -> Any:
    """Adds up ``one(0), ..., one(count - 1)``."""
    # Traced once for both its shapes and the loop, as neither argument is weakly typed.
    one, first = jax.jit(one, inline=True), jnp.int32(0)
    shapes = jax.eval_shape(one, first)
    # float32 even for bfloat16 parameters: a small gradient added to a large sum would vanish.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "f4")), shapes)

    def body(i: Array, sums: Any) -> Any:
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), sums, one(i))

    return jax.lax.fori_loop(first, jnp.int32(count), body, zeros)


def add_gradients(
    sums: Callable[[Params, Batch], tuple[Array, Metrics]],
    params: Params,
    batch: Batch,
    rooms: Rooms,
) -> tuple[tuple[Array, Metrics], Params]:
    """Adds up losses, metrics and gradients of a function over the parts of a batch.

    Args:
      sums: ``(params, rows) -> (sum of losses, sums of metrics)``.
      params: at which the gradient is computed.
      batch, rooms: as in `add_up`.
    """
    gradient = jax.value_and_grad(sums, has_aux=True)
    out: tuple[tuple[Array, Metrics], Params] = add_up(
        functools.partial(gradient, params), batch, rooms
    )
    return out


def choose_sizes(tokens: np.ndarray, room: int) -> tuple[int, ...]:
    """Chooses sizes of parts from the rows' lengths, such that little of a part is padding.

    Args:
      tokens: ``[batches, S, B / S]`` lengths of the rows that S places have in some batches.
      room: largest size allowed, in tokens; no row is longer.
    """
    fills = whole_tiles_of(np.concatenate([fills_of(batch, room) for batch in tokens]))
    sizes = np.unique(np.maximum(fills, min(_LEAST, fills.max())))
    chosen = [int(sizes[-1])]

    def cost(chosen: list[int]) -> int:
        """Adds up the sizes of all parts, each the smallest that holds it."""
        ascending = np.sort(chosen)
        return int(ascending[np.searchsorted(ascending, fills)].sum())

    while len(chosen) < _SIZES:
        best = min(sizes.tolist(), key=lambda size: cost([*chosen, size]))
        if cost([*chosen, best]) > (1 - _SAVES) * cost(chosen):
            break
        chosen.append(best)
    return tuple(sorted(chosen))


def whole_tiles_of(tokens: np.ndarray) -> np.ndarray:
    """Rounds up to whole tiles; at least one."""
    return np.maximum(-(-tokens // stream.TILE), 1) * stream.TILE


def fills_of(tokens: np.ndarray, room: int) -> np.ndarray:
    """Counts the tokens in each part of a batch, at its fullest place, split as `stream.parts`."""
    used = np.zeros(tokens.shape, np.int64)
    for place, rows in enumerate(tokens):
        for length in np.sort(rows)[::-1]:
            used[place, np.argmax(used[place] + length <= room)] += length
    most = used.max(axis=0)
    return most[most > 0] if most.any() else np.ones(1, np.int64)
