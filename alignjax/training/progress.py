"""Keeps, saves and restores the progress of a training: its state and metrics between steps."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Generic

import numpy as np

from alignjax.config import TrainConfig
from alignjax.errors import NumericalError, UserError
from alignjax.runtime import checkpoint, metrics, stores
from alignjax.runtime.faults import fault_point
from alignjax.training.job import Job, State, Turns
from alignjax.types import Array, GameState

log = logging.getLogger("alignjax")

BEST = pathlib.Path("best", "checkpoints")  # in the workdir
STOPPED_UNSAVED = 6  # exit code: a signal asked for a save, which failed


class Numbers:
    """The numbers of the steps, read one step late: see `runtime.metrics`."""

    def __init__(self, turns: Turns[Any], *, max_skipped: int) -> None:
        self._turns = turns
        players = dict.fromkeys(turns.player(done) for done in range(turns.total))
        self._meters = {who: metrics.Meter(max_skipped=max_skipped) for who in players}
        self._pending: tuple[int, dict[str, Array]] | None = None

    def hold(self, step: int, scalars: dict[str, Array]) -> None:
        """Keeps the numbers of a step that may still be running."""
        self._pending = step, scalars

    def read(self) -> dict[str, float]:
        """Waits for the kept numbers, if any, and adds them to the player's averages.

        Returns:
          The loss, under its name, for the progress bar.

        Raises:
          NumericalError: too many steps in a row were not finite; or what ``turns.watch`` raises.
        """
        if self._pending is None:
            return {}
        # Cleared before anything can raise, so that a step is never added twice.
        step, scalars = self._pending
        self._pending = None
        who = self._turns.player(step - 1)
        values = self._meters[who].add(step, scalars)
        self._turns.watch(step, values)
        return {f"{who}loss": values["loss"]}

    def line(self, step: int, seconds: float) -> dict[str, float]:
        """Makes the metrics line of a step, of every player with steps since the last call.

        Args:
          step: number of steps so far.
          seconds: of all steps so far.
        """
        each = {who: meter.averages(seconds) for who, meter in self._meters.items()}
        return {
            who + name: x
            for who, means in each.items()
            if means
            for name, x in {**means, **self._turns.line(who, step)}.items()
        }

    def state(self) -> dict[str, Any]:
        """Returns the sums since the last line as JSON data, for a checkpoint's record."""
        return {f"{who}meter": meter.state() for who, meter in self._meters.items()}

    def restore(self, record: dict[str, Any]) -> None:
        """Restores a `state`."""
        for who, meter in self._meters.items():
            meter.restore(record[f"{who}meter"], float(record.get("seconds", 0.0)))


@dataclasses.dataclass
class Progress(Generic[State]):
    """The progress of a training between two steps."""

    step: int  # steps taken
    state: State
    numbers: Numbers
    seconds: float = 0.0  # of all steps, see `loop.loop`
    best: tuple[int, float] | None = None  # step and value of the best evaluation

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds the block's time to ``seconds``, without tracing and compiling."""
        with metrics.timed() as took:
            yield
        self.seconds += took[0]


