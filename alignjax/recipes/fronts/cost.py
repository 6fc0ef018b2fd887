"""What methods of several objectives cost: device seconds of steps and of sampling, by part.

Not the clock of the whole run: reading, compiling, saving and measuring are left out. Training
counts as ``step_seconds`` does (`train.loop`), sampling as `metrics.timed`, both over all starts of
a killed run. With others on the same device their share is in it.
"""

import pathlib

from alignjax import metrics
from alignjax.recipes.fronts.setting import Setting


def note_seconds(setting: Setting, name: str, seconds: float) -> None:
    """Keeps the time that a part of a method took; told again, the new time stands."""
    from alignjax.recipes import workdirs

    folder = setting.workdir / "seconds"
    folder.mkdir(exist_ok=True)
    workdirs.write_json(folder / f"{name.replace('/', '-')}.json", seconds)


def note_steps(setting: Setting, name: str) -> None:
    """Keeps the time that the steps of a training in ``workdir/name`` took."""
    lines = metrics.read(setting.workdir / name / "metrics.jsonl")
    note_seconds(setting, name, lines[-1]["step_seconds"])


def seconds(workdir: pathlib.Path) -> dict[str, float]:
    """What every part of a run's method took, by name."""
    from alignjax.recipes import workdirs

    return {p.stem: workdirs.read_json(p) for p in sorted((workdir / "seconds").glob("*.json"))}
