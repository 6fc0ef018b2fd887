"""Opens loggers of a training's metrics: TensorBoard, W&B, Trackio, MLflow.

A function per logger imports its package and opens it for a run's folder. Metrics are grouped:
``train/loss``, ``eval/loss``. The settings of the run (its config.json) are logged too.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any

from alignjax.errors import UserError
from alignjax.runtime import distributed
from alignjax.runtime.loggers.board import Board

PROJECT = "alignjax"
PACKAGES = {name: name for name in ("wandb", "trackio", "mlflow")} | {"tensorboard": "tensorboardX"}


@dataclasses.dataclass(frozen=True)
class Logger:
    """Logs the metrics of a training."""

    write: Callable[[int, dict[str, Any]], None]  # step, metrics by grouped names
    close: Callable[[], None]


def check(names: tuple[str, ...]) -> None:
    """Refuses loggers whose package is not installed.

    Raises:
      UserError: names the package and the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"train.loggers: wanted the package {PACKAGES[name]} for {name}, found none: pip "
                f"install -e '.[{name}]'"
            )


def open_all(names: tuple[str, ...], workdir: pathlib.Path, *, after_step: int) -> list[Logger]:
    """Opens loggers for a run's folder.

    Args:
      names: of `PACKAGES`.
      workdir: of the training; its config.json, if there is one, has the settings.
      after_step: metrics of later steps are logged again.
    """
    file = workdir / "config.json"
    settings = flat(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    openers = {"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow, "tensorboard": _tensorboard}
    return [openers[name](workdir, settings, after_step) for name in names]


def grouped(values: dict[str, Any]) -> dict[str, float]:
    """Groups metrics under ``train/`` and ``eval/``; leaves out values that are not finite."""
    names = {
        name: f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
        for name in values
    }
    return {names[n]: float(x) for n, x in values.items() if x is not None and math.isfinite(x)}


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names; lists become text."""
    if isinstance(value, dict):
        return {
            name: x
            for key, inner in value.items()
            for name, x in flat(inner, f"{at}.{key}" if at else str(key)).items()
        }
    return {at: json.dumps(value) if isinstance(value, list) else value}


def _name(workdir: pathlib.Path) -> str:
    """Names a run by its folder, and a stage inside a run by both folders."""
    folder = workdir.resolve()
    inside = not (folder / "config.json").is_file()
    return f"{folder.parent.name}/{folder.name}" if inside else folder.name


def _identity(workdir: pathlib.Path) -> str:
    return hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]


def _tensorboard(workdir: pathlib.Path, settings: dict[str, Any], after_step: int) -> Logger:
    rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
    table = f"| field | value |\n|---|---|\n{rows}" if rows and not after_step else ""
    texts = {"settings": table} if table else {}
    board = Board(workdir / "tensorboard", after_step, texts, settings if table else None)
    return Logger(board.write, board.close)


def show_samples(
    names: tuple[str, ...], workdir: pathlib.Path, step: int, samples: dict[str, tuple[str, str]]
) -> None:
    """Writes responses to TensorBoard's page of texts, if it is among the loggers.

    Args:
      names, workdir: as in `open_all`.
      step: at which the second responses were sampled.
      samples: by prompt, the response before training and after it.
    """
    if "tensorboard" not in names or not samples or not distributed.is_main():
        return
    parts = [
        f"**{name}**\n\n{textwrap.indent(text.strip() or '(empty)', '    ')}"
        for prompt, responses in samples.items()
        for name, text in zip(("prompt", "before", "after"), (prompt, *responses), strict=True)
    ]
    # In a separate folder: files of the same second have the same name and would be overwritten.
    folder = workdir / "tensorboard" / "samples"
    Board(folder, step, {"samples": "\n\n".join(parts)}).close()


def _wandb(workdir: pathlib.Path, settings: dict[str, Any], after_step: int) -> Logger:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        project=PROJECT,
        name=_name(workdir),
        id=_identity(workdir),
        resume="allow",
        dir=str(workdir),
        config=settings,
    )
    return Logger(lambda step, values: run.log(values, step=step), run.finish)


def _trackio(workdir: pathlib.Path, settings: dict[str, Any], after_step: int) -> Logger:
    trackio = importlib.import_module("trackio")
    trackio.init(project=PROJECT, name=_name(workdir), config=settings, resume="allow")
    return Logger(lambda step, values: trackio.log(values, step=step), trackio.finish)


def _mlflow(workdir: pathlib.Path, settings: dict[str, Any], after_step: int) -> Logger:
    mlflow = importlib.import_module("mlflow")
    kept = workdir / "mlflow_run"
    if kept.is_file():
        mlflow.start_run(run_id=kept.read_text(encoding="utf-8"))
    else:
        run = mlflow.start_run(run_name=_name(workdir))
        kept.write_text(run.info.run_id, encoding="utf-8")
        mlflow.log_params({name: str(value)[:500] for name, value in settings.items()})

    def write(step: int, values: dict[str, Any]) -> None:
        mlflow.log_metrics(values, step=step)

    return Logger(write, mlflow.end_run)