@dataclasses.dataclass
class TimedBatches:
    """Batches, and the seconds that the host waited for them."""

    batches: Iterator[Any]
    seconds: float = 0.0

    def __next__(self) -> Any:
        since = time.perf_counter()
        batch = next(self.batches)
        self.seconds += time.perf_counter() - since
        return batch

    def take_seconds(self) -> float:
        """Returns the seconds waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def resume(store: stores.Store, job: Job, turns: Turns[State]) -> Progress[State]:
    """Restores the newest checkpoint, or starts at step 0 if there is none to continue from.

    Raises:
      UserError: the checkpoint is of another run, or of a later step than the run has now.
      CheckpointError: it cannot be read.
    """
    numbers = Numbers(turns, max_skipped=job.train.max_skipped)
    step = stores.latest(store)
    if step is None:
        return Progress(0, turns.start(), numbers)
    record = checkpoint.read_record(store, step)
    checkpoint.refuse_other(store, step, record["identity"], job.identity)
    if step > turns.total:
        raise UserError(
            f"{job.workdir}: wanted a checkpoint of at most step {turns.total}, the steps of the "
            f"{job.name}, found step {step}: use another --workdir, or more steps"
        )
    complete, whole = step == turns.total, "holds" not in record
    if not stores.has_state(store, step) or not (whole or complete):
        log.warning(
            "%s: ended at step %d and kept no optimizer state: starting again", job.name, step
        )
        stores.drop(store, but=None)
        return Progress(0, turns.start(), numbers)
    state = checkpoint.restore(
        store, step, turns.target if whole else _without_optimizer(turns.target)
    )
    stores.drop_newer(store, step)
    if complete and not job.extendable:
        stores.drop(store, but=step)  # again, in case the run was killed before it
    numbers.restore(record)
    if step == turns.total:
        log.info("%s: complete at step %d, nothing to do", job.name, step)
    else:
        log.info("%s: resuming from step %d of %d", job.name, step, turns.total)
    seconds = float(record.get("seconds", 0.0))  # older checkpoints have none
    return Progress(step, state, numbers, seconds)


def save(
    store: stores.Store, job: Job, progress: Progress[Any], *, total: int, asked: bool = False
) -> None:
    """Starts to save a checkpoint; its files are written while training continues.

    The last checkpoint of a job that is not extendable has no optimizer state, and replaces the
    older ones.

    Args:
      store: of the checkpoints.
      job: the training.
      progress: what to save.
      total: steps of the job.
      asked: whether a signal asked for it.

    Raises:
      CheckpointError: it cannot be written; with exit code 6 if a signal asked for it.
    """
    place = f"{job.name}-{progress.step}"
    final = progress.step == total and not job.extendable
    fault_point("logged", place)
    record = {
        "identity": job.identity,
        "next_batch": progress.step,
        "seconds": progress.seconds,
        **progress.numbers.state(),
        **({"holds": "parameters"} if final else {}),
    }
    state = _without_optimizer(progress.state) if final else progress.state
    with _unsaved(asked):
        checkpoint.save(store, progress.step, state, record)
        fault_point("saving", place)
        if final:
            stores.drop(store, but=progress.step)


def best_name(train: TrainConfig) -> str:
    """Returns the metric of ``train.keep_best`` without its prefix ``eval/`` or ``eval_``."""
    return train.keep_best.removeprefix("eval_").removeprefix("eval/")


def read_best(job: Job, step: int) -> tuple[int, float] | None:
    """Reads the best evaluation so far; removes one after ``step``, or by another metric.

    The steps after ``step`` are taken again, and evaluated again.
    """
    if not job.train.keep_best:
        return None
    with stores.open_store(job.workdir / BEST, keep=1) as store:
        steps = stores.list_steps(store)
        if steps and steps[-1] <= step:
            best = checkpoint.read_record(store, steps[-1])["best"]
            if best["metric"] == best_name(job.train):
                return steps[-1], float(best["value"])
        stores.drop(store, but=None)
    return None


def note_evaluation(
    job: Job, at: Progress[Any], values: dict[str, float], writer: metrics.Writer
) -> None:
    """Writes the numbers of an evaluation, and saves the parameters if they are the best so far."""
    writer.write(at.step, {f"eval_{name}": x for name, x in values.items()})
    if job.train.keep_best:
        _keep_best(job, at, values[best_name(job.train)])
    job.watch.evaluation(at.step, values)


def _keep_best(job: Job, at: Progress[Any], value: float) -> None:
    """Saves the parameters in ``best/`` if no earlier evaluation was as good.

    The best ``loss`` is the lowest; the best value of any other metric is the highest.
    """
    name = best_name(job.train)
    sign = -1.0 if name == "loss" else 1.0
    if math.isnan(value) or (at.best is not None and sign * value <= sign * at.best[1]):
        return
    record = {"identity": job.identity, "best": {"metric": name, "value": value}}
    with stores.open_store(job.workdir / BEST, keep=1) as store:
        checkpoint.save(store, at.step, {"params": at.state.params}, record)
    at.best = at.step, value
    log.info("%s: best/ holds step %d, eval/%s %.4g", job.name, at.step, name, value)


def finish_save(store: stores.Store) -> None:
    """Waits for the save that a signal asked for.

    Raises:
      CheckpointError: it could not be written; with exit code 6.
    """
    with _unsaved(True):
        stores.wait(store)


@contextlib.contextmanager
def _unsaved(asked: bool) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if asked:
            error.exit_code = STOPPED_UNSAVED
        raise


def require_trained(name: str, state: Any) -> None:
    """Refuses the result of a training if a network was never updated.

    Raises:
      NumericalError: every step of it was skipped.
    """
    for player in (state.policy, state.reward) if isinstance(state, GameState) else (state,):
        steps, skipped = np.atleast_1d(player.step), np.atleast_1d(player.skipped)
        if ((steps > 0) & (steps == skipped)).any():
            raise NumericalError(
                f"{name}: loss or gradient not finite in each of its {steps.max()} steps: nothing "
                "was trained; lower optim.learning_rate or look at the data"
            )


def _without_optimizer(state: Any) -> Any:
    """Removes the optimizer state, twice the size of the parameters, which only steps need."""
    return dataclasses.replace(state, opt_state=())
