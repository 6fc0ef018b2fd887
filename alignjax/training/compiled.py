"""Compiles the programs of a training, and chooses how much of a batch they process at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.data.batching import assemble
from alignjax.data.store import Dataset
from alignjax.errors import UserError
from alignjax.models.stream import AT_ONCE, whole_tiles
from alignjax.runtime.sharding import abstract, shard_tree
from alignjax.training.job import Feed, Learner, State
from alignjax.training.microbatches import choose_sizes
from alignjax.training.schedules import resolve
from alignjax.training.step import Update
from alignjax.types import Batch, Params

_SAMPLED = 256  # batches that sizes are chosen for


def compile_start(
    start: Callable[..., State], *shapes: Params, mesh: Mesh, stacked: bool = False
) -> tuple[Callable[..., State], State]:
    """Compiles the function from initial parameters, which it donates, to the state.

    Args:
      start: makes the state at step 0 from one or more trees of parameters.
      shapes: of the parameters.
      mesh: of the state.
      stacked: whether every leaf has a leading axis of networks.

    Returns:
      The program; shapes, dtypes and shardings of the state.
    """
    state = jax.eval_shape(start, *shapes)
    layout = shard_tree(state, mesh, stacked=stacked)
    donated = tuple(range(len(shapes)))
    program = jax.jit(start, out_shardings=layout, donate_argnums=donated)
    return program, abstract(state, layout)


def compile_step(step: Callable[..., Any], target: State) -> Callable[..., Any]:
    """Compiles ``(state, ...) -> (state, scalars)``, which donates the state.

    The new state has the shardings of the old one, so steps compile only once and use its memory
    again. Other arguments, such as the reference, are not donated: the next step needs them.

    Args:
      step: one step.
      target: shapes, dtypes and shardings of the state.
    """
    layout = jax.tree.map(lambda x: x.sharding, target)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, None))


def check_longest(data: Dataset, given: int) -> None:
    """Refuses rows with more tokens than ``train.microbatch_tokens``.

    Args:
      data: the rows.
      given: ``train.microbatch_tokens``; 0: no limit.

    Raises:
      UserError: names the longest row and the number.
    """
    tokens = data.prompt_length + data.response_length.sum(axis=1)
    longest = int(tokens.argmax())
    if 0 < given < tokens[longest]:
        raise UserError(
            f"train.microbatch_tokens: wanted at least {tokens[longest]}, the tokens of row "
            f"{data[longest].id!r} with its responses, found {given}"
        )


def with_rooms(learner: Learner, feed: Feed, mesh: Mesh, *, networks: int = 1) -> Learner:
    """Chooses how many tokens pass through the network at a time, from the rows' lengths.

    Args:
      learner: the network to train.
      feed: the rows to train on.
      mesh: the devices.
      networks: number of networks that share a batch, see `step.stacked_step`.

    Raises:
      UserError: as `check_longest`.
    """
    update, data, rooms = learner.update, feed.dataset, learner.update.rooms
    places = mesh.shape["data"] * mesh.shape["fsdp"]
    some = feed.batches.rows[:: max(1, len(feed.batches) // _SAMPLED), ::networks]
    if rooms.padded or not some.size or some.shape[1] % places:
        return learner
    tokens = data.prompt_length + data.response_length.sum(axis=1)
    longest = int(tokens.max())
    if update.select is None and not rooms.whole:
        check_longest(data, rooms.given)
    if update.select is not None:  # the step draws the responses: use their mean length
        count, longest = _drawn(update, feed), 0
        tokens = data.prompt_length + count * data.response_length.mean(axis=1).astype(np.int64)
    filled = np.where(some >= 0, tokens[some], 0).reshape(len(some), places, -1)
    room = whole_tiles(rooms.given) or max(whole_tiles(int(tokens.max())), AT_ONCE)
    if rooms.whole:
        room = int(filled.sum(axis=2).max())
    rooms = dataclasses.replace(rooms, sizes=choose_sizes(filled, room), longest=longest)
    return dataclasses.replace(learner, update=dataclasses.replace(update, rooms=rooms))


def _drawn(update: Update, feed: Feed) -> int:
    """Counts the responses of a row that a step draws."""
    assert update.select is not None
    shape = feed.batches.shapes[feed.batches.shape[0]]
    batch = assemble(feed.dataset, np.full(feed.batches.rows.shape[1], -1), shape)  # opens no row
    select = resolve(update.select, jnp.int32(0), update.steps)
    drawn: Batch = jax.eval_shape(select, jax.random.key(0), batch)
    return drawn.response.shape[1]
