"""Lines on standard error: ours as they are, of the libraries only warnings."""

import logging
import os
import sys


def quiet_libraries() -> None:
    """Shows our own lines as they are; of the libraries' only warnings."""
    import absl.logging

    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)
    # Where one array of a checkpoint cannot be read, the others' failures would follow our line.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    ours = logging.getLogger("alignjax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


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
