"""Reads and writes files atomically, with the same view in all processes.

Only the first process reads and writes; the others wait for it and get the content. So all make the
same decisions, even if their views of a shared folder lag. All processes must call these functions,
except those named ``_here``, which act in this process only. Checkpoints are written by all
processes: `alignjax.runtime.checkpoint`.
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
    """Reads a JSON file; None if it does not exist.

    Raises:
      CheckpointError: it is not JSON, or has changed since it was written.
    """
    return broadcast(f"look for {path.name}", lambda: read_here(path) if path.is_file() else None)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      CheckpointError: it is missing, not JSON, or has changed since it was written.
    """
    return broadcast(f"read {path.name}", lambda: read_here(path))


def read_here(path: pathlib.Path) -> Any:
    """Reads a JSON file in this process only: for use inside `broadcast` and `run_on_main`."""
    try:
        content = digests.read(path)
        note = _note_of(path)
        if note.is_file() and _digest(content) not in note.read_text(errors="replace").split():
            raise ValueError(f"damaged, it and its digest in {note} do not agree")
        return json.loads(content.decode("utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def keep_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON data and its digest, which `read_json` verifies."""
    run_on_main(f"keep {path.name}", lambda: keep_here(path, content))


def keep_here(path: pathlib.Path, content: Any) -> None:
    """Does the same in this process only."""
    text, note = as_json(content), _note_of(path)
    # The note keeps the old digest too: a kill between the two writes leaves the old file.
    old = _digest(path.read_bytes()) if path.is_file() else ""
    whole = [old] if note.is_file() and old in note.read_text(errors="replace").split() else []
    write_here(note, "\n".join([*whole, _digest(text), ""]).encode())
    write_here(path, text)


def _note_of(path: pathlib.Path) -> pathlib.Path:
    return path.parent / ".artifacts" / f"{path.name}.digest"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON data to a file, see `write`."""
    write(path, as_json(content))


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; makes its folder."""
    run_on_main(f"write {path.name}", lambda: write_here(path, content))


def as_json(content: Any) -> bytes:
    """Encodes JSON data as the bytes of a file; NaN and infinity, which JSON lacks, are null."""
    return (json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n").encode()


def without_nan(content: Any) -> Any:
    """Replaces numbers that are not finite by None."""
    if isinstance(content, dict):
        return {name: without_nan(x) for name, x in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(x) for x in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_here(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically, in this process only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(path.name + ".tmp")
    with naming_file(path):
        temporary.write_bytes(content)
    temporary.replace(path)


def names(folder: pathlib.Path, pattern: str) -> list[str]:
    """Lists the names in a folder that match, sorted; empty if there is no folder."""
    return broadcast(f"list {folder.name}", lambda: sorted(p.name for p in folder.glob(pattern)))


def sizes(folder: pathlib.Path) -> dict[str, int]:
    """Counts the bytes of the files in each entry of a folder."""

    def count(path: pathlib.Path) -> int:
        return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())

    return broadcast(
        f"sizes in {folder.name}", lambda: {p.name: count(p) for p in folder.iterdir()}
    )


def sha256(path: pathlib.Path) -> str:
    """Computes the digest of a file; "" if it does not exist."""

    def digest() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    return broadcast(f"digest of {path.name}", digest)


def copy(source: pathlib.Path, to: pathlib.Path) -> None:
    """Copies a file; makes the folder of the copy."""
    run_on_main(f"copy {source.name}", lambda: write_here(to, source.read_bytes()))


def remove_here(path: pathlib.Path) -> None:
    """Removes a file or a folder if it exists, in this process only."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
