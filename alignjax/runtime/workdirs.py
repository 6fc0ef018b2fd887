"""The run's folder: who owns it, which config it belongs to, files that are never half.

Of several processes the first one alone reads and writes these files; the others wait for it and
get what it read. So all decide alike, however late their view of a shared folder is. All processes
call the functions here, except those that say "this process alone". Checkpoints are written by all:
`alignjax.runtime.checkpoint`.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator
from typing import Any

import alignjax
from alignjax.config.fields import describe, identity_changes
from alignjax.errors import UserError
from alignjax.runtime.distributed import broadcast, run_on_main

log = logging.getLogger("alignjax")


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it; the lock dies with the process.

    Raises:
      UserError: the folder cannot be written, or another run has it.
    """
    with contextlib.ExitStack() as held:
        run_on_main("the workdir's lock", lambda: _lock(workdir, held))
        yield


def _lock(workdir: pathlib.Path, held: contextlib.ExitStack) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context((workdir / ".lock").open("a+"))
    except OSError as error:
        raise UserError(f"--workdir: {workdir} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise UserError(f"--workdir: {workdir} is in use by {lock.read() or '?'}") from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()


def write_config(workdir: pathlib.Path, config: Any, *, allow_change: bool) -> None:
    """Keeps the run's config; refuses another one, field by field, unless told otherwise.

    A config binds from the first checkpoint on. Until then it may be mended freely, and what was
    made of the old one (the tokenizer trained on its data) is removed.

    Raises:
      UserError: the folder belongs to a run that trains something else.
    """
    run_on_main("config.json", lambda: _write_config(workdir, config, allow_change))


def _write_config(workdir: pathlib.Path, config: Any, allow_change: bool) -> None:
    path, description = workdir / "config.json", describe(config)
    begun = any(any(workdir.glob(f"{p}checkpoints")) for p in ("", "*/", "*/*/"))
    if path.is_file() and not begun and read_here(path) != description:
        (workdir / "tokenizer.model").unlink(missing_ok=True)
    elif path.is_file():
        changes = identity_changes(read_here(path), config)
        if changes and not allow_change:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(changes)}): use another "
                "--workdir, or --allow_config_change to go on with the new one"
            )
        for change in changes:
            log.warning("config changed: %s", change)
    write_here(path, as_json(description))


def find_json(path: pathlib.Path) -> Any:
    """Reads a JSON file; None where there is none.

    Raises:
      UserError: it is not JSON.
    """
    return broadcast(f"look for {path.name}", lambda: read_here(path) if path.is_file() else None)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    return broadcast(f"read {path.name}", lambda: read_here(path))


def read_here(path: pathlib.Path) -> Any:
    """As `read_json`, but this process alone: for use inside `broadcast` and `run_on_main`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """As `write`, for JSON data."""
    write(path, as_json(content))


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one step: readers see the old one or the new one. Makes its folder."""
    run_on_main(f"write {path.name}", lambda: write_here(path, content))


def as_json(content: Any) -> bytes:
    """Encodes JSON data as the bytes of a file."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_here(path: pathlib.Path, content: bytes) -> None:
    """As `write`, but this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def names(folder: pathlib.Path, pattern: str) -> list[str]:
    """Lists the files of a folder that match, sorted; none where there is no folder."""
    return broadcast(f"list {folder.name}", lambda: sorted(p.name for p in folder.glob(pattern)))


def sha256(path: pathlib.Path) -> str:
    """Computes the digest of a file; empty where there is none."""

    def digest() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    return broadcast(f"digest of {path.name}", digest)


def copy(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copies a file. Makes the folder it goes to."""
    run_on_main(f"copy {source.name}", lambda: write_here(to, source.read_bytes()))


def remove_here(path: pathlib.Path) -> None:
    """Removes a file, or a folder and all in it, or nothing; this process alone."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "alignjax": alignjax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
