"""Files that are never half, and that all processes see alike.

Of several processes the first one alone reads and writes them; the others wait for it and get what
it read. So all decide alike, however late their view of a shared folder is. All processes call the
functions here, except those that say "this process alone". Checkpoints are written by all:
`alignjax.runtime.checkpoint`.
"""

import hashlib
import json
import math
import pathlib
import shutil
from typing import Any

from alignjax import digests
from alignjax.errors import CheckpointError, naming_file
from alignjax.runtime.distributed import broadcast, run_on_main


def find_json(path: pathlib.Path) -> Any:
    """Reads a JSON file; None where there is none.

    Raises:
      CheckpointError: it is not JSON, or not as it was written.
    """
    return broadcast(f"look for {path.name}", lambda: read_here(path) if path.is_file() else None)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      CheckpointError: there is none, or it is not JSON, or not as it was written.
    """
    return broadcast(f"read {path.name}", lambda: read_here(path))


def read_here(path: pathlib.Path) -> Any:
    """As `read_json`, but this process alone: for use inside `broadcast` and `run_on_main`."""
    try:
        content = digests.read(path)
        note = _note_of(path)
        if note.is_file() and _digest(content) not in note.read_text(errors="replace").split():
            raise ValueError(f"damaged, it and its digest in {note} do not agree")
        return json.loads(content.decode("utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def keep_json(path: pathlib.Path, content: Any) -> None:
    """As `write_json`, for a file of a run: with its digest, which `read_json` compares."""
    run_on_main(f"keep {path.name}", lambda: keep_here(path, content))


def keep_here(path: pathlib.Path, content: Any) -> None:
    """As `keep_json`, but this process alone."""
    text, note = as_json(content), _note_of(path)
    # A kill between the two leaves the old file, which is whole, too.
    old = _digest(path.read_bytes()) if path.is_file() else ""
    whole = [old] if note.is_file() and old in note.read_text(errors="replace").split() else []
    write_here(note, "\n".join([*whole, _digest(text), ""]).encode())
    write_here(path, text)


def _note_of(path: pathlib.Path) -> pathlib.Path:
    return path.parent / ".artifacts" / f"{path.name}.digest"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """As `write`, for JSON data."""
    write(path, as_json(content))


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one step: readers see the old one or the new one. Makes its folder."""
    run_on_main(f"write {path.name}", lambda: write_here(path, content))


def as_json(content: Any) -> bytes:
    """Encodes JSON data as the bytes of a file; NaN and infinity, which JSON lacks, are null."""
    return (json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n").encode()


def without_nan(content: Any) -> Any:
    """The same data, None in the place of numbers that are not finite."""
    if isinstance(content, dict):
        return {name: without_nan(x) for name, x in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(x) for x in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_here(path: pathlib.Path, content: bytes) -> None:
    """As `write`, but this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is one step only inside one file system.
    temporary = path.with_name(path.name + ".tmp")
    with naming_file(path):
        temporary.write_bytes(content)
    temporary.replace(path)


def names(folder: pathlib.Path, pattern: str) -> list[str]:
    """Lists the files of a folder that match, sorted; none where there is no folder."""
    return broadcast(f"list {folder.name}", lambda: sorted(p.name for p in folder.glob(pattern)))


def sizes(folder: pathlib.Path) -> dict[str, int]:
    """Counts the bytes of the files in each entry of a folder."""

    def count(path: pathlib.Path) -> int:
        return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())

    return broadcast(
        f"sizes in {folder.name}", lambda: {p.name: count(p) for p in folder.iterdir()}
    )


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
