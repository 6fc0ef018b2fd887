"""The training loop, top to bottom.

One batch in, one step, its numbers fetched while the next step runs. Saves, stops and evaluations
happen between steps only, so a run that is killed and started again goes on bit for bit.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from alignjax.config import TrainConfig
from alignjax.data.batching import Batches, read
from alignjax.data.prepare import Dataset
from alignjax.errors import UserError
from alignjax.runtime import checkpoint, consistency, distributed, metrics, watchdog
from alignjax.runtime.faults import fault_point
from alignjax.runtime.sharding import abstract, own_rows, put_rows, shard_tree
from alignjax.training.step import Update, init_state, stacked_step, train_step
from alignjax.types import Array, Batch, GameState, Params, TrainState

log = logging.getLogger("alignjax")

State = TypeVar("State", TrainState, GameState)


class StoppedError(UserError):
    """A signal asked the run to stop, and the state was saved."""

    def __init__(self, signum: int, step: int, workdir: pathlib.Path) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f"{signal.Signals(signum).name}: saved step {step} in {workdir}; the same command "
            "goes on from there"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """What the loop does between steps, and where."""

    name: str  # for messages and the progress bar
    workdir: pathlib.Path  # of metrics.jsonl and checkpoints/
    mesh: Mesh
    identity: dict[str, Any]  # what a checkpoint must have been made of to be continued
    train: TrainConfig  # how often to save, to log and to evaluate; when to give up


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Learner:
    """A network to train: what it starts from, and how a step moves it."""

    update: Update
    learning_rate: optax.Schedule  # the optimizer's, for the lines of the metrics
    params_shape: Params  # shapes and dtypes of what is trained
    # The parameters to start from, on the mesh, as buffers of their own: the first step donates
    # them. Called only when there is no checkpoint.
    load_start: Callable[[], Params]
    ref_params: Params | None = None  # what steps are given and never change: the reference that
    # they score, or the base of adapters


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """The rows that steps are taken on, and the batches they make up."""

    dataset: Dataset
    batches: Batches  # of the whole run
    ref_logps: np.ndarray | None = None  # [N, K] nats under the reference, when cached

    def read(self, start: int, mesh: Mesh) -> Iterator[Batch]:
        """This process's rows of the batches ``start, start + 1, ...``, on the host."""
        mine = self.batches.only(own_rows(mesh, self.batches.rows.shape[1]))
        return read(self.dataset, mine, start=start, ref_logps=self.ref_logps)


