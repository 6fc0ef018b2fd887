"""Faults on purpose, so that tests can end a run at one exact place.

``ALIGNJAX_FAULT=phase:place=kill`` sends this process SIGKILL when it first comes to that phase,
``term``, ``int`` and ``stop`` send SIGTERM, SIGINT and SIGSTOP, and ``raise`` raises `FaultError`,
which nothing catches. Without the variable nothing happens.
"""

import os
import signal

# Where a run can be ended. The place of the first four is the job and the step, alignment-12; of a
# part its name, and of the rest the artifact's name, before.json.
PHASES = (
    "step",  # a step is dispatched, its numbers are not fetched
    "logged",  # a step is to be saved, nothing of it is
    "saving",  # a save is started and goes on in the background
    "evaluated",  # an evaluation during training is logged
    "part",  # a part of an artifact is written
    "made",  # its content is complete, nothing says so
    "sealed",  # the scratch folder says so
    "moving",  # what was at its place has gone from there, if it was a folder
    "moved",  # the new content is there, its manifest is not
    "kept",  # the manifest is there too, the scratch folder is not gone
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
    fault = os.environ.get("ALIGNJAX_FAULT")
    if not fault:
        return
    where, _, action = fault.partition("=")
    wanted, _, at = where.partition(":")
    if wanted not in PHASES or action not in ACTIONS:
        raise ValueError(
            f"ALIGNJAX_FAULT={fault}: wanted PHASE:PLACE=ACTION, with a phase out of "
            f"{', '.join(PHASES)} and an action out of {', '.join(ACTIONS)}"
        )
    if (phase, str(place)) == (wanted, at):
        os.environ["ALIGNJAX_FAULT"] = ""  # once
        if action == "raise":
            raise FaultError(fault)
        os.kill(os.getpid(), SIGNALS[action])
