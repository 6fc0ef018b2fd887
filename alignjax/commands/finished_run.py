"""Opens finished runs: loads their config and their parameters from the workdir."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax import digests
from alignjax.config import Config, load
from alignjax.config.fields import describe, identity_changes
from alignjax.errors import UserError
from alignjax.models.config import LoraConfig, ModelConfig, model_from
from alignjax.runtime import checkpoint, sharding, storage, stores, workdirs
from alignjax.runtime.distributed import run_on_main
from alignjax.stages import adapters, pretrained
from alignjax.training import progress
from alignjax.types import Params

ORIGIN = "config_file.json"
FILES = "config_file"  # folder of the files themselves


def note_origin(
    workdir: str, path: str, overrides: list[str], files: Mapping[str, bytes] | None = None
) -> None:
    """Keeps a run's config file, the files beside it that it imports, and the ``--set``.

    Args:
      workdir: the run's folder.
      path: the config file.
      overrides: changes to it.
      files: contents that were read, by name, the config's first; None: read them now.
    """
    files = load.files(path) if files is None else files
    folder = pathlib.Path(workdir) / FILES
    run_on_main("the config's old files", lambda: shutil.rmtree(folder, ignore_errors=True))
    for name, content in files.items():
        storage.write(folder / name, content)
    file, size = load.split_path(path)
    origin = {
        "path": str(pathlib.Path(path).resolve()),
        "set": overrides,
        "folder": str(pathlib.Path.cwd()),  # relative paths in the config start here
        "copy": f"{FILES}/{file.name}{':' * bool(size)}{size}",
    }
    storage.keep_json(pathlib.Path(workdir) / ORIGIN, origin)


def _origin(folder: pathlib.Path) -> tuple[str, list[str]]:
    """Finds the config of a run (its copy, else the original file), and its ``--set``."""
    if not (folder / ORIGIN).is_file():
        raise UserError(f"{folder} has no record of its config: give --config=FILE")
    origin = storage.read_json(folder / ORIGIN)
    copy = str(folder / origin.get("copy", FILES))
    is_there = load.split_path(copy)[0].is_file()
    return copy if is_there else origin["path"], origin["set"]


def located(path: str, folder: pathlib.Path) -> str:
    """Finds a path of a run's config, also relative to the folder in which the run was started."""
    if not path or os.path.exists(path) or not (folder / ORIGIN).is_file():
        return path
    joined = os.path.join(storage.read_json(folder / ORIGIN).get("folder", ""), path)
    return joined if os.path.exists(joined) else path


def _with_found_paths(config: Config, folder: pathlib.Path, *, start: bool) -> Config:
    """Points a run's config to the copies in its folder if the originals are gone.

    The parameters of ``model.path`` have no copy. Adapters need them as their base, and ``start``
    says that they are needed in any case.
    """
    model, tokenizer, kept = config.model, config.tokenizer, folder / "pretrained"
    if model.path:
        path = located(model.path, folder)
        needed = config.sft is None and (start or config.lora is not None)
        if needed and not os.path.exists(path):
            raise UserError(
                f"{folder} needs its base model {model.path}, which does not exist; "
                "if it was moved: --set model.path=FOLDER"
            )
        path = path if os.path.exists(path) or not kept.is_dir() else str(kept)
        model = dataclasses.replace(model, path=path)
    path = workdirs.kept_tokenizer(located(tokenizer.path, folder), folder)
    tokenizer = dataclasses.replace(tokenizer, path=path if tokenizer.path else "")
    return dataclasses.replace(config, model=model, tokenizer=tokenizer)


