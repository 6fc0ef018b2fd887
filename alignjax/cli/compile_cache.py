"""Caches compiled programs on disk, so that the next start of a run loads them.

This is JAX's persistent cache. An entry's name is a digest of the program, the compiler's version
and options, and the machine's features: another kind of machine or version of JAX compiles again.
"""

import logging
import os
import pathlib
import secrets

from alignjax.runtime import distributed

log = logging.getLogger("alignjax")

MAX_BYTES = 2 * 2**30  # of the folder; the least recently used entries are removed first
ANOTHER = "JAX_COMPILATION_CACHE_DIR names a folder"  # ends sentences with "unless"


def use() -> None:
    """Turns on JAX's cache of compiled programs; JAX's own settings have precedence.

    Call it before anything is compiled. If the folder cannot be used, it only warns.
    """
    import jax

    settings = jax.config.values
    if not settings["jax_enable_compilation_cache"]:
        return
    # Only process 0 writes entries, and on CPUs the others do not find them. If some processes load
    # and some compile, GPU compilers, which exchange measurements, would wait forever.
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
    """Logs where compiled programs are kept."""
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
    """Returns the user's cache folder, as specified by freedesktop.org."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    top = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return top / "alignjax" / "compiled"


def _make(folder: pathlib.Path) -> None:
    """Makes the folder, accessible only to this user, because its content is executed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    probe.unlink()


def _remove_half_written(folder: pathlib.Path) -> None:
    """Removes entries that a killed program left half-written.

    JAX writes an entry and then, in a second file, the time of its last use, both under its lock.
    An entry without a time makes JAX stop writing to the cache.
    """
    import filelock

    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()
