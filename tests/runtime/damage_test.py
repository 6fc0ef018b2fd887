"""Damage: whatever file of a checkpoint changes by one bit, it is refused by name, never read."""

import json
import random
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax import digests
from alignjax.errors import CheckpointError
from alignjax.runtime import checkpoint, sharding, storage, stores
from alignjax.runtime.sharding import make_mesh


def flip(path, seed=0):
    """Changes one bit of a file."""
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def state(seed):
    return {
        "params": {"kernel": jnp.asarray(np.random.default_rng(seed).normal(size=(40, 30)))},
        "step": jnp.int32(seed),
    }


def layout():
    shapes = jax.eval_shape(lambda: state(0))
    return sharding.abstract(shapes, sharding.shard_tree(shapes, make_mesh(1, 1, 1)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    with stores.open_store(path, keep=3) as store:
        for step in (1, 2, 3):
            checkpoint.save(store, step, state(step), {"next_batch": step})
    return path


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def read(path, *, allowed=False):
    """What whoever goes on reads: the step, its record and its state."""
    with digests.falling_back(allowed), stores.open_store(path, keep=3) as store:
        step = stores.latest(store)
        record = checkpoint.read_record(store, step)
        return step, record["next_batch"], checkpoint.restore(store, step, layout())


def test_every_file_of_a_checkpoint_has_a_digest(saved):
    for step in ("1", "2", "3"):
        there = {str(p.relative_to(saved / step)) for p in files(saved / step)}
        assert there - {digests.NAME} <= set(digests.of(saved / step))
    assert sorted(p.name for p in saved.iterdir()) == ["1", "2", "3"]


def test_a_bit_of_any_file_is_missed_by_nobody(saved, copied):
    """Damage of each file in turn: refused with its name and the newest good step."""
    for number, file in enumerate(files(copied / "3")):
        name = str(file.relative_to(copied / "3"))
        flip(file, seed=number)
        with pytest.raises(CheckpointError) as caught:
            read(copied)
        assert caught.value.exit_code == 3
        line = str(caught.value)
        assert f"{copied}: step 3 is damaged: {name} has changed since it was written" in line
        assert "the newest good step is 2: resume from it with run --allow_fallback" in line
        shutil.copy(saved / "3" / name, file)
    assert read(copied)[0] == 3


@pytest.mark.parametrize("harm", ["gone", "shorter"])
def test_files_that_are_gone_or_cut(copied, harm):
    file = next(p for p in files(copied / "3" / "state") if p.parent.name == "d")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"step 3 is damaged: state/.*{file.name}"):
        read(copied)


def test_a_checkpoint_without_its_digests_is_damaged(copied):
    (copied / "3" / digests.NAME).unlink()
    with pytest.raises(CheckpointError, match="step 3 is damaged: digests"):
        read(copied)


def test_without_the_comparison_damage_would_be_read(saved, copied, monkeypatch):
    """The control: what the library alone reads of a flipped array, without a word."""
    monkeypatch.setattr(digests, "find_damage", lambda *x, **y: "")
    wanted = read(copied)[2]
    kernel = max(files(copied / "3" / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(kernel.read_bytes())
    content[len(content) // 2] ^= 1
    kernel.write_bytes(content)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(read(copied)[2], wanted)


def test_with_fallback_the_newest_good_step_is_read_and_said(copied, caplog):
    flip(files(copied / "3" / "state" / "d")[0])
    flip(files(copied / "2" / "record")[0])
    step, next_batch, found = read(copied, allowed=True)
    assert (step, next_batch) == (1, 1)
    chex.assert_trees_all_equal(found, state(1))
    (line,) = [x.getMessage() for x in caplog.records if "DAMAGED" in x.getMessage()]
    assert "STEP 3 IS DAMAGED (state/d/" in line
    assert "resuming from step 1" in line
    flip(files(copied / "1" / "state" / "d")[0])
    with pytest.raises(CheckpointError, match="every step is damaged"):
        read(copied, allowed=True)
    with pytest.raises(CheckpointError, match="no other step is good"):
        read(copied)


def test_a_step_of_which_little_is_left_is_passed_over(copied):
    for path in (copied / "3").iterdir():
        if path.name != "_CHECKPOINT_METADATA":
            storage.remove_here(path)
    assert read(copied, allowed=True)[0] == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_state_that_was_dropped_is_no_damage(copied, monkeypatch, killed):
    if killed:  # before the files are removed
        monkeypatch.setattr(stores.shutil, "rmtree", lambda path, **_: None)
    stores.drop_state(copied)
    monkeypatch.undo()
    assert (copied / "3" / "state").exists() == killed
    with stores.open_store(copied, keep=3) as store:
        assert not stores.has_state(store, 3)
        assert checkpoint.read_record(store, 3)["next_batch"] == 3


def test_parameters_are_compared_too(tmp_path):
    checkpoint.save_params(tmp_path / "params", state(0))
    for number, file in enumerate(files(tmp_path / "params")):
        content = file.read_bytes()
        flip(file, seed=number)
        with pytest.raises(CheckpointError, match=f"{tmp_path}/params: damaged"):
            checkpoint.load_params(tmp_path / "params", layout())
        file.write_bytes(content)
    chex.assert_trees_all_equal(checkpoint.load_params(tmp_path / "params", layout()), state(0))


def test_a_file_of_a_sealed_folder_is_compared_when_it_is_read(tmp_path):
    file, other = tmp_path / "config.json", tmp_path / "added.json"
    file.write_text(json.dumps({"heads": 4}))
    assert digests.read(file) == b'{"heads": 4}'  # not sealed yet
    digests.seal(tmp_path)
    other.write_text("not there when it was sealed")
    assert digests.read(file) == b'{"heads": 4}'
    assert digests.read(other)
    file.write_text(json.dumps({"heads": 5}))
    with pytest.raises(CheckpointError, match=f"{file}: damaged"):
        digests.read(file)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 10_000, 12_288])
def test_a_large_file_is_compared_in_pieces(tmp_path, monkeypatch, size):
    file = tmp_path / "large"
    file.write_bytes(content := random.Random(0).randbytes(size))
    digests.seal(tmp_path)
    as_one = digests.of(tmp_path)["large"]  # as earlier versions wrote it
    assert digests.find_damage(tmp_path) == ""
    monkeypatch.setattr(digests, "PIECE", 4096)
    for _ in range(2):
        assert digests.find_damage(tmp_path) == ""
        assert digests.read(file) == content
        for place in range(0, size, 1000):
            changed = bytearray(content)
            changed[place] ^= 1
            file.write_bytes(changed)
            assert digests.find_damage(tmp_path) == "large"
            with pytest.raises(CheckpointError, match="damaged"):
                digests.read(file)
        for other in (content[:-1], content + b"x", content[4096:] + content[:4096]):
            file.write_bytes(other)
            assert digests.find_damage(tmp_path) == ("" if other == content else "large")
        file.write_bytes(content)
        digests.seal(tmp_path)
    assert (digests.of(tmp_path)["large"] == as_one) == (size <= 4096)


def test_small_files_of_a_run_are_compared(tmp_path):
    path, content = tmp_path / "summary.json", {"steps": 4, "table": {"kl": 1.25}}
    storage.keep_json(path, {"steps": 3})
    storage.keep_json(path, content)
    whole = path.read_bytes()
    assert storage.read_json(path) == content
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"{path} cannot be read: ") as caught:
            storage.read_json(path)
        assert caught.value.exit_code == 3
    path.write_bytes(whole)
    shutil.rmtree(tmp_path / ".artifacts")  # of an earlier version
    assert storage.read_json(path) == content


def test_a_damaged_digest_is_told_beside_the_file_that_it_is_of(tmp_path):
    path, note = tmp_path / "summary.json", tmp_path / ".artifacts" / "summary.json.digest"
    storage.keep_json(path, {"steps": 3})
    note.write_bytes(b"\xff" + note.read_bytes()[1:])  # no UTF-8
    with pytest.raises(CheckpointError) as caught:
        storage.read_json(path)
    line = f"{path} cannot be read: damaged, it and its digest in {note} do not agree"
    assert str(caught.value) == line


def test_a_kill_between_a_digest_and_its_file_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    storage.keep_json(path, {"steps": 3})
    write = storage.write_here
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_here", lambda p, x: None if p == path else write(p, x))
        storage.keep_json(path, {"steps": 4})
    assert storage.read_json(path) == {"steps": 3}
