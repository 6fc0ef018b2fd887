"""Keeps what JAX compiles on disk, so that the next start of a run loads it.

JAX's own persistent cache does the work. An entry's name is a digest of the program, the compiler's
version and options, and the machine's features, so another kind of machine or another version of
JAX finds nothing and compiles.
"""

import logging
import os
import pathlib
import secrets

from alignjax.runtime import distributed

log = logging.getLogger("alignjax")

MAX_BYTES = 2 * 2**30  # of the folder: what was used the longest time ago goes first
ANOTHER = "JAX_COMPILATION_CACHE_DIR names a folder"


def use() -> None:
    """Makes JAX keep compiled programs; JAX's own settings come first.

    Call it before anything is compiled. A folder that cannot be used costs a warning and compiling
    again, and no more.
    """
    import jax

    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return
    # JAX lets process 0 alone write, and on CPUs the others do not find its entries. Where some
    # load and some compile, compilers that exchange measurements (GPUs) would wait for ever.
    if settings["jax_compilation_cache_dir"] is not None or distributed.several():
        return
    try:
        folder = _folder()
        _make(folder)
        _remove_half_written(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        log.warning("compiled programs: not kept (%s), unless %s", error, ANOTHER)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if settings["jax_compilation_cache_max_size"] == -1:  # no bound: JAX's default
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


def say() -> None:
    """Says where compiled programs are kept."""
    import jax

    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return
    folder = settings["jax_compilation_cache_dir"]
    if folder is not None:
        log.info("compiled programs: kept in %s", folder)
    elif distributed.several():
        log.info("compiled programs: not kept by several processes, unless %s for all", ANOTHER)


def _folder() -> pathlib.Path:
    """The user's cache folder, as freedesktop.org specifies it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    top = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return top / "alignjax" / "compiled"


def _make(folder: pathlib.Path) -> None:
    """Makes the folder, for this user only, because its content is executed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    probe.unlink()


def _remove_half_written(folder: pathlib.Path) -> None:
    """Removes entries of programs that were killed while they wrote one.

    JAX writes an entry, then the time of its last use beside it, both under its lock. It stops
    writing for good at an entry without a time.
    """
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()
