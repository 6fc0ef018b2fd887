"""What a workdir keeps of its config: enough without the file that it came from."""

import shutil

import pytest

from alignjax.commands import finished_run
from alignjax.config import load
from alignjax.config.fields import describe
from alignjax.errors import UserError
from alignjax.runtime import storage
from tests import runs

CONFIG = """
    from typing import Literal
    import my_loss
    from tests import runs

    def get_config(size: Literal["small", "large"] = "small"):
        return runs.get_config(loss=my_loss.loss)
    """
LOSS = """
    from alignjax.losses import dpo
    import my_numbers

    def loss(logps, batch, *, beta: float = my_numbers.BETA):
        return dpo.loss(logps, batch, beta=beta)
    """


def finished(tmp_path):
    """A folder as a run leaves it, as far as its config goes."""
    mine, workdir = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    path = f"{runs.write(mine / 'c.py', CONFIG)}:large"
    runs.write(mine / "my_loss.py", LOSS)
    runs.write(mine / "my_numbers.py", "BETA = 0.1\n")
    runs.write(mine / "unused.py", "X = 1\n")
    overrides = ["loss.beta=0.3"]
    storage.write_json(workdir / "config.json", describe(load.load(path, overrides)))
    storage.write_json(workdir / "summary.json", {"steps": 8})
    finished_run.note_origin(str(workdir), path, overrides)
    return mine, workdir


def test_a_finished_run_is_read_without_its_config_file(tmp_path):
    mine, workdir = finished(tmp_path)
    kept = {path.name for path in (workdir / finished_run.FILES).iterdir()}
    assert kept == {"c.py", "my_loss.py", "my_numbers.py"}
    runs.write(mine / "my_numbers.py", "BETA = 0.9\n")  # edited, then gone
    for _ in range(2):
        config = finished_run.config_of(str(workdir), "", ["evaluate.prompts=3"])
        assert (config.loss.keywords["beta"], config.evaluate.prompts) == (0.3, 3)
        shutil.rmtree(mine, ignore_errors=True)
    with pytest.raises(UserError, match=r"of another config than .*c\.py:large \(loss\.beta"):
        finished_run.config_of(str(workdir), "", ["loss.beta=0.4"])


def test_a_run_of_an_older_version_is_read_by_the_file_itself(tmp_path):
    mine, workdir = finished(tmp_path)
    shutil.rmtree(workdir / finished_run.FILES)
    assert finished_run.config_of(str(workdir), "", []).loss.keywords["beta"] == 0.3
    shutil.rmtree(mine)
    with pytest.raises(UserError, match=r"--config: no file .*mine/c\.py"):
        finished_run.config_of(str(workdir), "", [])
