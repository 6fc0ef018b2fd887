"""Stores files and folders that a run makes once and reuses: keyed, verified, atomic.

An artifact is a file or a folder. Its key is JSON data that changes whenever the content would.
Beside it lies what belongs to it:

    .artifacts/NAME.manifest.json   the key, and the digest of every file
    .artifacts/NAME.scratch/        while it is made: finished parts, in the end the content
    .artifacts/NAME.lock            while it is made: one process at a time, of whichever run

It is reused if the key is the same and every file has its digest. Otherwise it is made again in the
scratch folder, and moved to its place when it is complete. Whoever was killed while making it goes
on with the parts in the scratch folder; those of another key are removed.

Of several processes of a run all call these functions alike, and all make; the first one alone
looks, locks, and moves files.
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

WRITING = ".writing"  # how hidden folders of unfinished work end


def reuse(
    path: pathlib.Path,
    key: Any,
    make: Callable[[pathlib.Path], None],
    load: Callable[[pathlib.Path], T],
) -> T:
    """Loads an artifact; makes it first, unless it is there and whole.

    Args:
      path: where it is, or goes.
      key: JSON data that changes whenever the content would.
      make: writes the content as `path.name` into the folder that it is given. What else it writes
        there are parts: when it was killed and is called again under the same key, they are there.
      load: gets `path`.

    Raises:
      UserError: it cannot be written; what was there before stays.
    """
    if not broadcast(f"look for {path.name}", lambda: _is_done(path, key)):
        with _locked(path):
            _make(path, key, make)
    return load(path)


def reuse_json(
    path: pathlib.Path, key: Any, make: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """As `reuse`, of a JSON file; the file holds its key besides.

    Args:
      make: gives the content; it gets the folder for parts.
    """

    def write(scratch: pathlib.Path) -> None:
        storage.write_json(scratch / path.name, {"key": key, **make(scratch)})

    content: dict[str, Any] = reuse(path, key, write, storage.read_json)
    return content


def part(scratch: pathlib.Path, name: str, make: Callable[[], Any]) -> Any:
    """JSON data of one finished part, `scratch/NAME.json`; made and written if it is not there."""
    path = scratch / f"{name}.json"
    if not broadcast(f"look for {path.name}", path.is_file):
        write_part(scratch, name, make())
    return storage.read_json(path)


def write_part(scratch: pathlib.Path, name: str, content: Any) -> None:
    """Writes a part, which a maker that is started again finds."""
    storage.keep_json(scratch / f"{name}.json", content)
    fault_point("part", name)


def is_whole(path: pathlib.Path, key: Any) -> bool:
    """Whether an artifact of this key is there, and every file of it as it was written."""
    return bool(broadcast(f"look for {path.name}", lambda: _damaged(path, key) == ""))


def begin(folder: pathlib.Path, key: Any) -> None:
    """Makes a folder to work in under a key; one that was begun under another key is removed.

    For scratch folders, and for stages that train: their folder is to be seen while they do.
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
    """A folder that appears under its name only when the block has filled it.

    Raises:
      UserError: it exists and holds something, or cannot be written.
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
    """A file that appears under its name only when the block has written it.

    What else the block puts beside it is removed.

    Raises:
      UserError: it exists, or cannot be written.
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
    """Makes a folder beside a new file or folder; removes it, and those that killed programs left.

    A folder that a living program works in is locked, and one that cannot be locked is not removed:
    some network file systems lock no folders.
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
        shutil.rmtree(made, ignore_errors=True)  # gone, unless something failed


@contextlib.contextmanager
def _locked_folder(path: pathlib.Path) -> Iterator[None]:
    """Locks a folder; raises OSError where another program has the lock."""
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
    if damaged == "":  # another run has made it while this one waited, or was killed at the end
        run_on_main(f"clean up {path.name}", lambda: shutil.rmtree(scratch, ignore_errors=True))
        return
    if not broadcast(f"begin {scratch.name}", lambda: _begin_content(scratch, path, key)):
        with _errors_of(path):
            make(scratch)
        fault_point("made", path.name)
        run_on_main(f"seal {path.name}", lambda: _seal(scratch, path, key))
    run_on_main(f"move {path.name}", lambda: _move(scratch, path))


def _begin_content(scratch: pathlib.Path, path: pathlib.Path, key: Any) -> bool:
    """Whether the content is complete in the scratch folder; else half of it is removed."""
    _begin(scratch, key)
    # With a manifest it is: whoever made it was killed while it was moved.
    complete = (scratch / "manifest.json").is_file()
    if not complete:
        storage.remove_here(scratch / path.name)
    return complete


def _seal(scratch: pathlib.Path, path: pathlib.Path, key: Any) -> None:
    """Writes the manifest of complete content, once all of it is on the disk."""
    with _errors_of(path):
        _sync(scratch / path.name)
        manifest = {"key": key, "xxh3": _digests(scratch / path.name)}
        storage.write_here(scratch / "manifest.json", storage.as_json(manifest))
    fault_point("sealed", path.name)


def _move(scratch: pathlib.Path, path: pathlib.Path) -> None:
    """Moves content and manifest to their places; a killed move goes on where it was."""
    content = scratch / path.name
    with _errors_of(path):
        if content.exists():
            if path.is_dir() or (path.exists() and content.is_dir()):  # not replaced in one step
                shutil.rmtree(scratch / "replaced", ignore_errors=True)
                path.rename(scratch / "replaced")
            fault_point("moving", path.name)
            content.replace(path)
        fault_point("moved", path.name)
        (scratch / "manifest.json").replace(_beside(path, "manifest.json"))
        fault_point("kept", path.name)
        shutil.rmtree(scratch)


def _damaged(path: pathlib.Path, key: Any) -> str | None:
    """The first file that is not as it was written, empty: all are; None: nothing of this key."""
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
    """Whether two values are the same JSON: a tuple is a list, a key that is a number is text."""
    texts = [json.dumps(storage.without_nan(x), sort_keys=True) for x in (one, other)]
    return texts[0] == texts[1]


def _read(path: pathlib.Path) -> Any:
    """The content of a JSON file; None where there is none, or none that can be read."""
    try:
        return storage.read_here(path) if path.is_file() else None
    except UserError as error:
        log.warning("%s", error)
        return None


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in (path, *path.rglob("*")) if p.is_file())


def _digests(path: pathlib.Path) -> dict[str, str]:
    """The digest of every file of an artifact, by its place in it."""
    files = _files(path)
    names = (str(file.relative_to(path)) for file in files)
    return dict(zip(names, digests.of_files(files), strict=True))


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Waits until every file is on the disk, before a name says that it is complete."""
    for file in _files(path):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Keeps other runs from making the same artifact; the lock dies with the process."""
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
            # Whoever held it has removed the file: a lock on it keeps nobody out any more.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                    break
        held.callback(file.unlink)
        yield


@contextlib.contextmanager
def _errors_of(path: object) -> Iterator[None]:
    """Says of errors of the disk, in one line, what could not be written."""
    try:
        yield
    except OSError as error:
        kind = CheckpointError if error.errno in FULL else UserError
        raise kind(f"{path}: cannot be written ({error})") from error
