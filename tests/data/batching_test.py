"""Shapes, schedules and batches: what is in them, that nothing is lost, and where a run goes on."""

import itertools

import jax
import numpy as np
import pytest

from alignjax.data.batching import (
    Batches,
    Bucketed,
    Shape,
    assemble,
    bucket,
    choose_shapes,
    deal_batches,
    read,
    shuffled,
)
from tests import tiny


def padded(prompt_length, response_length, shapes, assignment):
    """Tokens that a dataset takes when padded so."""
    k = response_length.shape[1]
    size = np.array([s.prompt + k * s.response for s in shapes])
    return int(size[assignment].sum())


@pytest.mark.parametrize("seed", range(12))
def test_shapes_hold_every_row_and_save_padding(seed):
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 60)), int(rng.integers(1, 5))
    multiple = int(rng.choice([1, 4, 16]))
    prompt = rng.integers(1, rng.integers(2, 90), n)
    response = rng.integers(0, rng.integers(2, 90), (n, k))
    costs = []
    for count in (1, 2, 3, 6):
        shapes, assignment = choose_shapes(prompt, response, count=count, multiple=multiple)
        assert 1 <= len(shapes) <= count
        assert len(set(shapes)) == len(shapes)
        assert set(assignment) == set(range(len(shapes)))  # none without rows: it would compile
        for i, shape in enumerate(shapes):
            rows = assignment == i
            for size, longest in (
                (shape.prompt, prompt[rows].max()),
                (shape.response, response[rows].max()),
            ):
                assert size % multiple == 0
                assert longest <= size < max(longest, 1) + multiple
        sizes = [s.prompt + k * s.response for s in shapes]
        assert sizes == sorted(sizes)
        costs.append(padded(prompt, response, shapes, assignment))
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == n * (
        -(-prompt.max() // multiple) * multiple
        + k * max(-(-response.max() // multiple) * multiple, multiple)
    )


def test_two_kinds_of_rows_get_a_shape_each():
    prompt = np.array([10, 100, 9, 99, 10])
    response = np.array([[8, 7], [60, 64], [8, 1], [3, 64], [1, 0]])
    shapes, assignment = choose_shapes(prompt, response, count=2, multiple=8)
    assert shapes == (Shape(16, 8), Shape(104, 64))
    assert assignment.tolist() == [0, 1, 0, 1, 0]


def test_every_epoch_holds_each_row_once_in_an_order_of_its_own():
    order = list(itertools.islice(shuffled(7, 3), 21))
    epochs = [order[i : i + 7] for i in (0, 7, 14)]
    assert [sorted(e) for e in epochs] == [list(range(7))] * 3
    assert len({tuple(e) for e in epochs}) == 3
    assert order == list(itertools.islice(shuffled(7, 3), 21))
    assert order != list(itertools.islice(shuffled(7, 4), 21))
    assert list(itertools.islice(shuffled(1, 0), 3)) == [0, 0, 0]


SHAPES = (Shape(8, 8), Shape(16, 8), Shape(16, 16))


def assignment(n, seed=0):
    return np.random.default_rng(seed).integers(0, len(SHAPES), n)


@pytest.mark.parametrize(("n", "size", "epochs"), [(1, 4, 1), (23, 4, 1), (23, 4, 3), (40, 8, 2)])
def test_a_plan_uses_each_row_once_an_epoch(n, size, epochs):
    kinds = assignment(n)
    schedule = deal_batches(SHAPES, kinds, batch_size=size, order=shuffled(n, 0), rows=n * epochs)
    assert schedule.rows.shape == (len(schedule), size)
    counts = np.bincount(schedule.rows[schedule.rows >= 0], minlength=n)
    assert counts.tolist() == [epochs] * n
    assert schedule.row_count == n * epochs
    for shape, rows in zip(schedule.shape, schedule.rows, strict=True):
        assert set(kinds[rows[rows >= 0]]) == {shape}
    fillers = (schedule.rows < 0).any(axis=1)
    assert fillers.sum() <= len(SHAPES)
    assert not fillers[: len(schedule) - fillers.sum()].any()  # only at the very end


def test_parts_of_an_epoch():
    schedule = deal_batches(SHAPES, assignment(20), batch_size=4, order=shuffled(20, 0), rows=7)
    assert schedule.row_count == 7
    assert len(np.unique(schedule.rows[schedule.rows >= 0])) == 7


def test_a_plan_of_so_many_batches_is_the_beginning_of_a_longer_one():
    schedules = [
        deal_batches(SHAPES, assignment(23), batch_size=4, order=shuffled(23, 5), batches=n)
        for n in (5, 12)
    ]
    assert [len(p) for p in schedules] == [5, 12]
    assert (schedules[1].rows >= 0).all()
    np.testing.assert_array_equal(schedules[1].rows[:5], schedules[0].rows)
    np.testing.assert_array_equal(schedules[1].shape[:5], schedules[0].shape)


def test_no_rows_make_an_empty_plan():
    schedule = deal_batches(SHAPES, assignment(0), batch_size=4, order=[])
    assert schedule.rows.shape == (0, 4)
    assert (len(schedule), schedule.row_count) == (0, 0)


@pytest.mark.parametrize("objectives", [1, 3])
def test_a_batch_holds_its_rows_and_nothing_else(objectives):
    data = tiny.dataset(9, k=3, objectives=objectives, labels=True, lists=True)
    rows, table = np.array([4, -1, 7, 0]), np.arange(27, dtype=np.float32).reshape(9, 3) + 1
    batch = assemble(data, rows, Shape(24, 16), table)
    assert batch.prompt.shape == (4, 24)
    assert batch.response.shape == (4, 3, 16)
    assert batch.scores.shape == ((4, 3) if objectives == 1 else (4, 3, objectives))
    assert {batch.prompt.dtype, batch.response.dtype, batch.prompt_id.dtype} == {np.dtype("i4")}
    assert {batch.weight.dtype, batch.scores.dtype, batch.ref_logps.dtype} == {np.dtype("f4")}
    for i, row in enumerate(rows):
        if row < 0:
            filler = jax.tree.map(lambda x, i=i: x[i], batch)
            assert filler.weight == 0
            assert filler.prompt_length == 1  # something to attend to
            assert not filler.response_length.any()
            assert not filler.ref_logps.any()
            continue
        example = data[row]
        n = len(example.prompt_ids)
        assert (batch.weight[i], batch.prompt_id[i], batch.prompt_length[i]) == (1, row, n)
        np.testing.assert_array_equal(batch.prompt[i, 24 - n :], example.prompt_ids)
        assert not batch.prompt[i, : 24 - n].any()
        np.testing.assert_array_equal(batch.ref_logps[i], table[row])
        np.testing.assert_array_equal(batch.response_length[i], data.response_length[row])
        for j, ids in enumerate(example.response_ids):
            np.testing.assert_array_equal(batch.response[i, j, : len(ids)], ids)
            assert not batch.response[i, j, len(ids) :].any()
            np.testing.assert_array_equal(np.ravel(batch.scores[i, j]), example.scores[j])
            assert batch.desirable[i, j] == example.desirable[j]


@pytest.mark.parametrize("objectives", [0, 1, 3])
def test_rows_that_only_fill_up_have_the_fields_of_the_others(objectives):
    """What one process reads of a batch may be fillers alone."""
    data = tiny.dataset(4, objectives=objectives, labels=objectives == 1)
    real, fill = (assemble(data, np.array(rows), Shape(24, 16)) for rows in ([0, 1], [-1, -1]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), fill) == jax.tree.map(
        lambda x: (x.shape, x.dtype), real
    )
    assert (fill.scores is None) == (objectives == 0)


def test_rows_without_scores_and_labels_make_batches_without():
    data = tiny.dataset(3, objectives=0)
    batch = assemble(data, np.arange(3), Shape(24, 16))
    assert batch.scores is None
    assert batch.desirable is None
    assert batch.ref_logps is None


def test_a_row_longer_than_its_shape_is_an_error_not_a_cut():
    data = tiny.dataset(4)
    prompt, response = data.prompt_length.max(), data.response_length.max()
    assemble(data, np.arange(4), Shape(prompt, response))
    for shape in (Shape(prompt - 1, response), Shape(prompt, response - 1)):
        with pytest.raises(ValueError, match="broadcast"):
            assemble(data, np.arange(4), shape)


@pytest.fixture(scope="module")
def run():
    """A dataset, the schedule of two epochs of it, a reference table and all batches."""
    data = tiny.dataset(21, k=3, lists=True)
    rows = bucket(data, count=3, multiple=4)
    schedule = deal_batches(
        rows.shapes, rows.assignment, batch_size=4, order=shuffled(21, 1), rows=42
    )
    table = np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32)
    return data, schedule, table, list(read(data, schedule, ref_logps=table))


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_reading_gives_the_plan_in_order(run):
    data, schedule, table, batches = run
    wanted = [
        assemble(data, rows, schedule.shapes[shape], table)
        for shape, rows in zip(schedule.shape, schedule.rows, strict=True)
    ]
    assert_same(batches, wanted)
    assert len({b.prompt.shape + b.response.shape for b in batches}) == 3


def test_reading_goes_on_from_every_batch(run):
    data, schedule, table, batches = run
    for start in range(len(schedule)):
        assert_same(list(read(data, schedule, start=start, ref_logps=table)), batches[start:])


def test_a_part_of_a_plan_is_the_same_batches(run):
    data, schedule, table, batches = run
    places = np.array([2, 0])
    found = list(read(data, schedule.only(places), ref_logps=table))
    assert_same(found, [jax.tree.map(lambda x: x[places], batch) for batch in batches])


def test_reading_fails_when_a_row_does(run):
    data, schedule, *_ = run
    short = Batches(tuple(Shape(1, 1) for _ in schedule.shapes), schedule.shape, schedule.rows)
    with pytest.raises(ValueError, match="broadcast"):
        list(read(data, short))


def test_in_order_holds_every_row_once():
    data = tiny.dataset(11)
    rows = bucket(data, count=2, multiple=4)
    assert isinstance(rows, Bucketed)
    schedule = rows.in_order(4)
    assert sorted(schedule.rows[schedule.rows >= 0].tolist()) == list(range(11))
    for kind in range(len(rows.shapes)):
        dealt = schedule.rows[schedule.shape == kind].ravel()
        assert (np.diff(dealt[dealt >= 0]) > 0).all()