def config_of(workdir: str, path: str, overrides: list[str], *, start: bool = False) -> Config:
    """Loads the config of a finished run of a policy.

    Args:
      workdir: the run's folder.
      path: a config file; empty: the one that the run was started with.
      overrides: changes to it; fields that determine the training cannot be changed.
      start: whether the parameters of ``model.path`` are needed.

    Raises:
      UserError: there is no such run, it is not finished or of a reward model, or the config
        differs from the run's.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run")
    if not (folder / "summary.json").is_file():
        raise UserError(f"--workdir: {workdir} holds an unfinished run; finish it with run")
    if not path:
        path, original = _origin(folder)
        overrides = [*original, *overrides]
    config = load.load(path, overrides)
    if config.loss is None:
        raise UserError(f"--workdir: {workdir} holds a reward model, wanted a policy")
    config = pretrained.resolve(_with_found_paths(config, folder, start=start))
    other = identity_changes(storage.read_json(folder / "config.json"), config)
    if other:
        raise UserError(
            f"{workdir} holds a run with a different config than {path} ({'; '.join(other)})"
        )
    return config


@dataclasses.dataclass(frozen=True)
class Trained:
    """The place and the shape of the parameters that a run trained."""

    root: pathlib.Path  # the run's folder
    folder: pathlib.Path  # holds the checkpoints; in a game of rounds, the last policy's
    model: ModelConfig
    lora: LoraConfig | None
    seed: int
    sft: bool  # whether it had a supervised stage

    @property
    def checkpoints(self) -> contextlib.AbstractContextManager[Any]:
        """Opens the checkpoints. Removes killed saves, so no run may be saving."""
        return stores.open_store(self.folder / "checkpoints", keep=10**9)


def trained_in(folder: pathlib.Path, description: dict[str, Any]) -> Trained:
    """Finds the parameters of a run; ``description`` is the content of its ``config.json``."""
    lora = description["lora"]
    model = model_from(description, str(folder / "config.json"))
    return Trained(
        folder,
        _policy_folder(description, folder),
        dataclasses.replace(model, path=located(model.path, folder)),
        LoraConfig(**{**lora, "targets": tuple(lora["targets"])}) if lora else None,
        description["train"]["seed"],
        description["sft"] is not None,
    )


def _policy_folder(description: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    game = (description.get("recipe") or {}).get("game", {})
    if "rounds" not in game:
        return folder
    return folder / f"round-{game['rounds']}" / "policy"


def at_checkpoint(trained: Trained, checkpoint: str) -> Trained:
    """Selects the checkpoint to read: ``last``, or ``best``, which `train.keep_best` kept.

    Raises:
      UserError: it is neither, or there is no best checkpoint.
    """
    if checkpoint not in ("last", "best"):
        raise UserError(f"--checkpoint: wanted last or best, found {checkpoint!r}")
    if checkpoint == "last":
        return trained
    best = dataclasses.replace(trained, folder=trained.root / progress.BEST.parent)
    if not (best.folder / "checkpoints").is_dir():
        raise UserError(f"--checkpoint=best: {trained.root} was run without train.keep_best")
    return best


def restore(
    trained: Trained, mesh: Mesh, step: int, *, objectives: int = 0, members: int = 0
) -> tuple[Params, dict[str, Any]]:
    """Restores the parameters of a checkpoint, or its adapters if the run has ``lora``.

    Args:
      trained: from `trained_in`.
      mesh: the devices.
      step: of the checkpoint.
      objectives: outputs of a reward model's head; 0: a policy.
      members: networks trained side by side, on a leading axis; 0: one network, without it.

    Returns:
      The parameters, and the record that was saved with them.
    """
    if trained.lora is None:
        target = pretrained.target(trained.model, mesh, objectives=objectives)
    else:
        target = adapters.target(trained.lora, trained.model, mesh, objectives=objectives)
    if members:
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), target)
        target = sharding.abstract(target, sharding.shard_tree(target, mesh, stacked=True))
    with trained.checkpoints as store:
        return checkpoint.restore_params(store, step, target), checkpoint.read_record(store, step)


def newest_step(trained: Trained) -> int:
    """Finds the step of the newest checkpoint.

    Raises:
      UserError: there is none.
    """
    with trained.checkpoints as store:
        step = stores.latest(store)
    if step is None:
        raise UserError(f"{trained.folder}: no checkpoint yet; run it first")
    return step


def base_digest(identity: dict[str, str]) -> str:
    """Returns the digest of the adapters' base: the reference, except in rounds of a game."""
    return identity.get("base", identity["reference"])


def load_base(trained: Trained, mesh: Mesh, digest: str) -> Params:
    """Loads the adapters' base, the supervised policy.

    Raises:
      UserError: it is missing, or has another digest.
    """
    path = trained.model.path
    if path and not trained.sft and not os.path.exists(path):
        raise UserError(f"{trained.root} needs its base model {path}, which does not exist")
    return adapters.load_base(
        trained.lora,
        trained.model,
        trained.seed,
        trained.root,
        mesh,
        sft=trained.sft,
        digest=digest,
    )


def require_complete(workdir: str) -> None:
    """Refuses a finished run without its last checkpoint, which would train again.

    Raises:
      UserError: the checkpoint is missing, or the folder is in use.
    """
    folder = pathlib.Path(workdir)
    with workdirs.owned(folder):
        _last_step(trained_in(folder, storage.read_json(folder / "config.json")))


def _last_step(trained: Trained) -> int:
    steps = int(storage.read_json(trained.folder / "summary.json")["steps"])
    with trained.checkpoints as store:
        newest = stores.latest(store)
    if newest is not None and digests.falls_back():
        return newest
    if newest != steps:
        raise UserError(
            f"--workdir: {trained.folder} ended at step {steps}, but its newest checkpoint is "
            f"{'missing' if newest is None else f'of step {newest}'}; finish it with run"
        )
    return steps


def load_policy(config: Config, workdir: str, checkpoint: str = "last") -> Params:
    """Loads a finished run's last or best parameters, on the config's mesh.

    The caller owns the folder (`workdirs.owned`).

    Raises:
      UserError: the checkpoint is missing.
    """
    trained = trained_in(pathlib.Path(workdir), describe(config))
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    last, trained = trained, at_checkpoint(trained, checkpoint)
    step = _last_step(trained) if trained is last else newest_step(trained)
    params, record = restore(trained, mesh, step)
    if trained.lora is None:
        return params
    base = load_base(trained, mesh, base_digest(record["identity"]))
    return adapters.whole(config, base, params)
