"""Batches as streams: what lies where, which rows share one, and attention by pairs of tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import stream, tiles
from alignjax.types import Batch
from tests import tiny


@pytest.fixture
def narrow(monkeypatch):
    """Tiles of 8 tokens and 4 pairs at a time: small streams have many of both."""
    for module in (tiles, stream):
        monkeypatch.setattr(module, "TILE", 8)
    monkeypatch.setattr(tiles, "_AT_ONCE", 4)


def laid_out(batch: Batch) -> list[list[int]]:
    """Every row's tokens, prompt first, without padding."""
    out = []
    for i in range(len(batch.prompt)):
        if not batch.response_length[i].sum():
            continue
        row = batch.prompt[i][len(batch.prompt[i]) - batch.prompt_length[i] :].tolist()
        for y, n in zip(batch.response[i], batch.response_length[i], strict=True):
            row += y[:n].tolist()
        out.append(row)
    return out


def test_rows_lie_end_to_end_and_every_response_token_is_scored_once():
    batch = tiny.ragged(3, b=5, p=9, r=11)
    batch.response_length[3] = 0  # a row that fills the batch up
    found = jax.tree.map(np.asarray, jax.jit(stream.pack)(batch))
    rows = laid_out(batch)
    flat = [token for row in rows for token in row]
    (token,) = found.token
    assert token[: len(flat)].tolist() == flat
    assert (found.seen.part[0, len(flat) :] == -1).all()
    assert found.row[0, : len(flat)].tolist() == [
        i for i, row in zip((0, 1, 2, 4), rows, strict=True) for _ in row
    ]
    count = batch.response_length.sum()
    assert found.scored.tolist() == [count]
    wanted, before, numbers = [], [], []
    start = 0
    for i in (0, 1, 2, 4):
        p, at = batch.prompt_length[i], start + batch.prompt_length[i]
        for k, n in enumerate(batch.response_length[i]):
            wanted += batch.response[i, k, :n].tolist()
            before += [start + p - 1 if t == 0 else at + t - 1 for t in range(n)]
            numbers += [p + t for t in range(n)]
            at += n
        start = at
    assert found.target[0, :count].tolist() == wanted
    assert found.before[0, :count].tolist() == before
    is_response = found.seen.part[0] != found.seen.prompt[0]
    assert found.seen.position[0][is_response].tolist() == numbers


def test_values_of_scored_tokens_go_back_to_their_responses():
    batch = tiny.ragged(2, b=4, p=5, r=7)

    @jax.jit
    def back(batch):
        packed = stream.pack(batch)
        return stream.by_response(packed.target.astype(jnp.float32), packed, batch)

    mask = np.arange(7) < batch.response_length[..., None]
    np.testing.assert_array_equal(back(batch), np.where(mask, batch.response, 0))


def test_first_fit_puts_every_row_in_one_stream_and_none_beyond_its_room():
    tokens = jnp.array([30, 8, 22, 0, 10, 28, 5, 40])
    batch = tiny.batch(np.ones(8), np.maximum(np.array(tokens)[:, None] - 1, 0), r=40)
    number, used = jax.jit(stream.parts, static_argnames="room")(batch, room=41)
    assert used.tolist() == [40, 40, 41, 22, 0, 0, 0, 0]  # 40 | 30 + 10 | 28 + 8 + 5 | 22
    assert number.tolist() == [1, 2, 3, 0, 1, 2, 2, 0]
    kept = stream.only(batch, number == 2)
    assert kept.weight.tolist() == [0, 1, 0, 0, 0, 1, 1, 0]
    assert stream.lengths(kept).tolist() == [0, 8, 0, 0, 0, 28, 5, 0]


def test_pairs_of_tiles_are_those_that_hold_anything(narrow):
    batch = tiny.ragged(3, b=6, p=19, r=17, seed=4)
    batch.response_length[2] = 0

    @jax.jit
    def find(batch):
        seen = jax.tree.map(lambda x: x[0], stream.pack(batch).seen)
        return seen, tiles.pairs(seen)

    seen, (listed, count) = find(batch)
    tokens = dense(jax.tree.map(np.asarray, seen))
    n = len(tokens) // 8
    held = tokens.reshape(n, 8, n, 8).any(axis=(1, 3))
    found = np.zeros_like(held)
    found[tuple(np.asarray(listed[: int(count)]).T)] = True
    np.testing.assert_array_equal(found, held)
    assert int(count) == held.sum()  # each once


