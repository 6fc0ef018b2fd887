"""Stores files and folders that a run makes once and reuses: keyed, verified, atomic.

An artifact is a file or a folder. Its key is JSON data that changes whenever the content would.
Beside it are:

    .artifacts/NAME.manifest.json   the key, and the digest of every file
    .artifacts/NAME.scratch/        while it is made: finished parts, at the end the content
    .artifacts/NAME.lock            while it is made: one process at a time, of any run

It is reused if the key is the same and every file has its digest. Otherwise it is made in the
scratch folder, and moved to its place when it is complete. A killed process continues with the
parts in the scratch folder; parts of another key are removed.

All processes of a run call these functions in the same order, and all make the content. Only the
first process reads manifests, locks, and moves files.
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from alignjax import digests
from alignjax.errors import FULL, CheckpointError, UserError
from alignjax.runtime import storage
from alignjax.runtime.distributed import broadcast, run_on_main
from alignjax.runtime.faults import fault_point

log = logging.getLogger("alignjax")
T = TypeVar("T")

WRITING = ".writing"  # suffix of hidden folders of unfinished work


def reuse(
    path: pathlib.Path,
    key: Any,
    make: Callable[[pathlib.Path], None],
    load: Callable[[pathlib.Path], T],
) -> T:
    """Loads an artifact; makes it first, unless it exists with this key and is undamaged.

    Args:
      path: its place.
      key: JSON data that changes whenever the content would.
      make: writes the content as `path.name` into the given folder. Other files there are parts: if
        it is killed and called again with the same key, it finds them.
      load: loads the content of `path`.

    Raises:
      UserError: it cannot be written; an older artifact stays.
    """
    if not broadcast(f"look for {path.name}", lambda: _is_done(path, key)):
        with _locked(path):
            _make(path, key, make)
    return load(path)


def reuse_json(
    path: pathlib.Path, key: Any, make: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """Does the same for a JSON file, in which the key is stored too.

    Args:
      path, key: as in `reuse`.
      make: returns the content; its argument is the folder for parts.
    """

    def write(scratch: pathlib.Path) -> None:
        storage.write_json(scratch / path.name, {"key": key, **make(scratch)})

    content: dict[str, Any] = reuse(path, key, write, storage.read_json)
    return content


def part(scratch: pathlib.Path, name: str, make: Callable[[], Any]) -> Any:
    """Loads one part, the JSON data in `scratch/NAME.json`; makes and writes it first if needed."""
    path = scratch / f"{name}.json"
    if not broadcast(f"look for {path.name}", path.is_file):
        write_part(scratch, name, make())
    return storage.read_json(path)


def write_part(scratch: pathlib.Path, name: str, content: Any) -> None:
    """Writes a part, for a later start of the same work."""
    storage.keep_json(scratch / f"{name}.json", content)
    fault_point("part", name)


def is_whole(path: pathlib.Path, key: Any) -> bool:
    """Whether an artifact with this key exists, and no file of it has changed."""
    return bool(broadcast(f"look for {path.name}", lambda: _damaged(path, key) == ""))


def begin(folder: pathlib.Path, key: Any) -> None:
    """Makes a folder to work in under a key; first removes it if it was begun under another key.

    For scratch folders, and for stages that train, whose folder is visible meanwhile.
    """
    run_on_main(f"begin {folder.name}", lambda: _begin(folder, key))


def _begin(folder: pathlib.Path, key: Any) -> None:
    path = folder / "begun.json"
    with _errors_of(folder):
        if folder.is_dir() and not _same(_read(path), key):
            log.warning("%s was started with another config: starting again", folder)
            shutil.rmtree(folder)
        if not path.is_file():
            storage.write_here(path, storage.as_json(key))


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[pathlib.Path]:
    """Yields a folder to fill, which gets its name after the block.

    Raises:
      UserError: the name exists and is not an empty folder, or cannot be written.
    """
    final = pathlib.Path(path).absolute()
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{path}: exists already; name a new folder")
    with _errors_of(path):
        final.parent.mkdir(parents=True, exist_ok=True)
        with _hidden_folder(final) as made:
            made.chmod(0o755)
            yield made
            _sync(made)
            made.replace(final)


@contextlib.contextmanager
def new_file(path: str) -> Iterator[pathlib.Path]:
    """Yields a file to write, which gets its name after the block.

    Other files that the block puts beside it are removed.

    Raises:
      UserError: the name exists, or cannot be written.
    """
    final = pathlib.Path(path).absolute()
    if final.exists():
        raise UserError(f"{path}: exists already; name a new file")
    with _errors_of(path):
        final.parent.mkdir(parents=True, exist_ok=True)
        with _hidden_folder(final) as scratch:
            made = scratch / final.name
            yield made
            _sync(made)
            made.replace(final)


@contextlib.contextmanager
def _hidden_folder(final: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a hidden folder beside a new file or folder; removes it after the block.

    Also removes those of killed programs. A running program holds a lock on its folder. A folder
    that cannot be locked is not removed, because some network file systems cannot lock folders.
    """
    for left in final.parent.glob(f".{glob.escape(final.name)}.*{WRITING}"):
        with contextlib.suppress(OSError), _locked_folder(left):
            shutil.rmtree(left)
    made = pathlib.Path(tempfile.mkdtemp(WRITING, f".{final.name}.", final.parent))
    try:
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):
                held.enter_context(_locked_folder(made))
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)  # it exists only if the block failed, or for a file


