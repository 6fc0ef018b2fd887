"""Checkpoints: bit for bit, on any mesh; half-written, foreign and unfit ones are refused."""

import dataclasses
import os
import re
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.errors import CheckpointError, UserError
from alignjax.runtime import checkpoint, sharding, stores
from alignjax.runtime.checkpoint import refuse_other, tree_digest
from alignjax.runtime.sharding import make_mesh
from alignjax.training.step import init_state
from tests import tiny

CONFIG = tiny.model(tied_embeddings=False)


def make_state(seed=0):
    """A state in the middle of a run: no leaf is at its first value."""
    params = jax.tree.map(jnp.asarray, tiny.params(CONFIG, seed))
    optimizer = optax.adamw(0.1)
    state = init_state(params, optimizer, jax.random.fold_in(jax.random.key(3), seed))
    grads = jax.tree.map(lambda x: x * 0.37, params)
    opt_state = optimizer.update(grads, state.opt_state, params)[1]
    numbers = dict(step=jnp.int32(41), skipped=jnp.int32(5))
    return dataclasses.replace(state, opt_state=opt_state, **numbers)


def target(state, shape=(1, 1, 1)):
    shapes = jax.eval_shape(lambda: state)
    return sharding.abstract(shapes, sharding.shard_tree(shapes, make_mesh(*shape)))


