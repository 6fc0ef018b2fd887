"""The errors that a user can cause, each with the program's exit code.

0: done; 2: bad configuration or input; 3: bad checkpoint; 4: numerical stop; 5: another process of
the run is lost or stuck; 128 + signal: saved and stopped by a signal (130 Ctrl-C, 143 SIGTERM); 6:
that save failed. The message is one line that names the file, line or field, what was wanted and
what was found.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota or the largest file


class UserError(Exception):
    """Bad configuration or bad input."""

    exit_code = 2


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written."""

    exit_code = 3


class NumericalError(UserError):
    """Training stopped because losses or gradients kept being non-finite."""

    exit_code = 4


def require(valid: bool, field: str, wanted: str, found: object) -> None:
    """Raises a `UserError` about a field unless its value is valid."""
    if not valid:
        raise UserError(f"{field}: wanted {wanted}, found {found!r}")


@contextlib.contextmanager
def naming_file(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the file to a system error that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggests the closest known name, `` (did you mean 'beta'?)``, or returns an empty string."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