@contextlib.contextmanager
def _locked_folder(path: pathlib.Path) -> Iterator[None]:
    """Locks a folder; raises OSError if another program has the lock."""
    number = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def _beside(path: pathlib.Path, end: str) -> pathlib.Path:
    return path.parent / ".artifacts" / f"{path.name}.{end}"


def _is_done(path: pathlib.Path, key: Any) -> bool:
    return _damaged(path, key) == "" and not _beside(path, "scratch").exists()


def _make(path: pathlib.Path, key: Any, make: Callable[[pathlib.Path], None]) -> None:
    scratch = _beside(path, "scratch")
    damaged = broadcast(f"look again for {path.name}", lambda: _damaged(path, key))
    if damaged:
        log.warning("%s has changed since it was written: recomputing %s", damaged, path.name)
    if damaged == "":  # made by another run meanwhile, or by a run that was killed at the end
        run_on_main(f"clean up {path.name}", lambda: shutil.rmtree(scratch, ignore_errors=True))
        return
    if not broadcast(f"begin {scratch.name}", lambda: _begin_content(scratch, path, key)):
        with _errors_of(path):
            make(scratch)
        fault_point("made", path.name)
        run_on_main(f"seal {path.name}", lambda: _seal(scratch, path, key))
    run_on_main(f"move {path.name}", lambda: _move(scratch, path))


def _begin_content(scratch: pathlib.Path, path: pathlib.Path, key: Any) -> bool:
    """Whether the content in the scratch folder is complete; else removes it."""
    _begin(scratch, key)
    # The manifest is written last, so a process was killed while it moved complete content.
    complete = (scratch / "manifest.json").is_file()
    if not complete:
        storage.remove_here(scratch / path.name)
    return complete


def _seal(scratch: pathlib.Path, path: pathlib.Path, key: Any) -> None:
    """Writes the manifest of complete content, after syncing all of it to disk."""
    with _errors_of(path):
        _sync(scratch / path.name)
        manifest = {"key": key, "xxh3": _digests(scratch / path.name)}
        storage.write_here(scratch / "manifest.json", storage.as_json(manifest))
    fault_point("sealed", path.name)


def _move(scratch: pathlib.Path, path: pathlib.Path) -> None:
    """Moves content and manifest to their places; a killed move can continue."""
    content = scratch / path.name
    with _errors_of(path):
        if content.exists():
            # A folder cannot be replaced, nor a file by a folder.
            if path.is_dir() or (path.exists() and content.is_dir()):
                shutil.rmtree(scratch / "replaced", ignore_errors=True)
                path.rename(scratch / "replaced")
            fault_point("moving", path.name)
            content.replace(path)
        fault_point("moved", path.name)
        (scratch / "manifest.json").replace(_beside(path, "manifest.json"))
        fault_point("kept", path.name)
        shutil.rmtree(scratch)


def _damaged(path: pathlib.Path, key: Any) -> str | None:
    """Returns the first changed file, "" if there is none, None without an artifact of this key."""
    manifest = _read(_beside(path, "manifest.json"))
    if not isinstance(manifest, dict) or not _same(manifest.get("key"), key):
        return None
    if "xxh3" in manifest:
        wanted, found = manifest["xxh3"] or {}, _digests(path)
    else:  # an earlier version
        wanted = manifest.get("sha256") or {}
        found = {str(f.relative_to(path)): _sha256(f) for f in _files(path)}
    names = sorted(set(wanted) | set(found))
    return next((str(path / n) for n in names if wanted.get(n) != found.get(n)), "")


def _same(one: Any, other: Any) -> bool:
    """Whether two values have the same JSON: a tuple equals a list, a key 1 equals "1"."""
    texts = [json.dumps(storage.without_nan(x), sort_keys=True) for x in (one, other)]
    return texts[0] == texts[1]


def _read(path: pathlib.Path) -> Any:
    """Reads a JSON file; None if it is missing or cannot be read."""
    try:
        return storage.read_here(path) if path.is_file() else None
    except UserError as error:
        log.warning("%s", error)
        return None


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in (path, *path.rglob("*")) if p.is_file())


def _digests(path: pathlib.Path) -> dict[str, str]:
    """Computes the digest of every file of an artifact, by its relative path."""
    files = _files(path)
    names = (str(file.relative_to(path)) for file in files)
    return dict(zip(names, digests.of_files(files), strict=True))


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Waits until every file is on disk."""
    for file in _files(path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Keeps other runs from making the same artifact; a killed process releases the lock."""
    with contextlib.ExitStack() as held:
        run_on_main(f"lock {path.name}", lambda: held.enter_context(_lock(path)))
        yield


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    file = _beside(path, "lock")
    with contextlib.ExitStack() as held:
        while True:
            with _errors_of(path):
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(file.open("a"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.info("%s: another process is making it: waiting", path)
                    fcntl.flock(lock, fcntl.LOCK_EX)
            # If the previous holder has removed the file, this lock is useless: open the new file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    break
        held.callback(file.unlink)
        yield


@contextlib.contextmanager
def _errors_of(path: object) -> Iterator[None]:
    """Turns errors of the disk into one line that names what could not be written."""
    try:
        yield
    except OSError as error:
        kind = CheckpointError if error.errno in FULL else UserError
        raise kind(f"{path}: cannot be written ({error})") from error
