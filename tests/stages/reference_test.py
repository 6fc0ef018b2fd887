"""The cached reference: what its key depends on, damage on disk, and when caching pays."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alignjax.config import EvaluateConfig
from alignjax.data.batching import bucket
from alignjax.models.logps import response_logps
from alignjax.runtime.checkpoint import tree_digest
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import reference
from alignjax.stages.reference import choose, dataset_logps, table_key
from alignjax.stages.run import Run
from tests import runs, tiny


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
    assert len({json.dumps(x) for x in keys}) == len(keys)
    assert key(remat="full", logits_chunk=7) == key()  # these change time and memory only
    assert key(data=bucket(data.dataset, count=1, multiple=2)) == key()  # so does padding


def test_a_table_is_computed_once(table, tmp_path):
    config, params, data, wanted = table
    loads = []

    def load():
        loads.append(1)
        return params

    settings = runs.get_config(model=config, evaluate=EvaluateConfig(batch_size=8))
    run = Run(settings, tmp_path, SimpleNamespace(train=data), make_mesh(1, 1, 1))
    network = reference.Reference(load, tree_digest(params))
    for rows in (800, 1):  # passes: the table costs fewer than that, or more but it is there
        found, choice = reference.attach(run, network, "test", trained_rows=rows)
        assert choice.mode == "cache"
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert choice.reason == "found on disk"
    assert len(loads) == 1
    other = reference.Reference(load, "of other parameters")
    assert reference.attach(run, other, "test", trained_rows=1)[1].mode == "live"
    reference.table(run, data, other, "test")
    assert len(loads) == 2


COUNTS = dict(rows=100, responses=16, trained_rows=100, scored=2, cacheable=True, cached=False)


@pytest.mark.parametrize(
    ("mode", "changes", "wanted"),
    [
        ("auto", {}, "live"),  # 1600 passes to cache, 200 to score what a step sees
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
    assert choose("auto", **COUNTS).reason == "forward passes: 1,600 to precompute, 200 on the fly"
    assert "1,600" in choose("cache", **COUNTS).reason
