"""The run's folder: who owns it, which config it belongs to, JSON files that are never half."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import alignjax
from alignjax.errors import UserError
from alignjax.faults import fault_point
from alignjax.fields import differences

log = logging.getLogger("alignjax")

# What may change between two starts of one run: it decides when, where and how it is measured,
# not what is trained.
FREE = (
    "train.save_every",
    "train.log_every",
    "train.eval_every",
    "train.keep",
    "train.max_skipped",
    "train.stuck_after",
    *(f"game.train.{name}" for name in ("save_every", "log_every", "eval_every", "keep")),
    "game.train.max_skipped",
    "game.train.stuck_after",
    "data.cache_dir",
    "reference.mode",
    "mesh.",
    "evaluate.",
    "objectives.box",
    "objectives.truth",
    "model.path",  # what is in it counts: the reference's and the tokenizer's digests
    "tokenizer.path",
    "model.remat",
    "model.attention",
    "model.logits_chunk",
)


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it; the lock dies with the process.

    Raises:
      UserError: the folder cannot be written, or another run has it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"--workdir: {workdir} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(f"--workdir: {workdir} is in use by {lock.read() or '?'}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def write_config(workdir: pathlib.Path, description: dict[str, Any], *, allow_change: bool) -> None:
    """Keeps the run's config; refuses another one, field by field, unless told otherwise.

    A config binds from the first checkpoint on. Until then it may be mended freely, and what was
    made of the old one (the tokenizer trained on its data) is removed.

    Raises:
      UserError: the folder belongs to a run that trains something else.
    """
    path = workdir / "config.json"
    begun = any(any(workdir.glob(f"{p}checkpoints")) for p in ("", "*/", "*/*/"))
    if path.is_file() and not begun and read_json(path) != description:
        (workdir / "tokenizer.model").unlink(missing_ok=True)
    elif path.is_file():
        changes = [
            change
            for change in differences(read_json(path), description)
            if not change.startswith(FREE)
        ]
        if changes and not allow_change:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(changes)}): use another "
                "--workdir, or --allow_config_change to go on with the new one"
            )
        for change in changes:
            log.warning("config changed: %s", change)
    write_json(path, description)


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file in one step: readers see the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def kept(path: pathlib.Path, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a JSON file holds, if it was written under this key; else what is made and written now.

    Args:
      key: JSON data that changes whenever the content would.
    """
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    if found.get("key") != key:
        found = {"key": key, **make()}
        write_json(path, found)
        fault_point("kept", path.name)
    return found


def begin(folder: pathlib.Path, key: Any) -> None:
    """Makes the folder of a stage that trains; one that was begun under another key is removed.

    Args:
      key: JSON data that changes whenever what is trained would.
    """
    path = folder / "begun.json"
    if folder.is_dir() and (not path.is_file() or read_json(path) != key):
        log.warning("%s was begun under another config: training it again", folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, key)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "alignjax": alignjax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
