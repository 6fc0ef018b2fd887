"""Opens directories of checkpoints: lists, verifies and removes steps.

    12/digests.json  12/state/  12/record/   step 12, complete
    13.writing/                              a save in progress, or a killed one

`alignjax.runtime.checkpoint` defines the content of a checkpoint.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from orbax.checkpoint import v1 as ocp

from alignjax import digests
from alignjax.errors import CheckpointError
from alignjax.runtime import distributed

log = logging.getLogger("alignjax")

FORMAT = 3  # increase it when the content of checkpoints changes
UNSEALED = 2  # the previous format, without digests


@dataclasses.dataclass(eq=False)
class Store:
    """A directory of checkpoints."""

    directory: pathlib.Path
    keep: int  # number of newest checkpoints to keep
    writer: concurrent.futures.ThreadPoolExecutor  # one thread
    saving: concurrent.futures.Future[None] | None = None  # the last save, until `wait`
    whole: set[int] = dataclasses.field(default_factory=set)  # steps that are verified


@contextlib.contextmanager
def open_store(directory: pathlib.Path, *, keep: int) -> Iterator[Store]:
    """Opens a directory of checkpoints; leaving the context waits for the last save.

    Args:
      directory: created if needed; killed saves in it are removed.
      keep: number of newest checkpoints to keep.
    """
    directory = directory.absolute()

    def clean_up() -> None:
        with one_line(directory, "cannot be opened"):
            directory.mkdir(parents=True, exist_ok=True)
            for path in directory.iterdir():
                if re.match(r"\d+\.", path.name):
                    shutil.rmtree(path)

    distributed.run_on_main("open checkpoints", clean_up)
    with concurrent.futures.ThreadPoolExecutor(1) as writer:
        store = Store(directory, keep, writer)
        try:
            yield store
        except BaseException:
            if store.saving is not None and (error := store.saving.exception()):
                log.warning("%s: the last save failed: %s", directory, reason(error))
            raise
        wait(store)


def wait(store: Store) -> None:
    """Waits for the last save.

    Raises:
      CheckpointError: it could not be written.
    """
    saving, store.saving = store.saving, None
    if saving is None:
        return

    def finish() -> None:
        with one_line(store.directory, "the last save failed"):
            saving.result()

    if not distributed.is_main():
        finish()
    distributed.run_on_main("a save", finish)  # only process 0 moves the checkpoint to its place


def list_steps(store: Store) -> list[int]:
    """Lists the complete steps, as the first process sees them."""

    def find() -> list[int]:
        return sorted(int(p.name) for p in store.directory.iterdir() if p.name.isdigit())

    steps: list[int] = distributed.broadcast("steps", find)
    return steps


def latest(store: Store) -> int | None:
    """Returns the newest complete step, or None; with `digests.falling_back`, the newest good one.

    Raises:
      CheckpointError: it is damaged.
    """
    steps = list_steps(store)
    if not steps:
        return None
    if not digests.falls_back():
        verify(store, steps[-1])
        return steps[-1]
    good = _newest_good(store, steps)
    if good is None:
        raise CheckpointError(f"{store.directory}: every step is damaged")
    if good != steps[-1]:
        log.warning(
            "%s: STEP %d IS DAMAGED (%s): resuming from step %d because of --allow_fallback",
            *(store.directory, steps[-1], _find_damage(store, steps[-1]), good),
        )
    return good


def drop(store: Store, *, but: int | None) -> None:
    """Waits for the last save, then removes all checkpoints except ``but``.

    Raises:
      CheckpointError: the save failed, or a checkpoint cannot be removed.
    """
    wait(store)
    _drop(store, [step for step in list_steps(store) if step != but])


def drop_newer(store: Store, step: int) -> None:
    """Removes the damaged checkpoints that `latest` skipped."""
    _drop(store, [x for x in list_steps(store) if x > step])


def _drop(store: Store, which: list[int]) -> None:
    def clear() -> None:
        with one_line(store.directory, "removing checkpoints failed"):
            for step in which:
                remove(store, step)

    distributed.run_on_main("remove checkpoints", clear)


def drop_state(directory: pathlib.Path) -> None:
    """Removes the state of a stage's last checkpoint, whose parameters are stored elsewhere.

    The record, with the identity of the stage, stays.
    """

    def empty(path: pathlib.Path) -> None:
        if not (path / "state").is_dir():
            return
        with one_line(directory, "cannot be removed"):
            if (path / digests.NAME).is_file():
                digests.forget(path, "state")
            shutil.rmtree(path / "state", ignore_errors=True)

    with open_store(directory, keep=1) as store:
        newest = list_steps(store)
        if newest:
            path = store.directory / str(newest[-1])
            distributed.run_on_main("drop a state", lambda: empty(path))


def has_state(store: Store, step: int) -> bool:
    """Whether a checkpoint has arrays, not only its record."""
    path = store.directory / str(step)

    def look() -> bool:
        if (path / digests.NAME).is_file():  # a killed `drop_state` may leave part of it
            return any(name.startswith("state/") for name in digests.of(path))
        return (path / "state").is_dir()

    return bool(distributed.broadcast("look for a state", look))


def remove(store: Store, step: int) -> None:
    """Removes a checkpoint; renames it first, so that a killed removal leaves no partial one."""
    path = store.directory / f"{step}.removing"
    (store.directory / str(step)).rename(path)
    shutil.rmtree(path)


def record_of(store: Store, step: int) -> dict[str, Any]:
    """Reads the record of a step, damaged or not."""
    with one_line(store.directory, f"step {step} cannot be read"):
        path = store.directory / str(step)
        record: dict[str, Any] = ocp.load_checkpointables(path, {"record": None})["record"]
        return record


def verify(store: Store, step: int) -> None:
    """Refuses a damaged step."""
    if step in store.whole or not (damaged := _find_damage(store, step)):
        return
    good = _newest_good(store, [x for x in list_steps(store) if x != step])
    other = "no other step is good: remove it to start again"
    if good is not None:
        other = f"the newest good step is {good}: resume from it with run --allow_fallback"
    raise CheckpointError(f"{store.directory}: step {step} is damaged: {damaged}; {other}")


def _find_damage(store: Store, step: int) -> str:
    """Describes the damage of a step, "" if there is none; each process reads a share of files."""
    path = store.directory / str(step)
    if not distributed.broadcast("look for digests", (path / digests.NAME).is_file):
        try:
            is_older = record_of(store, step).get("format") == UNSEALED
        except CheckpointError:
            is_older = False
        if not is_older:
            return f"{digests.NAME} is missing"
        log.warning("%s: a checkpoint without digests (an earlier version): not checked", path)
        store.whole.add(step)
        return ""
    share, shares = distributed.index(), distributed.count()
    damaged = digests.find_damage(path, share=share, shares=shares)
    first = next((x for x in distributed.exchange("damage", damaged) if x), "")
    if not first:
        store.whole.add(step)
        return ""
    return f"{first} has changed since it was written"


def _newest_good(store: Store, which: list[int]) -> int | None:
    return next((x for x in reversed(which) if not _find_damage(store, x)), None)


@contextlib.contextmanager
def one_line(directory: Any, what: str) -> Iterator[None]:
    """Turns errors of the checkpoint library into one line that names the directory."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the library raises many types
        raise CheckpointError(f"{directory}: {what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Formats an error as one line of its type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
