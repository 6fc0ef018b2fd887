"""The cached reference: what its key depends on, damage on disk, and when caching pays."""

import dataclasses
import logging

import jax
import numpy as np
import pytest

from alignjax.data.batching import bucket
from alignjax.models.logps import response_logps
from alignjax.runtime.checkpoint import tree_digest
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import reference
from alignjax.stages.reference import cached_logps, choose, dataset_logps, is_cached, table_key
from tests import tiny


@pytest.fixture(scope="module")
def table():
    """A dataset's table under a network, and what it was computed from."""
    config, data = tiny.model(), bucket(tiny.dataset(11, k=3, lists=True), count=2, multiple=8)
    params = tiny.params(config)
    found = dataset_logps(
        params, data, config=config, batch_size=8, mesh=make_mesh(2, 1, 1), title="test"
    )
    return config, params, data, found


def test_a_table_holds_every_row_of_the_dataset(table):
    config, params, data, found = table
    rows = data.dataset
    assert found.shape == rows.response_length.shape
    assert found.dtype == np.float32
    batch = tiny.batch(rows.prompt_length, rows.response_length)
    for i in range(len(rows)):
        example = rows[i]
        batch.prompt[i, -len(example.prompt_ids) :] = example.prompt_ids
        for j, ids in enumerate(example.response_ids):
            batch.response[i, j, : len(ids)] = ids
    wanted = jax.jit(lambda p: response_logps(p, batch, config=config))(params)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found == 0, rows.response_length == 0)


def test_the_key_changes_with_what_the_numbers_depend_on(table):
    config, params, data, _ = table
    digest = tree_digest(params)

    def key(digest=digest, data=data, **changes):
        return table_key(digest, data, dataclasses.replace(config, **changes))

    changed = jax.tree.map(np.copy, params)
    changed["norm"]["scale"][0] += 1e-6
    keys = [
        key(),
        key(tree_digest(changed)),
        key(data=bucket(tiny.dataset(11, k=3, lists=True, seed=1), count=2, multiple=8)),
        key(dtype="bfloat16"),
        key(rope_theta=5000.0),
        key(rope_scaling=tiny.SCALING),
        key(norm_eps=1e-5),
    ]
    assert len(set(keys)) == len(keys)
    assert key(remat="full", logits_chunk=7) == key()  # these change time and memory only
    assert key(data=bucket(data.dataset, count=1, multiple=2)) == key()  # so does padding


def test_a_table_is_computed_once(tmp_path):
    values, calls = np.arange(6, dtype=np.float32).reshape(3, 2), []

    def compute():
        calls.append(1)
        return values

    assert not is_cached(tmp_path, "key")
    for _ in range(3):
        np.testing.assert_array_equal(cached_logps(tmp_path, "key", (3, 2), compute), values)
    assert is_cached(tmp_path, "key")
    assert len(calls) == 1
    cached_logps(tmp_path, "other", (3, 2), compute)
    assert len(calls) == 2
    assert not list(tmp_path.rglob("*tmp*"))


def flip_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def empty(path):
    path.write_bytes(b"")


def other_checksum(path):
    path.with_suffix(".sha256").write_text("0" * 64 + "\n")


@pytest.mark.parametrize("damage", [flip_a_byte, cut, empty, other_checksum])
def test_a_damaged_table_is_computed_again_with_a_warning(tmp_path, damage, caplog):
    old, new = np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32)
    cached_logps(tmp_path, "key", (3, 2), lambda: old)
    (path,) = tmp_path.rglob("*.npy")
    damage(path)
    with caplog.at_level(logging.WARNING):
        found = cached_logps(tmp_path, "key", (3, 2), lambda: new)
    np.testing.assert_array_equal(found, new)
    assert f"{path} is damaged: computing it again" in caplog.text
    again = cached_logps(tmp_path, "key", (3, 2), lambda: old)
    np.testing.assert_array_equal(again, new)  # what was computed is whole


def test_a_table_of_another_shape_is_computed_again(tmp_path):
    cached_logps(tmp_path, "key", (2, 3), lambda: np.zeros((2, 3), np.float32))
    found = cached_logps(tmp_path, "key", (3, 2), lambda: np.ones((3, 2), np.float32))
    assert found.shape == (3, 2)


def test_a_write_that_is_killed_leaves_no_table(tmp_path, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    values = np.ones((3, 2), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(reference.pathlib.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_logps(tmp_path, "key", (3, 2), lambda: values)
    assert not is_cached(tmp_path, "key")
    np.testing.assert_array_equal(cached_logps(tmp_path, "key", (3, 2), lambda: values), values)


COUNTS = dict(rows=100, responses=16, trained_rows=100, drawn=2, cacheable=True, cached=False)


@pytest.mark.parametrize(
    ("mode", "changes", "wanted"),
    [
        ("auto", {}, "live"),  # 1600 passes to cache, 200 to score what is drawn
        ("auto", dict(trained_rows=799), "live"),
        ("auto", dict(trained_rows=800), "cache"),  # a tie
        ("auto", dict(responses=2), "cache"),
        ("auto", dict(cached=True), "cache"),
        ("auto", dict(cached=True, cacheable=False), "live"),
        ("cache", {}, "cache"),
        ("live", dict(cached=True), "live"),
        ("none", {}, "none"),
    ],
)
def test_the_cheaper_way_is_chosen(mode, changes, wanted):
    assert choose(mode, **{**COUNTS, **changes}).mode == wanted


def test_the_reason_gives_the_counts():
    assert choose("auto", **COUNTS).reason == "1,600 response passes to cache, 200 live"
    assert "1,600" in choose("cache", **COUNTS).reason
