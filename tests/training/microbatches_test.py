"""What passes through the network at a time: sizes, and what is refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from alignjax.data.batching import bucket, deal_batches
from alignjax.errors import UserError
from alignjax.losses import aot, mixed, sft
from alignjax.models import stream
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import learners
from alignjax.training import compiled, microbatches
from alignjax.training.job import Feed, Learner
from alignjax.training.microbatches import Rooms, choose_sizes
from alignjax.training.step import Update
from tests import runs, tiny


def test_sizes_are_those_that_leave_little_empty():
    rng = np.random.default_rng(0)
    tokens = np.clip(rng.lognormal(5, 0.6, (64, 1, 8)), 20, 1000).astype(int)
    sizes = choose_sizes(tokens, 1024)
    assert 1 < len(sizes) <= 3
    assert all(size % stream.TILE == 0 and 512 <= size <= 1024 for size in sizes)
    fills = np.concatenate([microbatches.fills_of(batch, 1024) for batch in tokens])
    assert fills.max() <= sizes[-1]

    def taken(sizes):
        return np.array(sizes)[np.searchsorted(sizes, fills)].sum()

    assert taken(sizes) < 0.96 * taken(sizes[-1:])
    # Rows of one length need one size, however many batches there are.
    assert choose_sizes(np.full((9, 2, 4), 100), 1024) == (448,)


def test_parts_are_as_full_as_the_step_will_make_them():
    tokens = np.array([[30, 8, 22, 0, 10, 28, 5, 40]])
    assert microbatches.fills_of(tokens, 41).tolist() == [40, 40, 41, 22]
    two = np.array([[30, 8, 22, 0], [10, 28, 5, 40]])  # the fullest place counts
    assert microbatches.fills_of(two, 41).tolist() == [40, 38, 5]


def test_a_batch_is_one_part_where_all_its_padding_fits():
    batch = tiny.ragged(2, b=4, p=100, r=150)  # 4 x 400 tokens
    assert Rooms(sizes=(512, 2048)).at(batch) == (512, 1600)
    assert Rooms(sizes=(512, 2048)).single(batch)
    assert Rooms(sizes=(448,)).at(batch) == (448,)
    assert not Rooms(sizes=(448,)).single(batch)
    assert Rooms().at(batch) == (stream.AT_ONCE,)
    # What the data do not say must fit, too: a draw may bring longer responses.
    assert Rooms(sizes=(256,)).at(batch) == (256, 448)
    assert Rooms(sizes=(256,), longest=250).at(batch) == (256,)
    assert Rooms(sizes=(256,), given=400).at(batch) == (256, 448)
    assert Rooms(given=500).at(batch) == (512,)
    with pytest.raises(UserError, match=r"train\.microbatch_tokens: wanted at least 400, .* 399$"):
        Rooms(sizes=(256,), given=399).at(batch)


def test_a_loss_that_compares_rows_gets_the_whole_batch():
    batch = tiny.ragged(2, b=4, p=100, r=150)
    for sizes in ((), (512,), (512, 2048)):
        rooms = Rooms(sizes=sizes, given=512, whole=True)
        assert rooms.at(batch) == (*sizes[:1], 1600)
        assert rooms.single(batch)
    assert Rooms(given=400, whole=True, padded=True).single(batch)
    compares = functools.partial(aot.loss, beta=0.1)
    inside = functools.partial(mixed.loss, losses=(sft.loss, compares), weights=(1.0, 1.0))
    for loss in (compares, inside):
        config = dataclasses.replace(runs.get_config(), loss=loss)
        learner = learners.policy(config, make_mesh(1, 1, 1), 1, load_reference=lambda: None)
        assert learner.update.rooms.whole
    learner = learners.policy(runs.get_config(), make_mesh(1, 1, 1), 1, load_reference=lambda: None)
    assert not learner.update.rooms.whole


@pytest.mark.parametrize("rooms", [Rooms(sizes=(448,)), Rooms(given=400, padded=True)])
def test_what_is_added_up_over_parts_is_traced_once(rooms):
    """Tracing a network and its gradient takes longer than a small one's step."""
    traced = []

    def total(rows):
        traced.append(rows)
        return rows.response_length.sum()

    batch = tiny.ragged(2, b=4, p=100, r=150)
    found = jax.jit(lambda b: microbatches.add_up(total, b, rooms))(batch)
    assert found == batch.response_length.sum()
    assert len(traced) == 1


@pytest.mark.parametrize(("tokens", "parts"), [(0, 1), (1600, 1), (1599, 2), (400, 4), (64, 4)])
def test_padded_rows_are_split_into_parts_that_fit(tokens, parts):
    batch = tiny.ragged(2, b=4, p=100, r=150)
    assert Rooms(given=tokens, padded=True).equal_parts(batch) == parts


def given(rooms, select=None):
    update = Update(apply=None, loss=None, optimizer=None, rooms=rooms, select=select)
    return Learner(update=update, learning_rate=None, params_shape=None, load_start=None)


def test_sizes_come_from_the_rows_and_a_row_too_long_is_named():
    data = tiny.dataset(12)
    rows = bucket(data, count=1, multiple=8)
    batches = deal_batches(rows.shapes, rows.assignment, batch_size=4, order=range(12))
    feed, mesh = Feed(data, batches), make_mesh(1, 2, 1)
    tokens = data.prompt_length + data.response_length.sum(axis=1)
    longest = int(tokens.max())
    found = compiled.with_rooms(given(Rooms()), feed, mesh).update.rooms
    assert found.longest == longest
    places = tokens[batches.rows].reshape(3, 2, 2).sum(axis=2)
    assert found.sizes == (stream.whole_tiles(int(places.max())),)
    # Of one response that is drawn of two only the mean is known, and the batch's shape.
    drawn = compiled.with_rooms(given(Rooms(), select=sft.select), feed, mesh).update.rooms
    assert drawn.longest == 0
    mean = data.prompt_length + data.response_length.mean(axis=1).astype(int)
    places = mean[batches.rows].reshape(3, 2, 2).sum(axis=2)
    assert drawn.sizes == (stream.whole_tiles(int(places.max())),)
    padded = given(Rooms(padded=True))
    assert compiled.with_rooms(padded, feed, mesh) is padded
    short = Rooms(given=longest - 1)
    name = data[int(tokens.argmax())].id
    with pytest.raises(UserError, match=rf"wanted at least {longest}, .*row '{name}'.* found"):
        compiled.with_rooms(given(short), feed, mesh)
    enough = Rooms(given=longest)
    sizes = compiled.with_rooms(given(enough), feed, mesh).update.rooms.sizes
    assert sizes == (stream.whole_tiles(longest),)
