"""Ends all processes of a run with one message when one of them fails, is lost or hangs.

The others cannot continue, and a scheduler can restart the run only when all have ended. Every
process sends a heartbeat each second through the key-value store of process 0. Process 0 watches
the heartbeats of the others, and they watch whether it answers. The first process that detects a
failure publishes a verdict, and every process ends with its line.
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
GRACE_SECONDS = 4.0  # time for a process with the same failure to report it itself
READ_SECONDS = 10.0  # process 0 waits so long for the others to read the verdict
EXIT_CODE = 5
# Errors of the runtime that a lost peer may cause begin like this; their types differ.
RUNTIME_ERROR = re.compile(
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
ALIVE, VERDICT, READ = "alignjax/alive/", "alignjax/verdict/", "alignjax/read/"


@dataclasses.dataclass(frozen=True)
class Peers:
    """The processes of a run."""

    client: Any  # of JAX's coordination service
    me: int  # number of this process
    hosts: list[str]  # machine of each process

    def name(self, i: int) -> str:
        """``process 1 (host)``."""
        return f"process {i} ({self.hosts[i]})"


_peers: Peers | None = None  # None: one process
_leaving = threading.Event()  # set when this process ends by itself
_rounds = [0]  # number of answers from process 0
# Called from C code: it must not be freed.
_aborted = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    lambda _: _end(EXIT_CODE, "aborted by JAX (see above); most likely a peer is lost")
)


def lost_after() -> int:
    """Reads ``ALIGNJAX_LOST_AFTER``: seconds without a heartbeat after which a process is lost.

    Raises:
      UserError: it is not an integer of at least 3.
    """
    text = os.environ.get("ALIGNJAX_LOST_AFTER", "60")
    if not text.isdecimal() or int(text) < 3:
        raise UserError(f"ALIGNJAX_LOST_AFTER: wanted seconds, 3 or more, found {text!r}")
    return int(text)


def handle_aborts() -> None:
    """Exits with `EXIT_CODE` when JAX aborts the process: process 0 is lost or never started.

    A Python handler would run only after the abort, so the handler is a C function.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, type(_aborted)]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, _aborted)


def start(peers: Peers) -> None:
    """Starts to send heartbeats and to watch the other processes."""
    global _peers
    _peers = peers
    seconds = lost_after()
    threading.Thread(target=_beat, args=(peers, seconds), daemon=True).start()
    if peers.me:
        threading.Thread(target=_watch_main, args=(peers, seconds), daemon=True).start()


def _beat(peers: Peers, seconds: int) -> None:
    """Sends heartbeats and obeys a verdict; in process 0 also watches the others' heartbeats."""
    count = len(peers.hosts)
    last, silent = [""] * count, [0] * count  # heartbeats, and rounds without a new one
    try:
        while not _leaving.wait(BEAT_SECONDS):
            peers.client.key_value_set(f"{ALIVE}{peers.me}", str(_rounds[0]), allow_overwrite=True)
            for _, text in peers.client.key_value_dir_get(VERDICT):
                _obey(peers, json.loads(text))
            _rounds[0] += 1
            if peers.me:
                continue
            beats = peers.client.key_value_dir_get(ALIVE)
            now = {int(key.split("/")[-1]): text for key, text in beats}
            for i in range(1, count):
                silent[i] = silent[i] + 1 if now.get(i, "") == last[i] else 0
                last[i] = now.get(i, "")
            lost = [i for i in range(count) if silent[i] * BEAT_SECONDS > seconds]
            if lost:
                names = ", ".join(peers.name(i) for i in lost[:4])
                line = f"{names}: lost, no heartbeat for {seconds} s"
                _publish(peers, EXIT_CODE, line, lost=len(lost))
                _end(EXIT_CODE, line)
    except Exception:  # the client's: process 0 no longer serves
        if not _leaving.is_set():
            _end(EXIT_CODE, f"{peers.name(0)}: lost, it does not answer")


def _watch_main(peers: Peers, seconds: int) -> None:
    """Ends this process when process 0 leaves a call of `_beat` unanswered."""
    before, silent = -1, 0
    while not _leaving.wait(BEAT_SECONDS):
        silent = silent + 1 if _rounds[0] == before else 0
        before = _rounds[0]
        if silent * BEAT_SECONDS > seconds:
            _end(EXIT_CODE, f"{peers.name(0)}: lost, no answer for {seconds} s")


def _obey(peers: Peers, verdict: dict[str, Any]) -> None:
    if verdict["by"] == peers.me:  # the thread that published the verdict ends this process
        return
    if verdict["dump"]:
        faulthandler.dump_traceback()
    elif verdict["exit_code"] != EXIT_CODE and _leaving.wait(GRACE_SECONDS):
        return
    _print(verdict["line"])
    with contextlib.suppress(Exception):  # process 0 may be gone by now
        peers.client.key_value_set(f"{READ}{peers.me}", "", allow_overwrite=True)
    os._exit(verdict["exit_code"])


