"""Digests of files that are read again: written beside them, and compared whenever they are read.

A folder that is sealed holds ``digests.json``: the digest of every file in it, and one of that list
itself, written last. Reading a file here compares it with its digest. The digest is XXH3 of 128
bits: several times as fast as SHA-256; it detects damage, not forgery.
"""

import concurrent.futures
import contextlib
import contextvars
import json
import mmap
import os
import pathlib
from collections.abc import Iterator

import xxhash

from alignjax.errors import CheckpointError, naming_file

NAME = "digests.json"
HASHING = 4  # files read at once


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a folder that is complete; this process alone.

    Of a folder in it that is sealed already nothing more is said.
    """
    sealed = [path.parent for path in folder.glob(f"*/{NAME}")]
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME and not any(x in path.parents for x in sealed)
    )
    _write(folder, dict(zip(names, _digests(folder, names), strict=True)))


def forget(folder: pathlib.Path, part: str) -> None:
    """Takes the files of a part, a folder, out of the digests: it is to be removed."""
    kept = {x: digest for x, digest in of(folder).items() if not x.startswith(f"{part}/")}
    _write(folder, kept)


def of(folder: pathlib.Path) -> dict[str, str]:
    """Reads a sealed folder's digests, by the name of the file in it.

    Raises:
      CheckpointError: they cannot be read.
    """
    file = folder / NAME
    try:
        content = json.loads(file.read_bytes())
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        # Earlier versions wrote the list without a digest of its own.
        if content.get("list", _of_list(files)) != _of_list(files):
            raise ValueError("damaged, it has changed since it was written")
        return files
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def find_damage(folder: pathlib.Path, *, share: int = 0, shares: int = 1) -> str:
    """Finds the first file that is not as it was written: its name; empty: all are.

    Args:
      folder: sealed; without digests that is the damage.
      share, shares: which of so many equal shares of the files to read.
    """
    try:
        wanted = of(folder)
    except CheckpointError:
        return NAME
    names = sorted(wanted)[share::shares]
    found = _digests(folder, names)
    return next((x for x, is_now in zip(names, found, strict=True) if is_now != wanted[x]), "")


def read(path: str | os.PathLike[str]) -> bytes:
    """Reads a file; one that lies in a sealed folder, or one below it, is as it was written.

    Raises:
      CheckpointError: it is damaged, or its folder's digests are.
      OSError: it cannot be read.
    """
    file = pathlib.Path(path)
    content = file.read_bytes()
    for folder in (file.parent, file.parent.parent):
        if (folder / NAME).is_file():
            wanted = of(folder).get(str(file.relative_to(folder)))
            if wanted is not None and xxhash.xxh3_128_hexdigest(content) != wanted:
                raise CheckpointError(f"{file}: damaged, it has changed since it was written")
    return content


_is_allowed = contextvars.ContextVar("fallback", default=False)


@contextlib.contextmanager
def falling_back(allowed: bool) -> Iterator[None]:
    """Lets the block pass over damaged checkpoints: `runtime.stores.latest`."""
    token = _is_allowed.set(allowed)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def falls_back() -> bool:
    """Whether damaged checkpoints are passed over."""
    return _is_allowed.get()


def _write(folder: pathlib.Path, files: dict[str, str]) -> None:
    temporary = folder / f"{NAME}.tmp"
    content = {"xxh3": 128, "list": _of_list(files), "files": files}
    with naming_file(folder / NAME):
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(folder / NAME)


def _of_list(files: dict[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())


def _digests(folder: pathlib.Path, names: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(HASHING) as pool:
        return list(pool.map(_digest, (folder / name for name in names)))


def _digest(file: pathlib.Path) -> str:
    """The digest of a file; empty where it cannot be read."""
    try:
        with file.open("rb") as opened:
            if not os.fstat(opened.fileno()).st_size:
                return str(xxhash.xxh3_128_hexdigest(b""))
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return str(xxhash.xxh3_128_hexdigest(content))
    except OSError:
        return ""
