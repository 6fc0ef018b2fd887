"""Writes the digests of files, and compares them whenever the files are read.

A sealed folder has ``digests.json``: the digest of every file in it, and a digest of this list,
written last. `read` compares a file with its digest. Digests are XXH3 of 128 bits, several times as
fast as SHA-256; they detect damage, not forgery. The digest of a large file is computed from the
digests of its pieces, which several threads read in parallel.
"""

import concurrent.futures
import contextlib
import contextvars
import errno
import json
import mmap
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence

import xxhash

from alignjax.errors import CheckpointError, naming_file

NAME = "digests.json"
HASHING = 4  # pieces read in parallel
PIECE = 2**26  # bytes; smaller files are one piece
IN_PIECES = f"pieces of {PIECE}: "  # prefix of the digest of a larger file


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a complete folder; for one process only.

    Folders inside it that are sealed already are left out.

    Raises:
      OSError: a file cannot be read, or the digests cannot be written.
    """
    sealed = [path.parent for path in folder.glob(f"*/{NAME}")]
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME and not any(x in path.parents for x in sealed)
    )
    _write(folder, dict(zip(names, of_files([folder / x for x in names]), strict=True)))


def forget(folder: pathlib.Path, part: str) -> None:
    """Removes the files of a folder ``part`` from the digests, before the folder is removed."""
    kept = {x: digest for x, digest in of(folder).items() if not x.startswith(f"{part}/")}
    _write(folder, kept)


def of(folder: pathlib.Path) -> dict[str, str]:
    """Reads a sealed folder's digests, by file name.

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
    """Returns the name of the first file that has changed; an empty text if there is none.

    Args:
      folder: sealed; if its digests are missing, they count as changed.
      share, shares: reads only this one of ``shares`` equal parts of the files.
    """
    try:
        wanted = of(folder)
    except CheckpointError:
        return NAME
    names = sorted(wanted)[share::shares]
    whole = [folder / x for x in names if not wanted[x].startswith(IN_PIECES)]
    present = _digests([folder / x for x in names], whole)
    return next((x for x, digest in zip(names, present, strict=True) if digest != wanted[x]), "")


def of_files(files: Sequence[pathlib.Path]) -> list[str]:
    """Computes the digests of files.

    Raises:
      OSError: one cannot be read.
    """
    digests = _digests(files)
    for file, digest in zip(files, digests, strict=True):
        if not digest:
            raise OSError(errno.EIO, "cannot be read", str(file))
    return digests


def read(path: str | os.PathLike[str]) -> bytes:
    """Reads a file; verifies it if its folder, or the one above, is sealed.

    Raises:
      CheckpointError: it is damaged, or its folder's digests are.
      OSError: it cannot be read.
    """
    file = pathlib.Path(path)
    content = file.read_bytes()
    for folder in (file.parent, file.parent.parent):
        if (folder / NAME).is_file():
            wanted = of(folder).get(str(file.relative_to(folder)))
            if wanted is not None and _joined(_pieces_of(content, wanted)) != wanted:
                raise CheckpointError(f"{file}: damaged, it has changed since it was written")
    return content


_is_allowed = contextvars.ContextVar("fallback", default=False)


@contextlib.contextmanager
def falling_back(allowed: bool) -> Iterator[None]:
    """Lets the block skip damaged checkpoints, see `runtime.stores.latest`."""
    token = _is_allowed.set(allowed)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def falls_back() -> bool:
    """Tells whether damaged checkpoints are skipped."""
    return _is_allowed.get()


def _write(folder: pathlib.Path, files: dict[str, str]) -> None:
    temporary = folder / f"{NAME}.tmp"
    content = {"xxh3": 128, "list": _of_list(files), "files": files}
    with naming_file(folder / NAME):
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(folder / NAME)


def _of_list(files: dict[str, str]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(files, sort_keys=True).encode())


def _digests(files: Sequence[pathlib.Path], whole: Collection[pathlib.Path] = ()) -> list[str]:
    """Computes the digests of files; empty for files that cannot be read.

    Args:
      whole: files that are one piece each, as in earlier versions.
    """
    one_piece = set(whole)
    with concurrent.futures.ThreadPoolExecutor(HASHING) as pool:
        pieces = [
            [pool.submit(_piece, file, *cut) for cut in _cuts(file, file in one_piece)]
            for file in files
        ]
        return [_joined([x.result() for x in of_file]) for of_file in pieces]


def _cuts(file: pathlib.Path, is_whole: bool) -> list[tuple[int, int]]:
    """Computes the starts and sizes of a file's pieces."""
    with contextlib.suppress(OSError):
        size = file.stat().st_size
        step = max(size, 1) if is_whole else PIECE
        return [(at, min(step, size - at)) for at in range(0, max(size, 1), step)]
    return [(0, 1)]


def _piece(file: pathlib.Path, begin: int, size: int) -> str:
    """Computes the digest of a piece of a file; empty if it cannot be read."""
    try:
        with file.open("rb") as opened:
            if not size:
                return str(xxhash.xxh3_128_hexdigest(b""))
            with mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ, offset=begin) as content:
                return str(xxhash.xxh3_128_hexdigest(content))
    except (OSError, ValueError):  # ValueError: the file has become shorter
        return ""


def _pieces_of(content: bytes, wanted: str) -> list[str]:
    """Computes the digests of the pieces of a file's content."""
    step = PIECE if wanted.startswith(IN_PIECES) else max(len(content), 1)
    view = memoryview(content)
    cuts = range(0, max(len(content), 1), step)
    return [str(xxhash.xxh3_128_hexdigest(view[at : at + step])) for at in cuts]


def _joined(pieces: list[str]) -> str:
    """Computes the digest of a file from those of its pieces; empty if one of them is."""
    if len(pieces) == 1 or not all(pieces):
        return pieces[0] if all(pieces) else ""
    return IN_PIECES + str(xxhash.xxh3_128_hexdigest("".join(pieces).encode()))
