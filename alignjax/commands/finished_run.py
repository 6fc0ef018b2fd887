"""Runs that have ended: their config and their policy, from the workdir."""

import pathlib
from typing import Any

from alignjax.config import Config, load
from alignjax.config.fields import describe, identity_changes
from alignjax.errors import UserError
from alignjax.runtime import checkpoint, sharding, workdirs
from alignjax.stages import adapters, pretrained
from alignjax.types import Params

ORIGIN = "config_file.json"


def note_origin(workdir: str, path: str, overrides: list[str]) -> None:
    """Keeps which file and which ``--set`` a run's config came from."""
    origin = {"path": str(pathlib.Path(path).resolve()), "set": overrides}
    workdirs.write_json(pathlib.Path(workdir) / ORIGIN, origin)


def config_of(workdir: str, path: str, overrides: list[str]) -> Config:
    """The config of a finished run of a policy.

    Args:
      workdir: the run's folder.
      path: a config file; empty: the one that the run was started with.
      overrides: changes to it; what was trained cannot be changed.

    Raises:
      UserError: no such run, not finished, of a reward model, or of another config than the file
        now says.
    """
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run")
    if not (folder / "summary.json").is_file():
        raise UserError(f"--workdir: {workdir} holds a run that has not ended; go on with run")
    if not path:
        if not (folder / ORIGIN).is_file():
            raise UserError(f"{workdir} does not say which config it came from: give --config=FILE")
        origin = workdirs.read_json(folder / ORIGIN)
        path, overrides = origin["path"], [*origin["set"], *overrides]
    config = load.load(path, overrides)
    if config.loss is None:
        raise UserError(f"--workdir: {workdir} holds a reward model, wanted a policy")
    config = pretrained.resolve(config)
    other = identity_changes(workdirs.read_json(folder / "config.json"), config)
    if other:
        raise UserError(f"{workdir} holds a run of another config than {path} ({'; '.join(other)})")
    return config


def policy_folder(description: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
    """Where a run keeps the checkpoints of what it trains; of a game in rounds, the last policy's.

    Args:
      description: of the run's config, as ``config.json`` holds it.
      folder: the run's.
    """
    game = (description.get("recipe") or {}).get("game", {})
    if "rounds" not in game:
        return folder
    return folder / f"round-{game['rounds']}" / "policy"


def require_complete(workdir: str) -> None:
    """Sees that the last checkpoint of a finished run is there: going on would train nothing.

    Raises:
      UserError: it is not, or the folder is in use.
    """
    folder = pathlib.Path(workdir)
    with workdirs.owned(folder):
        _last_step(policy_folder(workdirs.read_json(folder / "config.json"), folder))


def _last_step(folder: pathlib.Path) -> int:
    steps = int(workdirs.read_json(folder / "summary.json")["steps"])
    with checkpoint.open_store(folder / "checkpoints", keep=1_000_000) as store:
        newest = checkpoint.latest(store)
    if newest != steps:
        raise UserError(
            f"--workdir: {folder} ended with step {steps}, and its newest checkpoint is of "
            f"{'none' if newest is None else f'step {newest}'}; go on with run"
        )
    return steps


def load_policy(config: Config, workdir: str) -> Params:
    """The parameters that a finished run ended with, on the config's mesh.

    Raises:
      UserError: the checkpoint is not there. The folder is to be `workdirs.owned`.
    """
    folder = policy_folder(describe(config), pathlib.Path(workdir))
    steps = _last_step(folder)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    if config.lora is None:
        target = pretrained.target(config.model, mesh)
    else:
        target = adapters.target(config.lora, config.model, mesh)
    with checkpoint.open_store(folder / "checkpoints", keep=1_000_000) as store:
        digest = checkpoint.read_record(store, steps)["identity"]["reference"]
        params = checkpoint.restore_params(store, steps, target)
    if config.lora is None:
        return params
    seed, sft = config.train.seed, config.sft is not None
    base = adapters.load_base(config.lora, config.model, seed, folder, mesh, sft=sft, digest=digest)
    return adapters.whole(config, base, params)
