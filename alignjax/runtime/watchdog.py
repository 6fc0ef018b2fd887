"""What becomes of a run of several processes when one of them fails, is lost or hangs.

None of the others can go on, and a scheduler can only start them again when all have ended. Every
process gives a sign of life every second, through the key-value store that process 0 serves;
process 0 watches those of the others, and they watch whether it answers. Whoever finds out that
the run is over writes down why, once, and every process ends with that line.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.errors import UserError

BEAT_SECONDS = 1.0
GRACE_SECONDS = 4.0  # for a process to say itself what the verdict says, where it failed as well
ACKNOWLEDGE_SECONDS = 10.0  # process 0 stays so long at most, for the others to read the verdict
EXIT_CODE = 5
# How errors of the runtime begin that a lost peer may cause; of the type one cannot be sure.
FROM_RUNTIME = re.compile(
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
ALIVE, VERDICT, READ = "alignjax/alive/", "alignjax/verdict/", "alignjax/read/"


@dataclasses.dataclass(frozen=True)
class Run:
    """The processes of a run."""

    client: Any  # of JAX's coordination service
    me: int  # number of this process
    hosts: list[str]  # the machine of each


_run: Run | None = None  # None: one process
_leaving = threading.Event()  # set when this process ends by itself
_rounds = [0]  # how often this process spoke with process 0
# Called by C: has to stay for as long as the process does.
_aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda _: _end(EXIT_CODE, "aborted by JAX, which says why above; most likely a peer is lost")
)


def lost_after() -> int:
    """Seconds without a sign of life until a process counts as lost; ``ALIGNJAX_LOST_AFTER``.

    Raises:
      UserError: the variable is no such number.
    """
    text = os.environ.get("ALIGNJAX_LOST_AFTER", "60")
    if not text.isdecimal() or int(text) < 3:
        raise UserError(f"ALIGNJAX_LOST_AFTER: wanted seconds, 3 or more, found {text!r}")
    return int(text)


def expect_aborts() -> None:
    """JAX aborts the process when process 0 is gone, or never came; the exit code is ours then.

    A handler of Python's would run after the abort: this one is C's.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, type(_aborted)]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, _aborted)


def watch(run: Run) -> None:
    """Starts to give signs of life, and to watch the others'."""
    global _run
    _run = run
    seconds = lost_after()
    threading.Thread(target=_speak, args=(run, seconds), daemon=True).start()
    if run.me:
        threading.Thread(target=_listen, args=(run, seconds), daemon=True).start()


def _speak(run: Run, seconds: int) -> None:
    count = len(run.hosts)
    heard, quiet = [""] * count, [0] * count
    try:
        while not _leaving.wait(BEAT_SECONDS):
            run.client.key_value_set(f"{ALIVE}{run.me}", str(_rounds[0]), allow_overwrite=True)
            for _, text in run.client.key_value_dir_get(VERDICT):
                _obey(run, json.loads(text))
            _rounds[0] += 1
            if run.me:
                continue
            now = {int(key.split("/")[-1]): n for key, n in run.client.key_value_dir_get(ALIVE)}
            for i in range(1, count):
                quiet[i] = quiet[i] + 1 if now.get(i, "") == heard[i] else 0
                heard[i] = now.get(i, "")
            lost = [i for i in range(count) if quiet[i] * BEAT_SECONDS > seconds]
            if lost:
                who = ", ".join(f"process {i} ({run.hosts[i]})" for i in lost[:4])
                line = f"{who}: lost, no sign of life for {seconds} s"
                _publish(run, EXIT_CODE, line, silent=len(lost))
                _end(EXIT_CODE, line)
    except Exception:  # the client's: process 0 serves nothing any more
        if not _leaving.is_set():
            _end(EXIT_CODE, f"process 0 ({run.hosts[0]}): lost, it does not answer")


def _listen(run: Run, seconds: int) -> None:
    """Ends this process when process 0 leaves a call of `_speak` without an answer."""
    before, quiet = -1, 0
    while not _leaving.wait(BEAT_SECONDS):
        quiet = quiet + 1 if _rounds[0] == before else 0
        before = _rounds[0]
        if quiet * BEAT_SECONDS > seconds:
            _end(EXIT_CODE, f"process 0 ({run.hosts[0]}): lost, no answer for {seconds} s")


