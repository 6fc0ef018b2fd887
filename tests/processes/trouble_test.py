"""One process that is killed, hangs, is stopped or fails: what becomes of the others."""

import functools
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from alignjax.errors import UserError
from alignjax.runtime import distributed, watchdog
from alignjax.runtime.loggers import bars
from tests.processes import members

HOST = distributed.platform.node()


@pytest.mark.slow
def test_process_0_is_killed(compiled, tmp_path):
    each = ({"ALIGNJAX_FAULT": "step:alignment-5=kill"}, {})
    codes, output = members.start(tmp_path, each, **compiled)
    assert codes == [-signal.SIGKILL, 5], output
    # Whoever notices first: our thread, or JAX, whose abort ends with our line too.
    assert members.last_line(output[1]) in (
        f"alignjax: process 0 ({HOST}): lost, it does not answer",
        "alignjax: aborted by JAX (see above); most likely a peer is lost",
    )


@pytest.mark.slow
def test_one_that_hangs_ends_the_run_with_the_stacks_of_all(compiled, tmp_path):
    each = ({}, {"MEMBER_TROUBLE": "hang-5"})
    codes, output = members.start(tmp_path, each, MEMBER_STUCK_AFTER="12", **compiled)
    assert codes == [5, 5], output
    line = f"alignjax: process 0 ({HOST}): alignment, step 5: stuck, no progress for 12 s"
    assert [members.last_line(x) for x in output] == [line] * 2
    assert "in trouble" in output[1]  # the stack of the one that hangs says where
    assert "in loop" in output[0]


@pytest.mark.slow
def test_process_0_is_stopped(compiled, tmp_path):
    """Its connections stay open, and nothing is answered."""
    each = ({"ALIGNJAX_FAULT": "step:alignment-5=stop"}, {})
    codes, output = members.start(tmp_path, each, waits_for=[1], **compiled)
    assert codes[1] == 5, output
    assert members.last_line(output[1]) == (
        f"alignjax: process 0 ({HOST}): lost, no answer for 10 s"
    )


@pytest.mark.slow
def test_an_error_of_one_ends_all_with_its_code_and_line(compiled, tmp_path):
    each = ({}, {"MEMBER_TROUBLE": "error-5"})
    codes, output = members.start(tmp_path, each, **compiled)
    assert codes == [2, 2], output
    assert members.last_line(output[1]) == "alignjax: wrong in this process alone"
    assert members.last_line(output[0]) == (
        f"alignjax: process 1 ({HOST}): wrong in this process alone"
    )


def test_what_takes_too_long_ends_the_program(monkeypatch):
    ended = []

    def end(code, line):
        ended.append((code, line))

    monkeypatch.setattr(watchdog, "_end", end)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda: ended.append("stacks"))
    with watchdog.time_limit(0.01) as limited, limited("a step"):
        while len(ended) < 2:
            pass
    # It did not really end, so that some more may have come.
    assert ended[:2] == ["stacks", (5, "a step: stuck, no progress for 0.01 s")]
    ended.clear()
    # What is in time, what is outside of a block, and what has no limit, is left alone.
    with watchdog.time_limit(0.2) as limited:
        for _ in range(8):
            with limited("a step"):
                time.sleep(0.05)
        time.sleep(0.5)
    with watchdog.time_limit(0) as limited, limited("a step"):
        pass
    assert not ended


def test_every_phase_that_takes_too_long_ends_the_program(monkeypatch):
    """What a progress bar shows, within others or not; compiling, and what moves, is left alone."""
    ended = []
    monkeypatch.setattr(watchdog, "_end", lambda code, line: ended.append((code, line)))
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback", lambda: None)
    with watchdog.watching(0.05), bars.progress("alignment", 1, watched=False):
        time.sleep(0.2)  # its own business
        with bars.progress("  sampling", 9) as advance:
            for _ in range(9):
                time.sleep(0.01)
                advance()
            with monkeypatch.context() as patch:
                patch.setattr(watchdog, "_compiles", lambda frame: True)
                time.sleep(0.2)
            assert not ended
            until = time.monotonic() + 10
            while not ended and time.monotonic() < until:
                time.sleep(0.01)
        assert ended[0] == (5, "sampling: stuck, no progress for 0.05 s")
        with watchdog.phase("data"):
            pass
        ended.clear()
        time.sleep(0.2)
        assert not ended


def test_a_thread_sees_that_the_main_thread_compiles():
    seen, over, main = [], threading.Event(), threading.main_thread().ident

    def look():
        while not over.wait(0.0005):
            seen.append(watchdog._compiles(sys._current_frames()[main]))

    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.01)
    assert not any(seen)
    chain = jax.jit(lambda x: functools.reduce(lambda y, i: jnp.sin(y) * i, range(60), x))
    chain.lower(jnp.ones(17)).compile()
    over.set()
    thread.join()
    assert any(seen)


@pytest.mark.parametrize("text", ["", "soon", "2", "-5", "1.5"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(monkeypatch, text):
    monkeypatch.setenv("ALIGNJAX_LOST_AFTER", text)
    with pytest.raises(UserError, match="ALIGNJAX_LOST_AFTER: wanted seconds, 3 or more, found"):
        watchdog.lost_after()


def test_only_errors_of_the_runtime_wait_for_a_reason(monkeypatch):
    waited = []
    monkeypatch.setattr(watchdog, "_peers", watchdog.Peers(None, 0, ["here", "there"]))
    monkeypatch.setattr(watchdog.time, "sleep", waited.append)
    monkeypatch.setenv("ALIGNJAX_LOST_AFTER", "7")
    for own in (UserError("data.path: no file"), ValueError("K: 3"), ZeroDivisionError()):
        watchdog.wait_for_verdict(own)
    assert not waited
    wrapped = UserError("the last save failed")
    wrapped.__cause__ = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")
    for foreign in (ValueError("UNKNOWN: Gloo all-reduce failed"), wrapped):
        watchdog.wait_for_verdict(foreign)
    assert waited == [17, 17]
