"""Beam search, against all responses that there are and against loops."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from alignjax.config import SamplingConfig
from alignjax.models.logps import token_logps
from alignjax.runtime.sharding import make_mesh, put_rows, shard_tree
from alignjax.sampling.beam import beam_search
from tests import tiny

VOCAB, EOS, R = 5, 2, 4
CONFIG = tiny.model(vocab_size=VOCAB)
SETTINGS = SamplingConfig(samples=6, num_beams=64, max_new_tokens=R)
ALL = np.array(list(itertools.product(range(VOCAB), repeat=R)), np.int32)


@pytest.fixture(scope="module")
def params():
    return tiny.params(CONFIG)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    return rng.integers(0, VOCAB, (4, 5)).astype(np.int32), np.array([5, 1, 3, 0], np.int32)


@pytest.fixture(scope="module")
def nats(params, rows):
    """``{ids: log-probability}`` for every beginning of a response to each prompt."""
    everything = np.broadcast_to(ALL, (4, *ALL.shape))
    batch = tiny.given(rows[0], np.maximum(rows[1], 1), everything)
    score = jax.jit(functools.partial(token_logps, config=CONFIG), compiler_options=tiny.FAST)
    found = np.asarray(score(params, batch), np.float64).cumsum(axis=-1)
    return [
        {(*ids[:n],): row[j, n - 1] for n in range(1, R + 1) for j, ids in enumerate(ALL.tolist())}
        for row in found
    ]


def search(params, rows, eos=(EOS,), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return jax.device_get(beam_search(params, *rows, config=CONFIG, settings=settings, eos=eos))


def is_response(ids, eos=(EOS,)):
    return not set(eos) & {*ids[:-1]} and (ids[-1] in eos or len(ids) == R)


def by_loops(nats, width, k, penalty, eos=(EOS,)):
    """The same search, one beam after another."""
    live, pool = [()], []
    for _ in range(R):
        longer = [(*ids, v) for ids in live for v in range(VOCAB)]
        longer.sort(key=lambda ids: -nats[ids])
        live = [ids for ids in longer if ids[-1] not in eos][:width]
        done = [ids for ids in longer if is_response(ids, eos)]
        pool += [ids for ids in done if ids[-1] in eos or ids in live]
    pool.sort(key=lambda ids: -nats[ids] / len(ids) ** penalty)
    return pool[:k]


def check(found, wanted, nats):
    for i, best in enumerate(wanted):
        for j, ids in enumerate(best):
            tokens, length, logps = (x[i, j] for x in found)
            assert (*tokens[:length],) == ids
            assert not tokens[length:].any()
            assert logps == pytest.approx(nats[i][ids], abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_responses(params, rows, nats, penalty):
    found = search(params, rows, length_penalty=penalty)
    wanted = [
        sorted(filter(is_response, row), key=lambda ids, row=row: -row[ids] / len(ids) ** penalty)[
            :6
        ]
        for row in nats[:3]
    ]
    check(found, wanted, nats)
    assert not found[0][3].any()  # padding
    assert not found[1][3].any()


@pytest.mark.parametrize(
    ("width", "eos"), [(1, (EOS,)), (2, (EOS,)), (3, (EOS, (EOS + 2) % VOCAB, VOCAB + 7))], ids=str
)
def test_a_narrow_beam_equals_the_loops(params, rows, nats, width, eos):
    k = min(width, 2)
    found = search(params, rows, eos, samples=k, num_beams=width)
    wanted = [by_loops(row, width, k, 1.0, eos) for row in nats[:3]]
    check(found, wanted, nats)


def test_it_depends_on_neither_the_batch_nor_the_devices(params, rows):
    wanted = search(params, rows)
    alone = search(params, tuple(x[[2, 0]] for x in rows))
    for one, other in zip(alone, wanted, strict=True):
        np.testing.assert_allclose(one, other[[2, 0]], atol=1e-4)
    mesh = make_mesh(2, 2, 1)
    placed = jax.device_put(params, shard_tree(params, mesh))
    programs = set()
    for gather in (True, False):
        found = search(placed, put_rows(rows, mesh), gather_weights=gather)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
        settings = dataclasses.replace(SETTINGS, gather_weights=gather)
        lowered = beam_search.lower(placed, *rows, config=CONFIG, settings=settings, eos=(EOS,))
        programs.add(lowered.as_text())
    assert len(programs) == 2


def test_it_stops_when_no_beam_can_win_any_more(params, rows, steps):
    bent = jax.tree.map(np.copy, params)
    bent["embed"]["embedding"][EOS] *= 4.0  # an end that is likely
    some = tuple(x[2:] for x in rows)
    found = search(bent, some, samples=1, num_beams=3, max_new_tokens=40, length_penalty=0.0)
    jax.effects_barrier()
    assert found[1].max() < 40
    assert len(steps) < 39