def bits(tree):
    """A tree of NumPy arrays, keys as their data: what must be equal bit for bit."""

    def one(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(one, tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 10 and 20 saved, and the state of 20."""
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    state = make_state()
    with stores.open_store(path, keep=3) as store:
        assert stores.latest(store) is None
        checkpoint.save(store, 10, make_state(1), {"next_batch": 10, "identity": {"data": "a"}})
        checkpoint.save(store, 20, state, {"next_batch": 20, "identity": {"data": "a"}})
    return path, state


@pytest.fixture
def copied(saved, tmp_path):
    """A copy that a test may spoil."""
    path, state = saved
    return shutil.copytree(path, tmp_path / "checkpoints"), state


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_every_bit_comes_back_on_any_mesh(saved, shape):
    path, state = saved
    wanted = target(state, shape)
    with stores.open_store(path, keep=3) as store:
        assert stores.latest(store) == 20
        found = checkpoint.restore(store, 20, wanted)
        other = checkpoint.restore(store, 10, wanted)
    chex.assert_trees_all_equal(bits(found), bits(state))
    chex.assert_trees_all_equal_dtypes(bits(found), bits(state))
    jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), found, wanted)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(bits(other), bits(state))
    draw = jax.random.uniform(jax.random.fold_in(found.key, found.step))
    assert float(draw) == float(jax.random.uniform(jax.random.fold_in(state.key, 41)))


def test_the_record_comes_back(saved):
    with stores.open_store(saved[0], keep=3) as store:
        record = checkpoint.read_record(store, 20)
    assert record == {"format": stores.FORMAT, "next_batch": 20, "identity": {"data": "a"}}


def test_the_newest_are_kept(tmp_path):
    state = {"x": jnp.arange(3)}
    with stores.open_store(tmp_path, keep=2) as store:
        for step in (1, 2, 3):
            checkpoint.save(store, step, state, {})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    state = {"x": jnp.arange(100_000.0)}
    wanted = np.asarray(state["x"]).copy()
    overwrite = jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)
    with stores.open_store(tmp_path, keep=1) as store:
        checkpoint.save(store, 1, state, {})
        overwrite(state)
        stores.wait(store)
        found = checkpoint.restore(store, 1, target({"x": jnp.asarray(wanted)}))
    np.testing.assert_array_equal(found["x"], wanted)


def test_another_format_is_refused(tmp_path, monkeypatch):
    with stores.open_store(tmp_path, keep=1) as store:
        monkeypatch.setattr(checkpoint, "FORMAT", 99)
        checkpoint.save(store, 1, {"x": jnp.arange(3)}, {})
        monkeypatch.undo()
        stores.wait(store)
        with pytest.raises(CheckpointError, match="step 1 has checkpoint format 99") as error:
            checkpoint.read_record(store, 1)
    assert error.value.exit_code == 3


def test_another_run_is_refused_by_what_differs(saved):
    found, wanted = dict(data="a", tokenizer="t"), dict(data="b", tokenizer="t", reference="r")
    with stores.open_store(saved[0], keep=3) as store:
        refuse_other(store, 20, found, {"data": "a", "tokenizer": "t"})
        with pytest.raises(UserError) as error:
            refuse_other(store, 20, found, wanted)
    message = str(error.value)
    assert "step 20 belongs to another run" in message
    assert "data 'a' (this run: 'b')" in message
    assert "reference None (this run: 'r')" in message
    assert "tokenizer" not in message
    assert "\n" not in message


def other_shape(state):
    state.params["layers"]["q"]["kernel"] = jnp.zeros((2, 32, 64))


def array_more(state):
    state.params["layers"]["extra"] = {"kernel": jnp.zeros((2, 32, 32))}


def array_less(state):
    del state.params["layers"]["q"]


def other_depth(state):
    state.params["layers"] = jax.tree.map(lambda x: x[:1], state.params["layers"])


def other_dtype(state):
    state.params["norm"]["scale"] = jnp.ones(32, jnp.bfloat16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            other_shape,
            "params/layers/q/kernel: wanted (2, 32, 64) float32, found (2, 32, 32) float32",
        ),
        (
            array_more,
            "params/layers/extra/kernel: wanted (2, 32, 32) float32, found nothing",
        ),
        (array_less, "params/layers/q/kernel: wanted nothing, found (2, 32, 32) float32"),
        (other_depth, "params/layers/k/kernel: wanted (1, 32, 16) float32, found (2, 32, 16)"),
        (other_depth, "; and 4 more"),
        (other_dtype, "params/norm/scale: wanted (32,) bfloat16, found (32,) float32"),
    ],
)
def test_arrays_of_another_network_are_refused_in_one_line(saved, change, named):
    path, state = saved
    state = jax.tree.map(lambda x: x, state)
    change(state)
    with (
        stores.open_store(path, keep=3) as store,
        pytest.raises(CheckpointError, match=re.escape(named)) as error,
    ):
        checkpoint.restore(store, 20, target(state))
    assert "step 20 cannot be restored" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_save_that_was_killed_is_not_seen(copied):
    """Both ways to be half-written: not yet committed, and emptied by a kill."""
    path, state = copied
    half = path / "30.orbax-checkpoint-tmp"
    shutil.copytree(path / "20", half)
    with stores.open_store(path, keep=3) as store:
        assert stores.latest(store) == 20
        chex.assert_trees_all_equal(bits(checkpoint.restore(store, 20, target(state))), bits(state))
    assert not half.exists()


def test_a_save_killed_before_it_is_committed(tmp_path, monkeypatch):
    """The last thing that a save does is to rename its directory."""
    with stores.open_store(tmp_path, keep=3) as store:
        checkpoint.save(store, 1, {"x": jnp.arange(3)}, {})
    rename = os.rename

    def killed(old, new, *args, **kwargs):
        if os.path.basename(str(new)) == "2":
            raise OSError("killed")
        return rename(old, new, *args, **kwargs)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, killed)
    with (
        pytest.raises(CheckpointError, match="killed"),
        stores.open_store(tmp_path, keep=3) as store,
    ):
        checkpoint.save(store, 2, {"x": jnp.arange(3)}, {})
    monkeypatch.undo()
    with stores.open_store(tmp_path, keep=3) as store:
        assert stores.latest(store) == 1
        checkpoint.save(store, 2, {"x": jnp.arange(4)}, {})  # and the step can be saved again
    with stores.open_store(tmp_path, keep=3) as store:
        assert stores.latest(store) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["1", "2"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("here")
    with (
        pytest.raises(CheckpointError, match="cannot be opened") as error,
        stores.open_store(tmp_path / "file" / "checkpoints", keep=1),
    ):
        pass
    assert "\n" not in str(error.value)


def test_parameters_alone(tmp_path):
    params = jax.tree.map(jnp.asarray, tiny.params(CONFIG))
    checkpoint.save_params(tmp_path / "params", params)
    for shape in ((1, 1, 1), (1, 2, 2)):
        found = checkpoint.load_params(tmp_path / "params", target(params, shape))
        chex.assert_trees_all_equal(bits(found), bits(params))
    with pytest.raises(CheckpointError, match="the parameters cannot be read"):
        checkpoint.load_params(tmp_path / "none", target(params))


def test_a_digest_sees_every_change():
    def tree():
        return {"a": np.arange(6.0).reshape(2, 3), "b": {"c": np.zeros(2, np.float32)}}

    changed = tree()
    changed["b"]["c"][1] = 1e-30
    digests = [
        tree_digest(x)
        for x in (
            tree(),
            changed,
            {**tree(), "a": np.arange(6.0).reshape(3, 2)},
            {**tree(), "a": np.arange(6.0).reshape(2, 3).astype(np.float32)},
            {"a": tree()["a"], "d": tree()["b"]},
        )
    ]
    assert len(set(digests)) == len(digests)
    assert tree_digest(jax.tree.map(jnp.asarray, tree()["b"])) == tree_digest(tree()["b"])
