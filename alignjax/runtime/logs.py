"""Sets up logging: shows alignjax's lines unchanged, and only warnings of libraries.

A stream that cannot be written (a full disk, a closed pipe) does not end a run: its output is lost.
Characters that a stream's encoding lacks are escaped.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

log = logging.getLogger("alignjax")


class Tolerant:
    """A stream that ignores errors: it is silent after the first one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes and flushes; ignores errors."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            silence(self._stream)
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` flushes."""


def silence(stream: TextIO) -> None:
    """Discards a stream's buffered and future output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Makes standard output and standard error writable, also if they are closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next opened file would get its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        else:
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = Tolerant(sys.stderr)


def show(text: str) -> None:
    """Writes to standard output; an error is logged and does not end the program."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        log.warning("standard output cannot be written (%s); results are in files", error.strerror)
        silence(sys.stdout)


def quiet_libraries() -> None:
    """Shows alignjax's lines unchanged, and only warnings of libraries."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.WARNING)
    # Errors of a save's threads are raised by `stores.wait`, in one line.
    absl.logging.get_absl_logger().addFilter(lambda record: "/orbax/" not in record.pathname)
    logging.getLogger().setLevel(logging.WARNING)
    # If one array of a checkpoint cannot be read, errors of the others would follow our line.
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
    """Shows alignjax's lines in a program or notebook without its own logging setup."""
    ours, root = logging.getLogger("alignjax"), logging.getLogger()
    if ours.handlers or (ours.propagate and root.handlers and not _is_bare(root)):
        return
    ours.propagate = ours.propagate and not root.handlers
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


def _is_bare(root: logging.Logger) -> bool:
    """Whether logging is set up only by a bare ``basicConfig()``, which absl calls."""
    kinds = {(type(x), x.level) for x in root.handlers}
    return root.level == logging.WARNING and kinds == {(logging.StreamHandler, logging.NOTSET)}


def warn_only(process: int) -> None:
    """Shows only warnings of a process other than the first, with its number."""
    ours = logging.getLogger("alignjax")
    ours.setLevel(logging.WARNING)
    for handler in ours.handlers:
        handler.setFormatter(logging.Formatter(f"process {process}: %(message)s"))


def say_last(line: str) -> None:
    """Writes the last line of a program that fails.

    If a checkpoint is damaged, threads of the library write errors of other reads, which no hook of
    Python intercepts. Standard error is redirected first, so that none of them follows our line.
    """
    sys.stderr.flush()
    ours = os.dup(sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.write(ours, f"{line}\n".encode(errors="backslashreplace"))
