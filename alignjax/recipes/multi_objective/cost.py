"""What methods of several objectives cost: device seconds of steps and of sampling, by part.

Not the clock of the whole run: reading, compiling, saving and measuring are left out. Training
counts as ``step_seconds`` does (`loop.loop`), sampling as `metrics.timed`, both over all starts of
a killed run. With others on the same device their share is in it.
"""

import pathlib

from alignjax.recipes.multi_objective.method import Setting
from alignjax.runtime import metrics
from alignjax.runtime.distributed import broadcast


def note_seconds(setting: Setting, name: str, seconds: float) -> None:
    """Keeps the time that a part of a method took; told again, the new time stands."""
    from alignjax.runtime import workdirs

    path = setting.workdir / "seconds" / f"{name.replace('/', '-')}.json"
    workdirs.write_json(path, seconds)


def note_steps(setting: Setting, name: str) -> None:
    """Keeps the time that the steps of a training in ``workdir/name`` took."""
    path = setting.workdir / name / "metrics.jsonl"
    note_seconds(
        setting, name, broadcast("seconds", lambda: metrics.read(path)[-1]["step_seconds"])
    )


def seconds(workdir: pathlib.Path) -> dict[str, float]:
    """What every part of a run's method took, by name."""
    from alignjax.runtime import workdirs

    folder = workdir / "seconds"
    names = workdirs.names(folder, "*.json")
    return {name.removesuffix(".json"): workdirs.read_json(folder / name) for name in names}