def _obey(run: Run, verdict: dict[str, Any]) -> None:
    if verdict["by"] == run.me:  # the thread that found it out ends this process
        return
    if verdict["dump"]:
        faulthandler.dump_traceback()
    elif verdict["exit_code"] != EXIT_CODE and _leaving.wait(GRACE_SECONDS):
        return
    _say(verdict["line"])
    with contextlib.suppress(Exception):  # process 0 has gone meanwhile
        run.client.key_value_set(f"{READ}{run.me}", "", allow_overwrite=True)
    os._exit(verdict["exit_code"])


def _publish(run: Run, exit_code: int, line: str, *, dump: bool = False, silent: int = 0) -> None:
    """Tells all processes that the run is over; the first to say so is heard.

    Process 0, whose end would take it from them, waits until the others read it, but for the
    ``silent`` ones that are lost.
    """
    verdict = {"by": run.me, "exit_code": exit_code, "line": line, "dump": dump}
    with contextlib.suppress(Exception):  # another was first, or process 0 is gone
        run.client.key_value_set(f"{VERDICT}it", json.dumps(verdict))
    with contextlib.suppress(Exception):
        run.client.key_value_set(f"{READ}{run.me}", "", allow_overwrite=True)
        until = time.monotonic() + ACKNOWLEDGE_SECONDS
        readers = len(run.hosts) - silent
        while run.me == 0 and len(run.client.key_value_dir_get(READ)) < readers:
            if time.monotonic() > until:
                break
            time.sleep(0.1)


def await_reason(error: BaseException) -> None:
    """Where the runtime raised an error, a peer that was lost may be the reason.

    The process that finds out who is given the time to say so, and all end with its line.
    """
    cause: BaseException | None = error
    while _run is not None and cause is not None:
        if FROM_RUNTIME.match(str(cause)):
            time.sleep(lost_after() + 10)
            return
        cause = cause.__cause__ or cause.__context__


def fail(exit_code: int, reason: str) -> None:
    """Of several processes: tells the others why this one fails, and ends it here."""
    if _run is not None:
        _leaving.set()
        sys.stdout.flush()
        _publish(_run, exit_code, f"{_name(_run)}: {reason}")
        os._exit(exit_code)


def left() -> None:
    """This process comes to its end, as all others do: nobody is missed any more."""
    _leaving.set()


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[Callable[[str], contextlib.AbstractContextManager[None]]]:
    """Yields what blocks are put into that may take so long: ``with within("step 3"):``.

    One that takes longer ends the run, with exit code 5 and the stacks of all threads. Seconds are
    counted while the process runs: a laptop that was asleep is not stuck.

    Args:
      seconds: 0: as long as it takes.
    """
    over, waiting, spent = threading.Event(), [""], [0.0]

    @contextlib.contextmanager
    def within(what: str) -> Iterator[None]:
        waiting[0], spent[0] = what, 0.0
        try:
            yield
        finally:
            waiting[0] = ""

    def count() -> None:
        tick = min(1.0, seconds)
        while not over.wait(tick):
            spent[0] += tick
            if waiting[0] and spent[0] > seconds:
                line = f"{waiting[0]}: stuck, nothing came for {seconds:g} s"
                faulthandler.dump_traceback()
                if _run is not None:
                    line = f"{_name(_run)}: {line}"
                    _publish(_run, EXIT_CODE, line, dump=True)
                _end(EXIT_CODE, line)

    if seconds:
        threading.Thread(target=count, daemon=True).start()
    try:
        yield within
    finally:
        over.set()


def _name(run: Run) -> str:
    return f"process {run.me} ({run.hosts[run.me]})"


def _end(exit_code: int, line: str) -> None:
    """Ends the process at once: its main thread waits for what does not come any more."""
    _say(line)
    os._exit(exit_code)


def _say(line: str) -> None:
    os.write(2, f"alignjax: {' '.join(line.split())}\n".encode(errors="backslashreplace"))
