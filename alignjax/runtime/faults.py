"""Injects faults, so that tests can end a run at an exact place.

``ALIGNJAX_FAULT=phase:place=kill`` sends this process SIGKILL when it first reaches the phase and
place; ``term``, ``int`` and ``stop`` send SIGTERM, SIGINT and SIGSTOP; ``raise`` raises
`FaultError`, which nothing catches. Without the variable nothing happens.
"""

import os
import signal

# Places at which a run can be ended. The place is the job and the step (alignment-12) in the first
# four phases, the part's name in "part", and the artifact's name (before.json) in the others.
PHASES = (
    "step",  # a step is dispatched, its metrics are not fetched
    "logged",  # a step is logged, its save has not started
    "saving",  # a save has started in the background
    "evaluated",  # an evaluation during training is logged
    "part",  # a part of an artifact is written
    "made",  # an artifact's content is complete, without its manifest
    "sealed",  # the manifest is written in the scratch folder
    "moving",  # the old content is moved away, if it was a folder
    "moved",  # the new content is at its place, its manifest is not
    "kept",  # the manifest is at its place, the scratch folder still exists
)
SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "stop": signal.SIGSTOP,
}


ACTIONS = (*SIGNALS, "raise")


class FaultError(Exception):
    """Simulates the end of a process, for a test in the same process."""


def fault_point(phase: str, place: object) -> None:
    """Ends the process if ``ALIGNJAX_FAULT`` names this phase and place.

    Raises:
      ValueError: the variable has an unknown phase or action.
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
