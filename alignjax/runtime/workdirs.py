"""Locks a run's folder, and keeps the config that it belongs to."""

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import alignjax
from alignjax.config.fields import describe, identity_changes
from alignjax.errors import UserError, naming_file
from alignjax.runtime.distributed import is_main, run_on_main
from alignjax.runtime.storage import keep_here, read_here

log = logging.getLogger("alignjax")


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[None]:
    """Makes and locks a run's folder; a killed process releases the lock.

    Raises:
      UserError: the folder cannot be written, or another run uses it.
    """
    with contextlib.ExitStack() as held:
        run_on_main("the workdir's lock", lambda: _lock(workdir, held))
        yield


def _lock(workdir: pathlib.Path, held: contextlib.ExitStack) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # "a+" does not empty the file: it names the owner until we have the lock.
        lock = held.enter_context((workdir / ".lock").open("a+"))
    except OSError as error:
        raise UserError(f"--workdir: {workdir} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        raise UserError(f"--workdir: {workdir} is in use by {lock.read() or '?'}") from None
    _sweep(workdir)
    lock.truncate(0)
    # Unbuffered: a failed buffered write would be repeated when the file is closed.
    with naming_file(workdir / ".lock"):
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())


def _sweep(workdir: pathlib.Path) -> None:
    """Removes half-written files and unused locks of killed runs."""
    for path in (x for end in ("tmp", "tmp.npy") for x in workdir.rglob(f"*.{end}")):
        if path.is_file() and "checkpoints" not in path.parts:
            path.unlink()
    for path in workdir.rglob(".artifacts/*.lock"):
        with contextlib.suppress(OSError), path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def bound(workdir: pathlib.Path, config: Any, *, allow_change: bool) -> Iterator[None]:
    """Writes the run's config (`write_config`), and restores the old one if the run is refused.

    A run is refused if it raises a UserError before it writes a checkpoint.
    """
    path = workdir / "config.json"
    before = path.read_bytes() if path.is_file() else None
    checkpoints = set(workdir.glob("**/checkpoints/*"))
    write_config(workdir, config, allow_change=allow_change)
    try:
        yield
    except UserError:
        trained = set(workdir.glob("**/checkpoints/*")) - checkpoints
        if checkpoints and before is not None and not trained and is_main():
            path.write_bytes(before)
        raise


def write_config(workdir: pathlib.Path, config: Any, *, allow_change: bool) -> None:
    """Writes the run's config; refuses a different one unless ``allow_change``.

    Before the first checkpoint, the config may change freely, and the tokenizer that was trained on
    the old config's data is removed.

    Raises:
      UserError: the folder has a run with another config; names the fields.
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
                f"{workdir} holds a run with a different config ({'; '.join(changes)}): use "
                "another --workdir, or --allow_config_change to continue with the new config"
            )
        for change in changes:
            log.warning("config changed: %s", change)
    keep_here(path, description)


def kept_tokenizer(path: str, workdir: pathlib.Path) -> str:
    """Finds a run's tokenizer: the path in its config, or the copy in the run's folder."""
    folders = [workdir / "pretrained", workdir / "tokenizer"]
    copies = [p for f in folders for p in (f / os.path.basename(path), f) if p.exists()]
    return path if os.path.exists(path) or not copies else str(copies[0])


def versions() -> dict[str, str]:
    """Returns the versions of the packages that results depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "alignjax": alignjax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