def dense(seen, window=None):
    """``[T, T]`` bool: which tokens (columns) a token sees."""
    distance = seen.position[:, None] - seen.position
    mine = (seen.part[:, None] == seen.part) | (seen.prompt[:, None] == seen.part)
    near = distance < (len(distance) if window is None else window)
    return mine & (distance >= 0) & near & (seen.part >= 0)


KINDS = {
    "all": dict(),
    "window": dict(window=9),
    "window, not in this layer": dict(window=9, full=True),
    "capped and scaled": dict(softcap=1.5, scale=0.3),
}


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-5), (jnp.bfloat16, 3e-2)])
def test_attention_by_tiles_is_that_of_the_dense_mask(narrow, dtype, atol):
    """Values and gradients, of four heads on two; bfloat16 has 8 bits, of sums of up to 40."""
    batch = tiny.ragged(3, b=5, p=19, r=17, seed=4)
    seen = jax.tree.map(lambda x: x[0], jax.jit(stream.pack)(batch).seen)
    rng = np.random.default_rng(0)
    t = len(seen.part)
    arrays = [jnp.asarray(rng.normal(size=(t, n, 8)), dtype) for n in (4, 2, 2)]
    weight = rng.normal(size=(t, 4, 8)) * (np.asarray(seen.part) >= 0)[:, None, None]

    def plain(query, key, value, window=None, full=False, softcap=None, scale=8**-0.5):
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        key, value = (jnp.repeat(x, 2, axis=1) for x in (key, value))
        scores = jnp.einsum("qhd,khd->hqk", query, key) * scale
        scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
        mask = dense(seen, None if full else window)
        return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(jnp.where(mask, scores, -1e30)), value)

    def ours(query, key, value, full=False, **how):
        return tiles.attend(query, key, value, seen, tiles.pairs(seen), jnp.bool_(full), **how)

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def both(arrays):
        return [
            [
                jax.value_and_grad(lambda x, f=f, how=how: (f(*x, **how) * weight).sum())(arrays)
                for f in (ours, plain)
            ]
            for how in KINDS.values()
        ]

    for name, ((value, found), (total, wanted)) in zip(KINDS, both(arrays), strict=True):
        np.testing.assert_allclose(value, total, rtol=20 * atol, err_msg=name)
        for mine, theirs in zip(found, wanted, strict=True):
            mine, theirs = (np.asarray(x, np.float32) for x in (mine, theirs))
            np.testing.assert_allclose(mine, theirs, atol=atol * np.abs(theirs).max(), err_msg=name)


def test_a_loop_over_filled_places_is_the_function_itself():
    """Values and gradients; places beyond those filled are not computed."""
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    states = jnp.asarray(rng.normal(size=(2, 10, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 5, (2, 10)), jnp.int32)
    filled = jnp.array([3, 6])
    calls = []

    def one(table, states, ids):
        calls.append(states.shape[1])
        return jnp.take_along_axis(jnp.tanh(states @ table.T), ids[..., None], axis=2)[..., 0]

    def total(size, table, states):
        values = stream.over_filled(one, table, states, ids, filled, size)
        return jnp.where(jnp.arange(10) < filled[:, None], values, 0.0).sum()

    gradients = jax.jit(
        jax.value_and_grad(total, argnums=(1, 2)), static_argnums=0, compiler_options=tiny.FAST
    )
    whole, parts = gradients(10, table, states), gradients(4, table, states)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), parts, whole)
    assert set(calls) == {10, 4}
    found = stream.over_filled(one, table, states, ids, jnp.array([3, 4]), 4)
    assert (np.asarray(found[:, 4:]) == 0).all()


def test_what_is_scored_a_few_rows_at_a_time_is_what_is_scored_at_once(monkeypatch):
    batch = tiny.ragged(2, b=8, p=30, r=40)

    def function(part):
        assert part.room in (0, 128)
        values = part.response.sum(axis=2) * part.prompt_length[:, None]
        return jnp.where(part.present, values, 0)

    whole = function(batch)
    monkeypatch.setattr(stream, "AT_ONCE", 128)
    rooms = []
    found = jax.jit(lambda b: stream.in_parts(lambda p: rooms.append(p.room) or function(p), b))
    np.testing.assert_array_equal(found(batch), whole)
    assert rooms == [128]  # traced once
    number, used = stream.parts(batch, 128)
    assert (np.asarray(used) > 0).sum() > 2  # several there are
    assert dataclasses.replace(batch, room=128).room == 128
    assert set(np.asarray(number)) == set(range(int((np.asarray(used) > 0).sum())))
