"""Saves the costs of methods: device seconds of training steps and of sampling, by part.

They do not include reading, compiling, saving and measuring. Steps are timed as ``train_seconds``
(`training.loop`), sampling by `metrics.timed`, both over all starts of a killed run. Time that
other programs use on the device is included.
"""

import pathlib

from alignjax.recipes.multi_objective.method import Setting
from alignjax.runtime import metrics
from alignjax.runtime.distributed import broadcast


def note_seconds(setting: Setting, name: str, seconds: float) -> None:
    """Saves the seconds that a part of a method took; a later value replaces them."""
    from alignjax.runtime import storage

    path = setting.run.workdir / "seconds" / f"{name.replace('/', '-')}.json"
    storage.keep_json(path, seconds)


def note_steps(setting: Setting, name: str) -> None:
    """Saves the seconds that the steps of the training in ``workdir/name`` took."""
    path = setting.run.workdir / name / "metrics.jsonl"
    seconds = broadcast("seconds", lambda: _train_seconds(path))
    note_seconds(setting, name, seconds)


def _train_seconds(path: pathlib.Path) -> float:
    """Reads the seconds of all steps; lines of earlier versions call them ``step_seconds``."""
    last = metrics.read(path)[-1]
    return float(last.get("train_seconds", last["step_seconds"]))


def read_seconds(workdir: pathlib.Path) -> dict[str, float]:
    """Reads the seconds of every part of a run's method, by name."""
    from alignjax.runtime import storage

    folder = workdir / "seconds"
    names = storage.names(folder, "*.json")
    return {name.removesuffix(".json"): storage.read_json(folder / name) for name in names}
