"""Trains from Python: a run of `recipes`, with data and an optimizer in memory."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optax

from alignjax import recipes
from alignjax.commands import export
from alignjax.config import Config, DataConfig, EvaluateConfig, OptimConfig, TrainConfig
from alignjax.config.fields import keywords, plain
from alignjax.config.load import override
from alignjax.data import sources
from alignjax.data.records import DataReport
from alignjax.errors import UserError
from alignjax.library.loading import Policy, is_run, load
from alignjax.models.config import ModelConfig
from alignjax.recipes import align, short
from alignjax.runtime import logs, metrics, storage
from alignjax.runtime.metrics import Watch
from alignjax.stages.data import read_source
from alignjax.training import optim
from alignjax.types import Loss, Params

Data = str | pathlib.Path | Iterable[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """The result of a training."""

    policy: Policy | None  # the trained policy; None: the config trains a reward model
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    summary: dict[str, Any]  # the table before and after, as in summary.json
    data_report: dict[str, Any]  # rows read, kept and dropped, with the reasons
    workdir: pathlib.Path  # the run, for every command of ``python -m alignjax``

    @property
    def params(self) -> Params:
        """The trained parameters."""
        return None if self.policy is None else self.policy.params


def train(
    start: Config | Policy,
    data: Data | None = None,
    loss: Loss | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    workdir: str | pathlib.Path = "",
    set: Sequence[str] = (),
    on_log: Callable[[int, dict[str, Any]], None] | None = None,
    on_evaluation: Callable[[int, dict[str, Any]], None] | None = None,
) -> Result:
    """Trains and measures before and after; saves everything in a run's folder.

    Args:
      start: a config, whose recipe runs; or a policy to align with ``loss``, the defaults of
        `alignjax.config` and a cosine schedule: all parameters are trained, and with a chat
        template prompts of plain text are user messages.
      data: a file, a list of dicts, or a data set of the package ``datasets``; rows of any kind
        that docs/data.md lists. None: the config's.
      loss: a function of ``aj.losses`` with its hyperparameters bound. None: the config's.
      optimizer: of optax, instead of AdamW and its schedule.
      workdir: of the run, which can resume there; empty: a new temporary folder.
      set: changes, as on the command line: ``["train.steps=100", "lora.rank=8"]``.
      on_log: called with the step and the metrics of every line of metrics.jsonl.
      on_evaluation: the same for every evaluation during training.

    Raises:
      UserError: see `alignjax.errors`; or a policy has no data or loss, or its parameters differ
        from those of its source; or there are an optimizer or callbacks with another recipe than
        `recipes.align_policy`.
    """
    logs.show_lines()
    folder = pathlib.Path(workdir or tempfile.mkdtemp(prefix="alignjax-"))
    config = start if isinstance(start, Config) else _config(start, data, loss, folder)
    if loss is not None:
        config = dataclasses.replace(config, loss=loss)
    if data is not None:
        config = dataclasses.replace(config, data=_with_path(config.data, _file(data, folder)))
    if isinstance(start, Policy):
        config = dataclasses.replace(config, data=_for_chat(config.data, start))
    config = override(config, list(set))
    watch = Watch(*(x or _ignore for x in (on_log, on_evaluation)))
    if config.recipe in (None, recipes.align_policy) and config.loss is not None:
        summary = align.run(config, folder, watch=watch, optimizer=optimizer)
    elif optimizer is None and on_log is None and on_evaluation is None:
        summary = recipes.run_config(config, folder)
    else:
        raise UserError("train: optimizer, on_log and on_evaluation work only with align_policy")
    return Result(
        policy=load(folder) if config.loss is not None else None,
        metrics=_lines(folder),
        summary=summary,
        data_report=summary["data_report"],
        workdir=folder,
    )


def _ignore(step: int, values: dict[str, Any]) -> None:
    """Does nothing."""


def _lines(folder: pathlib.Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return metrics.read(path) if path.is_file() else []


def _config(policy: Policy, data: Data | None, loss: Loss | None, folder: pathlib.Path) -> Config:
    """Makes the config of a run that starts from a policy."""
    if data is None or loss is None:
        raise UserError("train: a policy needs data and a loss: train(policy, rows, loss)")
    path = policy.source
    if is_run(pathlib.Path(path)):  # runs start from models, so export it
        path = str(folder / "start")
        if not pathlib.Path(path).exists():
            export.export(policy.source, path)
    return Config(
        data=DataConfig(),
        model=ModelConfig(path=path, dtype=policy.config.dtype),
        loss=loss,
        optim=OptimConfig(schedule=optim.cosine),
        train=TrainConfig(),
        evaluate=EvaluateConfig(prompts=16, samples=1, batch_size=8),
    )


def _for_chat(data: DataConfig, policy: Policy) -> DataConfig:
    """Turns plain-text prompts into user messages for chat models, as the commands do."""
    first = next(read_source(data, data.path, DataReport()), None)
    return data if first is None else short.as_messages(data, first, policy.tokenizer)


def _with_path(data: DataConfig, path: str) -> DataConfig:
    """Replaces the data of a config by a file."""
    source = data.source if "path" in keywords(plain(data.source)) else sources.auto
    return dataclasses.replace(data, source=source, path=path, split="")


def _file(data: Data, folder: pathlib.Path) -> str:
    """Returns the file of the data; writes rows in memory to a file in the run's folder."""
    if isinstance(data, str | pathlib.Path):
        return str(data)
    lines = []
    for i, row in enumerate(data):
        if not isinstance(row, Mapping):
            raise UserError(f"data[{i}]: wanted a dict, found {type(row).__name__}")
        try:
            lines.append(json.dumps(dict(row), ensure_ascii=False) + "\n")
        except (TypeError, ValueError) as error:
            raise UserError(f"data[{i}]: {error}") from None
    path = folder / "data.jsonl"
    storage.write(path, "".join(lines).encode())
    return str(path)
