"""Where numbers go beside metrics.jsonl: each logger, through a package that only remembers."""

import json
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from alignjax.errors import UserError
from alignjax.runtime import loggers
from alignjax.runtime.metrics import Writer


class Package(types.ModuleType):
    """A package in the place of a logger's: notes every call."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []
        self.info = types.SimpleNamespace(run_id="r1")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **options):
            self.calls.append((name, args, options))
            return self

        return call


@pytest.fixture(params=["wandb", "trackio", "mlflow"])
def package(request, monkeypatch):
    made = Package(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    return made


def test_a_logger_gets_settings_and_grouped_numbers_under_one_run(package, tmp_path):
    name = package.__name__
    (tmp_path / "config.json").write_text('{"loss": {"beta": 0.1}, "parts": [1, 2]}')
    for start in (0, 2):
        writer = Writer(tmp_path, after_step=start, names=(name,))
        values = {"loss": 0.5, "eval_rewards/margins": 1.0, "grad_norm": float("nan")}
        writer.write(start + 1, values)
        writer.close()
    settings = {"loss.beta": 0.1, "parts": "[1, 2]"}
    numbers = {"train/loss": 0.5, "eval/rewards/margins": 1.0}
    calls = package.calls
    written = [x for x in calls if x[0] in ("log", "log_metrics")]
    assert [(x[1], x[2]) for x in written] == [((numbers,), {"step": step}) for step in (1, 3)]
    if name == "mlflow":
        assert ("log_params", ({k: str(v) for k, v in settings.items()},), {}) in calls
        starts = [x[2] for x in calls if x[0] == "start_run"]
        assert starts == [{"run_name": tmp_path.name}, {"run_id": "r1"}]
        assert [x[0] for x in calls].count("log_params") == 1
    else:
        first, second = (x[2] for x in calls if x[0] == "init")
        assert first == second
        assert (first["config"], first["name"], first["resume"]) == (
            settings,
            tmp_path.name,
            "allow",
        )
    assert calls[-1][0] in ("finish", "end_run")


def test_a_logger_without_its_package_is_refused_before_anything_else(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^train.loggers: wanted the package wandb .*: pip inst"):
        loggers.check(("wandb",))


def test_tensorboard_groups_numbers_and_shows_the_settings(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"loss": {"beta": 0.1}, "sft": None}))
    writer = Writer(tmp_path, after_step=0)
    writer.write(1, {"loss": 0.5, "eval_loss": 0.25})
    writer.close()
    [file] = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    for text in (b"train/loss", b"eval/loss", b"| loss.beta | 0.1 |"):
        assert text in content
    [start] = [x for x in summaries(file) if x.tag == "_hparams_/session_start_info"]
    found = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    numbers = found.session_start_info.hparams
    assert numbers["loss.beta"].number_value == 0.1
    assert numbers["sft"].string_value == "none"


def summaries(file):
    """What a file of events holds: of each a length, 4 bytes, the event, 4 bytes."""
    content, found = file.read_bytes(), []
    while content:
        end = 12 + int.from_bytes(content[:8], "little")
        found += Event.FromString(content[12:end]).summary.value
        content = content[end + 4 :]
    return found


def test_tensorboard_shows_samples_and_other_loggers_do_not(tmp_path):
    samples = {"Sell it?": ("No.", " Yes,\nsell it."), "Who?": ("", "I")}
    loggers.show_samples(("wandb",), tmp_path, 7, samples)
    loggers.show_samples(("tensorboard",), tmp_path, 7, {})
    assert not list(tmp_path.iterdir())
    Writer(tmp_path, after_step=0).close()
    loggers.show_samples(("tensorboard",), tmp_path, 7, samples)
    assert len(list((tmp_path / "tensorboard").glob("events*"))) == 1  # not replaced
    [file] = (tmp_path / "tensorboard" / "samples").iterdir()
    [shown] = summaries(file)
    text = shown.tensor.string_val[0].decode()
    for part in (
        "**prompt**\n\n    Sell it?",
        "**after**\n\n    Yes,\n    sell it.",
        "    (empty)",
    ):
        assert part in text