def _publish(peers: Peers, exit_code: int, line: str, *, dump: bool = False, lost: int = 0) -> None:
    """Publishes the verdict that the run is over; only the first one counts.

    The store ends with process 0, so process 0 waits until all others, except the ``lost`` ones,
    have read the verdict.
    """
    verdict = {"by": peers.me, "exit_code": exit_code, "line": line, "dump": dump}
    with contextlib.suppress(Exception):  # another was first, or process 0 is gone
        peers.client.key_value_set(f"{VERDICT}it", json.dumps(verdict))
    with contextlib.suppress(Exception):
        peers.client.key_value_set(f"{READ}{peers.me}", "", allow_overwrite=True)
        until = time.monotonic() + READ_SECONDS
        readers = len(peers.hosts) - lost
        while peers.me == 0 and len(peers.client.key_value_dir_get(READ)) < readers:
            if time.monotonic() > until:
                break
            time.sleep(0.1)


def wait_for_verdict(error: BaseException) -> None:
    """Waits after an error of the runtime, which a lost peer may have caused.

    Meanwhile, the process that detects the lost peer can publish it, and all end with its line.
    """
    cause: BaseException | None = error
    while _peers is not None and cause is not None:
        if RUNTIME_ERROR.match(str(cause)):
            time.sleep(lost_after() + 10)
            return
        cause = cause.__cause__ or cause.__context__


def fail(exit_code: int, reason: str) -> None:
    """Publishes why this process fails, if there are others, and ends it."""
    if _peers is not None:
        _leaving.set()
        sys.stdout.flush()
        _publish(_peers, exit_code, f"{_peers.name(_peers.me)}: {reason}")
        os._exit(exit_code)


def stop() -> None:
    """Stops the watchdog when all processes have finished."""
    _leaving.set()


@contextlib.contextmanager
def time_limit(
    seconds: float,
) -> Iterator[Callable[[str], contextlib.AbstractContextManager[None]]]:
    """Yields a context manager for blocks that may hang: ``with limited("step 3"):``.

    A block that takes longer ends the run, with exit code 5 and the stacks of all threads. Only
    time in which the process runs counts, so a laptop that was asleep is not stuck.

    Args:
      seconds: the limit; 0: none.
    """
    over, block, spent = threading.Event(), [""], [0.0]

    @contextlib.contextmanager
    def limited(name: str) -> Iterator[None]:
        block[0], spent[0] = name, 0.0
        try:
            yield
        finally:
            block[0] = ""

    def count() -> None:
        tick = min(1.0, seconds)
        while not over.wait(tick):
            spent[0] += tick
            if block[0] and spent[0] > seconds:
                _end_stuck(f"{block[0]}: stuck, no progress for {seconds:g} s")

    if seconds:
        threading.Thread(target=count, daemon=True).start()
    try:
        yield limited
    finally:
        over.set()


@dataclasses.dataclass
class _Phase:
    """The work of a run outside of steps, and the time since it last made progress."""

    name: str = ""  # empty: no watched work
    spent: float = 0.0  # seconds


_phase = _Phase()


@contextlib.contextmanager
def watching(seconds: float) -> Iterator[None]:
    """Ends a run if a `phase` makes no progress for so long, as `time_limit` does for steps.

    Time in which the main thread compiles does not count.

    Args:
      seconds: the limit; 0: none.
    """
    over, main = threading.Event(), threading.main_thread().ident

    def count() -> None:
        tick = min(1.0, seconds)
        while not over.wait(tick):
            if _phase.name and not _compiles(sys._current_frames().get(main or 0)):
                _phase.spent += tick
                if _phase.spent > seconds:
                    _end_stuck(f"{_phase.name}: stuck, no progress for {seconds:g} s")

    if seconds:
        threading.Thread(target=count, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def phase(name: str) -> Iterator[Callable[[], None]]:
    """Names the work of a block; the block calls the yielded function at each progress."""
    before, _phase.name, _phase.spent = _phase.name, name, 0.0

    def note_progress() -> None:
        _phase.spent = 0.0

    try:
        yield note_progress
    finally:
        _phase.name, _phase.spent = before, 0.0


def _compiles(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith("jax/_src/compiler.py"):
            return True
        frame = frame.f_back
    return False


def _end_stuck(line: str) -> None:
    faulthandler.dump_traceback()
    if _peers is not None:
        line = f"{_peers.name(_peers.me)}: {line}"
        _publish(_peers, EXIT_CODE, line, dump=True)
    _end(EXIT_CODE, line)


def _end(exit_code: int, line: str) -> None:
    """Ends the process at once, because its main thread may wait forever."""
    _print(line)
    os._exit(exit_code)


def _print(line: str) -> None:
    os.write(2, f"alignjax: {' '.join(line.split())}\n".encode(errors="backslashreplace"))
