"""The run's folder: one owner, one config, whole JSON files."""

import fcntl
import json
import os
import platform

import pytest

from alignjax.config.fields import describe
from alignjax.errors import UserError
from alignjax.runtime import storage, workdirs
from tests import runs


def test_a_folder_has_one_owner(tmp_path):
    folder = tmp_path / "a" / "b"
    owner = f"process {os.getpid()} on {platform.node()}"
    with (
        workdirs.owned(folder),
        pytest.raises(UserError, match=rf"{folder} is in use by {owner}"),
        workdirs.owned(folder),
    ):
        pass
    with workdirs.owned(folder):  # free again
        assert (folder / ".lock").read_text() == owner


def test_an_owner_that_died_keeps_nobody_out(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with workdirs.owned(tmp_path):
        pass


def test_what_killed_runs_left_is_swept(tmp_path):
    kept = [tmp_path / "a.json", tmp_path / ".artifacts" / "held.lock"]
    left = [tmp_path / "a.json.tmp", tmp_path / "sft" / "x.tmp.npy", tmp_path / ".artifacts/b.lock"]
    for path in (*kept, *left):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with kept[1].open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with workdirs.owned(tmp_path):
            assert [path.exists() for path in (*kept, *left)] == [True, True, False, False, False]


def begun(folder):
    (folder / "sft" / "checkpoints").mkdir(parents=True)


def test_another_config_is_refused_field_by_field(tmp_path):
    begun(tmp_path)
    old = runs.get_config()
    workdirs.write_config(tmp_path, old, allow_change=False)
    new = runs.changed("loss.beta=0.2", "optim.learning_rate=0.5", "train.keep=7")
    with pytest.raises(UserError) as caught:
        workdirs.write_config(tmp_path, new, allow_change=False)
    message = str(caught.value)
    assert "(loss.beta: 0.1 -> 0.2; optim.learning_rate: 0.001 -> 0.5)" in message
    assert "--allow_config_change" in message
    assert "\n" not in message
    assert json.loads((tmp_path / "config.json").read_text()) == describe(old)

    workdirs.write_config(tmp_path, new, allow_change=True)
    assert json.loads((tmp_path / "config.json").read_text()) == describe(new)


@pytest.mark.parametrize("trained", [False, True])
def test_a_changed_config_that_is_refused_leaves_the_old_one(trained, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    old, new = runs.get_config(), runs.changed("loss.beta=0.2")
    workdirs.write_config(tmp_path, old, allow_change=False)

    def run():
        with workdirs.bound(tmp_path, new, allow_change=True):
            assert json.loads((tmp_path / "config.json").read_text()) == describe(new)
            if trained:
                (tmp_path / "checkpoints" / "2").mkdir()
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        run()
    kept = new if trained else old
    assert json.loads((tmp_path / "config.json").read_text()) == describe(kept)


# All of these fields are listed in tests/config/config_test.py.
@pytest.mark.parametrize("override", ["train.keep=5", "mesh.data=2", "evaluate.judge=None"])
def test_what_changes_no_number_may_change(override, tmp_path):
    begun(tmp_path)
    workdirs.write_config(tmp_path, runs.get_config(), allow_change=False)
    new = runs.changed(override)
    workdirs.write_config(tmp_path, new, allow_change=False)
    assert json.loads((tmp_path / "config.json").read_text()) == describe(new)


@pytest.mark.parametrize(
    "override", ["train.steps=9", "data.source.size=201", "sft=None", "loss.label_smoothing=0.1"]
)
def test_what_changes_a_number_may_not(override, tmp_path):
    begun(tmp_path)
    workdirs.write_config(tmp_path, runs.get_config(), allow_change=False)
    with pytest.raises(UserError, match=override.partition("=")[0]):
        workdirs.write_config(tmp_path, runs.changed(override), allow_change=False)


def test_a_config_binds_from_the_first_checkpoint_on(tmp_path):
    (tmp_path / "tokenizer.model").write_text("of the first config")
    old, new = runs.get_config(), runs.changed("tokenizer.vocab_size=400")
    workdirs.write_config(tmp_path, old, allow_change=False)
    workdirs.write_config(tmp_path, old, allow_change=False)
    assert (tmp_path / "tokenizer.model").exists()
    workdirs.write_config(tmp_path, new, allow_change=False)
    assert not (tmp_path / "tokenizer.model").exists()
    assert json.loads((tmp_path / "config.json").read_text()) == describe(new)


def test_json_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    assert storage.read_json(path) == {"a": 1}
    path.write_text("{")
    with pytest.raises(UserError, match=r"x\.json cannot be read"):
        storage.read_json(path)


def test_versions_are_of_what_runs():
    import jax

    assert workdirs.versions()["jax"] == jax.__version__
