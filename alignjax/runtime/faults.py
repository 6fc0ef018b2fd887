"""Faults on purpose, so that tests can end a run at one exact place.

``ALIGNJAX_FAULT=phase:place=kill`` sends this process SIGKILL when it first comes to that phase,
``term``, ``int`` and ``stop`` send SIGTERM, SIGINT and SIGSTOP, and ``raise`` raises `FaultError`,
which nothing catches. Without the variable nothing happens.
"""

import os
import signal

# Where a run can be ended. The place is the job and the step, alignment-12, in the first four; the
# name of the file, or the start of it, where many of them are written; and empty in the rest.
PHASES = (
    "step",  # a step is dispatched, its numbers are not fetched
    "logged",  # a step is to be saved, nothing of it is
    "saving",  # a save is started and goes on in the background
    "evaluated",  # an evaluation during training is logged
    "config",  # the config is written
    "data",  # rows are prepared
    "params",  # the supervised stage's parameters are written, its summary is not
    "generated",  # a batch of candidates is written
    "scored",  # the scores of some of them are written
    "listed",  # the lists are written, what they are made of is not
    "cached",  # the reference's table is written
    "sampled",  # responses are sampled and written
    "kept",  # a part of a game's measurements is written
    "ended",  # a game's summary is written
    "drawn",  # a batch of samples that a method of several objectives learns from is written
    "rows_scored",  # some of the scores of its rows are written
    "said",  # responses for one preference are written
    "front",  # the front is written, the summary is not
)
SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "stop": signal.SIGSTOP,
}


ACTIONS = (*SIGNALS, "raise")


class FaultError(Exception):
    """The end of a process, as far as a test in the same process is concerned."""


def fault_point(phase: str, place: object) -> None:
    """Ends the process here, if ``ALIGNJAX_FAULT`` asks for this phase and place.

    Raises:
      ValueError: the variable names no phase, or nothing that can be done.
    """
    asked = os.environ.get("ALIGNJAX_FAULT")
    if not asked:
        return
    where, _, action = asked.partition("=")
    wanted, _, at = where.partition(":")
    if wanted not in PHASES or action not in ACTIONS:
        raise ValueError(
            f"ALIGNJAX_FAULT={asked}: wanted PHASE:PLACE=ACTION, with a phase out of "
            f"{', '.join(PHASES)} and an action out of {', '.join(ACTIONS)}"
        )
    if (phase, str(place)) == (wanted, at):
        os.environ["ALIGNJAX_FAULT"] = ""  # once
        if action == "raise":
            raise FaultError(asked)
        os.kill(os.getpid(), SIGNALS[action])