def fit(
    job: Job,
    learner: Learner,
    feed: Feed,
    key: Array,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> tuple[TrainState, dict[str, int]]:
    """Trains on every batch of the feed, from the newest checkpoint if there is one.

    Args:
      job: where, and what happens between steps.
      learner: what is trained.
      feed: on what.
      key: root PRNG key of the draws. ``[P]`` keys train P networks in one program: the parameters
        that training starts from have a leading axis P, and row i of a batch is network i % P's
        (`step.stacked_step`).
      evaluate: called every ``job.train.eval_every`` steps and after the last one, if that is not
        0; its numbers are logged under ``eval_`` names.

    Returns:
      The final state, and counts: steps, steps skipped, compiles, the step resumed from.

    Raises:
      StoppedError: SIGINT or SIGTERM came; the state is saved.
      NumericalError: too many steps in a row were not finite.
      CheckpointError: a checkpoint cannot be read or written.
    """
    traced: list[str] = []  # one entry per batch shape
    start, target, step_fn = make_step(learner, job.mesh, key, lambda: traced.append("step"))
    rows_done = np.cumsum((feed.batches.rows >= 0).sum(axis=1))
    return loop(
        job,
        total=len(feed.batches),
        target=target,
        start=lambda: start(learner.load_start()),
        batches=lambda begin: feed.read(begin, job.mesh),
        turn=lambda state, batch, done: step_fn(state, learner.ref_params, batch),
        compiled=lambda: len(traced),
        tell=lambda step: {
            "learning_rate": float(learner.learning_rate(step - 1)),
            "epoch": rows_done[step - 1] / len(feed.dataset),
        },
        evaluate=None if evaluate is None else lambda state: evaluate(state.params),
    )


def make_step(
    learner: Learner, mesh: Mesh, key: Array, traced: Callable[[], None] = lambda: None
) -> tuple[Callable[[Params], TrainState], TrainState, Any]:
    """Makes the program of one step, as `fit` runs it.

    Args:
      learner: what is trained.
      mesh: where.
      key: as in `fit`.
      traced: called whenever the step is traced.

    Returns:
      A function from the parameters to start from to the state at step 0; shapes, dtypes and
      shardings of the state; the step, jitted: ``(state, ref_params, batch) -> (state, scalars)``.
    """
    stacked, shape = key.ndim > 0, learner.params_shape
    if stacked:
        shape = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(key), *x.shape), x.dtype), shape)

    def start(params: Params) -> TrainState:
        make = functools.partial(init_state, optimizer=learner.update.optimizer)
        if stacked:
            return jax.vmap(lambda p, k: make(p, key=k))(params, key)
        return make(params, key=key)

    shapes = jax.eval_shape(start, shape)
    layout = shard_tree(shapes, mesh, stacked=stacked)

    def one_step(
        state: TrainState, ref_params: Params | None, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        traced()
        take = stacked_step if stacked else train_step
        return take(state, ref_params, batch, learner.update)

    return (
        jax.jit(start, out_shardings=layout, donate_argnums=0),
        abstract(shapes, layout),
        jax.jit(one_step, donate_argnums=0, out_shardings=(layout, None)),
    )


def loop(
    job: Job,
    *,
    total: int,
    target: State,
    start: Callable[[], State],
    batches: Callable[[int], Iterator[Any]],
    turn: Callable[[State, Any, int], tuple[State, dict[str, Array]]],
    compiled: Callable[[], int],
    tell: Callable[[int], dict[str, float]],
    player: Callable[[int], str] = lambda done: "",
    watch: Callable[[int, dict[str, float]], None] = lambda step, values: None,
    evaluate: Callable[[State], dict[str, float]] | None = None,
) -> tuple[State, dict[str, int]]:
    """Takes the steps that are left, and saves, tells and stops between them.

    Args:
      job: where, and what happens between steps; what is trained is the caller's.
      total: steps of the whole run.
      target: shapes, dtypes and shardings of the state.
      start: makes the state at step 0, laid out so; called only when there is no checkpoint.
      batches: from the steps done so far, what this process has for each of the next ones:
        host arrays with a leading axis of rows, those of `sharding.own_rows`.
      turn: one step, of the state, that on the mesh, and the steps done before it.
      compiled: how often a step was compiled so far.
      tell: called with the number of a step whose line is written; more numbers for it.
      player: from the steps done, what the next one's numbers are called by: it goes before their
        names, and each player's are averaged apart.
      watch: sees the numbers of every step, before the step is saved; may raise.
      evaluate: as in `fit`, of the whole state.

    Returns:
      The final state, and counts as in `fit`.

    Every line of the metrics holds ``step_seconds``: what all turns so far took, over all starts of
    the run, without tracing and compiling, waiting for rows, saving and evaluating.
    """
    consistency.check_same({f"{job.name}: {name}": str(x) for name, x in job.identity.items()})
    players = dict.fromkeys(player(done) for done in range(total))
    meters = {who: metrics.Meter(max_skipped=job.train.max_skipped) for who in players}
    with checkpoint.open_store(job.workdir / "checkpoints", keep=job.train.keep) as store:
        # What process 0 sees: a file system may show it to the others later.
        begin = json.loads(distributed.exchange("latest", json.dumps(checkpoint.latest(store)))[0])
        if begin is None:
            state = start()
            begin, spent = 0, 0.0
        else:
            record = checkpoint.read_record(store, begin)
            checkpoint.refuse_other(store, begin, record["identity"], job.identity)
            if begin > total:
                raise UserError(
                    f"{job.workdir}: its checkpoint is of step {begin}, the {job.name} now has "
                    f"{total} steps: use another --workdir, or more steps"
                )
            state = checkpoint.restore(store, begin, target)
            for who, meter in meters.items():
                meter.restore(record[f"{who}meter"])
            spent = float(record.get("seconds", 0.0))  # 0: from before they were counted
            if begin == total:
                log.info("%s: complete at step %d, nothing to do", job.name, total)
            else:
                log.info("%s: resuming from step %d of %d", job.name, begin, total)

        def save(step: int) -> None:
            fault_point("logged", f"{job.name}-{step}")
            record = {"identity": job.identity, "next_batch": step, "seconds": spent}
            record |= {f"{who}meter": meter.state() for who, meter in meters.items()}
            checkpoint.save(store, step, state, record)
            fault_point("saving", f"{job.name}-{step}")

        def averages() -> dict[str, float]:
            each = {who: meter.averages() for who, meter in meters.items()}
            return {who + name: x for who, found in each.items() for name, x in found.items()}

        def look(step: int, scalars: dict[str, Array]) -> dict[str, float]:
            who = player(step - 1)
            values = meters[who].add(step, scalars)
            watch(step, values)
            return {f"{who}loss": values["loss"]}

        waited = 0.0  # seconds that the host waited for rows since the last line
        ahead = batches(begin)
        late: dict[str, Array] | None = None
        with (
            _signals() as caught,
            watchdog.time_limit(job.train.stuck_after) as limited,
            contextlib.closing(metrics.Writer(job.workdir, after_step=begin)) as writer,
            metrics.progress(job.name, total, done=begin) as advance,
        ):
            for step in range(begin + 1, total + 1):
                since = time.perf_counter()
                host = next(ahead)
                waited += time.perf_counter() - since
                batch = put_rows(host, job.mesh)
                # Of several processes, one may have caught a signal: all stop at the same step.
                with limited(f"{job.name}, step {step}"):
                    heard = distributed.max_over_processes(caught)
                with metrics.timed() as took:
                    state, scalars = turn(state, batch, step - 1)
                    fault_point("step", f"{job.name}-{step}")
                    with limited(f"{job.name}, step {step}"):
                        if late is not None:
                            look(step - 1, late)
                        stopping = bool(heard())  # once: a signal may come at any line
                spent += took[0]
                late = scalars
                at_end, logs = step == total, step % job.train.log_every == 0
                evaluates = (
                    evaluate is not None
                    and job.train.eval_every > 0
                    and (at_end or step % job.train.eval_every == 0)
                )
                saves = at_end or stopping or step % job.train.save_every == 0
                if logs or at_end or evaluates or saves:  # these look at this very step
                    with metrics.timed() as took, limited(f"{job.name}, step {step}"):
                        note = look(step, late)
                    spent += took[0]
                    late = None
                    advance(0, **note)
                    if logs or at_end:
                        told = {**averages(), **tell(step), "data_wait_seconds": waited}
                        writer.write(step, told | {"step_seconds": spent})
                        waited = 0.0
                if evaluate is not None and evaluates:
                    found = evaluate(state)
                    writer.write(step, {f"eval_{k}": v for k, v in found.items()})
                    fault_point("evaluated", f"{job.name}-{step}")
                if saves:
                    save(step)
                advance(1)
                if stopping:
                    break
            with limited(f"{job.name}, the end"):
                signum = distributed.max_over_processes(caught)()
            if signum:  # at the end of the plan too: another stage would follow
                store.wait()
                raise StoppedError(signum, int(state.step.max()), job.workdir)
    return state, {
        "steps": total,
        "resumed_from": begin,
        "skipped_steps": int(state.skipped.sum()),
        "compiles": compiled(),
    }


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; the loop looks between steps."""
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        del frame
        if not caught:  # what comes after the first changes nothing
            log.warning("%s: stopping after this step", signal.Signals(signum).name)
            caught.append(signum)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
