"""Runs the training loop.

For each batch it takes one step, and fetches the step's numbers while the next one runs. It saves,
stops and evaluates only between steps, so a run that was killed and restarted gives the same bits.
"""

import contextlib
import logging
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config import TrainConfig
from alignjax.errors import UserError
from alignjax.runtime import consistency, distributed, metrics, stores, watchdog
from alignjax.runtime.faults import fault_point
from alignjax.runtime.loggers import bars
from alignjax.runtime.sharding import put_rows
from alignjax.training import progress
from alignjax.training.job import Job, State, Turns
from alignjax.training.progress import Progress, TimedBatches

log = logging.getLogger("alignjax")


class StoppedError(UserError):
    """A signal asked the run to stop, and the state was saved."""

    def __init__(self, signum: int, step: int, workdir: pathlib.Path) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f"{signal.Signals(signum).name}: saved step {step} in {workdir}; run the same command "
            "again to resume"
        )


def loop(
    job: Job, turns: Turns[State], evaluate: Callable[[State], dict[str, float]] | None = None
) -> tuple[State, dict[str, int]]:
    """Takes the remaining steps, and saves, logs and stops between them.

    Args:
      job: where it runs, and what happens between steps.
      turns: the steps.
      evaluate: as in `offline.fit`, of the whole state.

    Returns:
      The final state, and counts as in `offline.fit`.

    Every line of the metrics has ``train_seconds``: the time of all steps so far, over all starts
    of the run, without tracing and compiling, waiting for rows, saving and evaluating; and
    ``step_seconds``, the mean time of a step since the previous line.
    """
    consistency.check_same({f"{job.name}: {name}": str(x) for name, x in job.identity.items()})
    with stores.open_store(job.workdir / "checkpoints", keep=job.train.keep) as store:
        at = progress.resume(store, job, turns)
        at.best = progress.read_best(job, at.step)
        begin, rows, stopping = at.step, TimedBatches(turns.batches(at.step)), False
        with (
            _signals() as caught,
            watchdog.time_limit(job.train.stuck_after) as limited,
            contextlib.closing(
                metrics.Writer(job.workdir, after_step=begin, names=job.train.loggers)
            ) as writer,
            bars.progress(job.name, turns.total, done=begin, watched=False) as advance,
        ):
            while at.step < turns.total and not stopping:
                batch = put_rows(next(rows), job.mesh)
                stopping = _take_step(job, turns, at, batch, caught, limited)
                due = _due(job.train, at.step, turns.total, stopping)
                if due:  # these need the numbers of this step, so wait for it
                    with at.timed(), limited(f"{job.name}, step {at.step}"):
                        at.numbers.read()
                line: dict[str, float] = {}
                if "line" in due:
                    line = at.numbers.line(at.step, at.seconds)
                    line |= {"data_wait_seconds": rows.take_seconds(), "train_seconds": at.seconds}
                    writer.write(at.step, line)
                    job.watch.line(at.step, line)
                advance(1, **line)
                if "evaluation" in due and evaluate is not None:
                    progress.note_evaluation(job, at, evaluate(at.state), writer)
                    fault_point("evaluated", f"{job.name}-{at.step}")
                if "save" in due:
                    progress.save(store, job, at, total=turns.total, asked=stopping)
            with limited(f"{job.name}, the end"):
                signum = distributed.max_over_processes(caught)()
            if signum:  # also after the last step: do not begin another stage
                progress.finish_save(store)
                raise StoppedError(signum, int(at.state.step.max()), job.workdir)
    progress.require_trained(job.name, at.state)
    return at.state, {
        "steps": turns.total,
        "resumed_from": begin,
        "skipped_steps": int(at.state.skipped.sum()),
        "compiles": len(turns.traced),
    }


def _take_step(
    job: Job,
    turns: Turns[State],
    at: Progress[State],
    batch: Any,
    caught: list[int],
    limited: Callable[[str], contextlib.AbstractContextManager[None]],
) -> bool:
    """Dispatches one step, and reads the numbers of the previous one while the device is busy.

    Returns:
      Whether any process got a signal, so that all of them stop after this step.
    """
    step = at.step + 1
    with limited(f"{job.name}, step {step}"):
        # Dispatched before the step, so that the host gets the result without waiting for the step.
        signum = distributed.max_over_processes(caught)
    with at.timed():
        at.state, scalars = turns.take(at.state, batch, at.step)
        at.step = step
        fault_point("step", f"{job.name}-{step}")
        with limited(f"{job.name}, step {step}"):
            at.numbers.read()  # of the previous step
            stopping = bool(signum())  # called once: a signal may come at any line
    at.numbers.hold(step, scalars)
    return stopping


def _due(train: TrainConfig, step: int, total: int, stopping: bool) -> set[str]:
    """Returns what to do after a step: write metrics, evaluate, save."""
    at_end = step == total
    every = train.eval_every or 0
    evaluates = every > 0 and (at_end or step % every == 0)
    when = {
        "line": at_end or step == 1 or step % train.log_every == 0,
        "evaluation": evaluates,
        "save": at_end or stopping or step % train.save_every == 0,
    }
    return {name for name, due in when.items() if due}


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Catches SIGINT and SIGTERM, and yields the list that the first one is added to."""
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        del frame
        if not caught:  # later signals change nothing
            log.warning("%s: stopping after this step", signal.Signals(signum).name)
            caught.append(signum)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
