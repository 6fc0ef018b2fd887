"""A batch taken in one part or in several, and averages over its rows.

A part is what passes through the network at a time. A mean over parts is not the mean of their
means. So sums are carried, in float32, and divided once at the end: which rows make up a part
changes nothing but rounding.
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

_SIZES = 3  # that parts have at most; the program of a step holds the network once for each
_LEAST = 512  # tokens of the smallest size worth a copy of the network
_SAVES = 0.04  # of all tokens: what a size has to save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rooms:
    """How many tokens of a device's rows pass through the network at a time."""

    sizes: tuple[int, ...] = ()  # rising; a part gets the smallest that holds it
    longest: int = 0  # tokens of the longest row that comes, where the data say; 0: a padded row's
    given: int = 0  # what the config gives, tokens at most; 0: as many as the longest row needs
    whole: bool = False  # every batch is taken in one part: the loss compares its rows
    padded: bool = False  # a fused kernel takes padded rows: parts are of equal numbers of rows

    def at(self, batch: Batch) -> tuple[int, ...]:
        """The sizes for a batch; the last one is all that the batch can need if that is less.

        Raises:
          UserError: a row may be longer than the largest.
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
        """Whether every batch of this shape is taken in one part."""
        if self.padded:
            return self.equal_parts(batch) == 1
        return self.at(batch)[-1] == stream.most(batch)

    def equal_parts(self, batch: Batch) -> int:
        """Into how many parts of padded rows a batch is split; a part has at least one row."""
        rows, (k, r) = stream.rows_of_place(batch), batch.response.shape[1:]
        if self.whole or not self.given:
            return 1
        fitting = max(1, self.given // (batch.prompt.shape[1] + k * r))
        return next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= fitting)


AUTO = Rooms()


def weighted_sums(loss: Array, metrics: Metrics, weight: Array) -> tuple[Array, Metrics]:
    """``sum_b weight_b x_b`` of the losses and of every metric, in float32.

    Rows of weight 0 are left out by selection: their values, NaN too, change nothing.

    Raises:
      AssertionError: the losses or a metric are not ``[B]``. A loss of ``[B, 1]`` would broadcast
        against the weights to ``[B, B]`` and train on the wrong mean.
    """
    chex.assert_equal_shape([weight, loss, *metrics.values()])

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(weight > 0, x.astype(jnp.float32) * weight, 0.0))

    return total(loss), {name: total(x) for name, x in metrics.items()}


def split(batch: Batch, parts: int) -> Batch:
    """``[B, ...]`` -> ``[parts, B / parts, ...]``; row i goes to part i % parts.

    So every device keeps the rows it holds.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )


def add_up(function: Callable[[Batch], Any], batch: Batch, rooms: Rooms) -> Any:
    """Adds up a function over the parts of a batch, in float32.

    Args:
      function: of some of the rows, or of all of which some have neither weight nor responses, to
        a tree of sums over rows.
      batch: all rows.
      rooms: what passes through the network at a time.
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
    # Traced once, for its shapes and for the loop: both give it an int32 that is not weak.
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
      params: where the gradient is taken.
      batch, rooms: as in `add_up`.
    """
    gradient = jax.value_and_grad(sums, has_aux=True)
    out: tuple[tuple[Array, Metrics], Params] = add_up(
        functools.partial(gradient, params), batch, rooms
    )
    return out


def choose_sizes(tokens: np.ndarray, room: int) -> tuple[int, ...]:
    """Chooses the sizes of parts that leave little empty: a function of the rows' lengths.

    Args:
      tokens: ``[batches, S, B / S]`` of the rows that the S places have in some batches.
      room: tokens of the largest size at most; no row is longer.
    """
    fills = whole_tiles_of(np.concatenate([fills_of(batch, room) for batch in tokens]))
    sizes = np.unique(np.maximum(fills, min(_LEAST, fills.max())))
    chosen = [int(sizes[-1])]

    def cost(chosen: list[int]) -> int:
        """Tokens of all parts, each in the smallest size that holds it."""
        rising = np.sort(chosen)
        return int(rising[np.searchsorted(rising, fills)].sum())

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
    """How full the parts of one batch are, of the fullest place each; as `stream.parts` deals."""
    used = np.zeros(tokens.shape, np.int64)
    for place, rows in enumerate(tokens):
        for length in np.sort(rows)[::-1]:
            used[place, np.argmax(used[place] + length <= room)] += length
    most = used.max(axis=0)
    return most[most > 0] if most.any() else np.ones(1, np.int64)
