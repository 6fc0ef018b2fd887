"""Lines on standard error: ours as they are, of the libraries only warnings.

A stream that cannot be written (a full disk, a closed pipe) ends no run: what it would have shown
is lost, and the run goes on. One that has no letter for a character shows its number.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

log = logging.getLogger("alignjax")


class Tolerant:
    """A stream whose errors are nobody's concern: it is silent after the first one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes and flushes, if it can."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` has done it."""


def silence(stream: TextIO) -> None:
    """Sends all that a stream holds, and will hold, nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Makes standard output and standard error ones that can be written, whatever they are."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed: else the next file that is opened would get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        else:
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = Tolerant(sys.stderr)


def show(text: str) -> None:
    """Writes on standard output; where that fails it says so, and the program goes on."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        log.warning("standard output cannot be written (%s): results are in files", error.strerror)
        silence(sys.stdout)


def quiet_libraries() -> None:
    """Shows our own lines as they are; of the libraries' only warnings."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.WARNING)
    # What a save's threads fail with is raised where the save is waited for, in one line of ours.
    absl.logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger().setLevel(logging.WARNING)
    # Where one array of a checkpoint cannot be read, the others' failures would follow our line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    ours = logging.getLogger("alignjax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    sys.unraisablehook = functools.partial(_show_unraisable, sys.unraisablehook)


def _show_unraisable(show: Callable[[Any], None], unraisable: Any) -> None:
    """Shows an error that no code can catch, except one that is a consequence of a failed save.

    When one array of a checkpoint cannot be written, orbax closes its event loop while the other
    arrays are still being written; tensorstore's threads then report each of them to a loop that
    is gone. The save's own error is raised where the save is waited for.
    """
    if unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed":
        return
    show(unraisable)


def show_lines() -> None:
    """Shows our lines in a program or notebook that has set up no logging of its own."""
    ours, root = logging.getLogger("alignjax"), logging.getLogger()
    if ours.handlers or (ours.propagate and root.handlers and not _is_bare(root)):
        return
    ours.propagate = ours.propagate and not root.handlers
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


def _is_bare(root: logging.Logger) -> bool:
    """Whether logging is as a bare ``basicConfig()`` leaves it, which absl calls for a library."""
    kinds = {(type(x), x.level) for x in root.handlers}
    return root.level == logging.WARNING and kinds == {(logging.StreamHandler, logging.NOTSET)}


def warn_only(process: int) -> None:
    """Shows only warnings of a process beside the first one, with its number."""
    ours = logging.getLogger("alignjax")
    ours.setLevel(logging.WARNING)
    for handler in ours.handlers:
        handler.setFormatter(logging.Formatter(f"process {process}: %(message)s"))


def say_last(line: str) -> None:
    """Writes the last line of a program that fails.

    Where a checkpoint is damaged, threads of the library go on to tell of reads that nobody waits
    for any more, past every hook that Python has: they lose their stderr first, so that none of
    theirs can follow ours.
    """
    sys.stderr.flush()
    ours = os.dup(sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.write(ours, f"{line}\n".encode(errors="backslashreplace"))
