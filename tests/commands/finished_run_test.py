"""What a workdir keeps: enough without the files that it came from."""

import contextlib
import shutil

import pytest

from alignjax.commands import finished_run
from alignjax.config import load
from alignjax.config.fields import describe
from alignjax.errors import UserError
from alignjax.runtime import storage, workdirs
from alignjax.stages import pretrained
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
    with pytest.raises(UserError, match=r"a different config than .*c\.py:large \(loss\.beta"):
        finished_run.config_of(str(workdir), "", ["loss.beta=0.4"])


def test_a_run_of_an_older_version_is_read_by_the_file_itself(tmp_path):
    mine, workdir = finished(tmp_path)
    shutil.rmtree(workdir / finished_run.FILES)
    assert finished_run.config_of(str(workdir), "", []).loss.keywords["beta"] == 0.3
    shutil.rmtree(mine)
    with pytest.raises(UserError, match=r"--config: no file .*mine/c\.py"):
        finished_run.config_of(str(workdir), "", [])


STORY = runs.ROOT / "tests" / "parity" / "data" / "story"
OF_MODEL = """
    from alignjax.models.config import LoraConfig, ModelConfig
    from tests import runs

    def get_config():
        model = ModelConfig(path="my-model")
        return runs.get_config(model=model, lora=LoraConfig(rank=4), sft=None)
    """


@pytest.mark.parametrize("adapters", [True, False])
def test_a_model_that_has_moved_is_needed_by_adapters_alone(adapters, tmp_path):
    """A relative path is of the folder that the run began in."""
    shutil.copytree(STORY, tmp_path / "my-model")
    path, workdir = runs.write(tmp_path / "c.py", OF_MODEL), tmp_path / "run"
    overrides = [] if adapters else ["lora=none"]
    with contextlib.chdir(tmp_path):
        config = pretrained.resolve(load.load(str(path), overrides))
        storage.write_json(workdir / "config.json", describe(config))
        storage.write_json(workdir / "summary.json", {"steps": 8})
        pretrained.keep_files(config, workdir)
        finished_run.note_origin(str(workdir), str(path), overrides)
    began = finished_run.config_of(str(workdir), "", [])
    assert began.model.path == began.tokenizer.path == str(tmp_path / "my-model")
    assert finished_run.trained_in(workdir, describe(config)).model.path == began.model.path
    shutil.move(tmp_path / "my-model", tmp_path / "moved")
    moved = [f"model.path={tmp_path / 'moved'}"]
    assert finished_run.config_of(str(workdir), "", moved).model.path == str(tmp_path / "moved")
    needed = r"run needs its base model .*does not exist; .*--set model\.path=FOLDER"
    with pytest.raises(UserError, match=needed):
        finished_run.config_of(str(workdir), "", [], start=True)
    if adapters:
        with pytest.raises(UserError, match=needed):
            finished_run.config_of(str(workdir), "", [])
        with pytest.raises(UserError, match="needs its base model"):
            finished_run.load_base(finished_run.trained_in(workdir, describe(config)), None, "")
    else:
        found = finished_run.config_of(str(workdir), "", [])
        assert found.model.path == found.tokenizer.path == str(workdir / "pretrained")


def test_a_tokenizer_is_found_where_it_was_or_in_the_run(tmp_path):
    mine = tmp_path / "mine" / "t.json"
    assert workdirs.kept_tokenizer(str(mine), tmp_path) == str(mine)  # none: it is told later
    (tmp_path / "tokenizer").mkdir()
    assert workdirs.kept_tokenizer(str(mine), tmp_path) == str(tmp_path / "tokenizer")
    copy = runs.write(tmp_path / "tokenizer" / "t.json", "{}")
    assert workdirs.kept_tokenizer(str(mine), tmp_path) == str(copy)
    mine.parent.mkdir()
    mine.write_text("{}")
    assert workdirs.kept_tokenizer(str(mine), tmp_path) == str(mine)
