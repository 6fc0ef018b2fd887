"""The training loop, top to bottom.

One batch in, one step, its numbers fetched while the next step runs. Saves, stops and evaluations
happen between steps only, so a run that is killed and started again goes on bit for bit.
"""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from alignjax import checkpoint, metrics
from alignjax.data.batching import Bucketed, Plan, read
from alignjax.errors import UserError
from alignjax.faults import fault_point
from alignjax.sharding import abstract, put_rows, shard_tree
from alignjax.step import Apply, Forward, init_state, score, train_step
from alignjax.types import Array, Baseline, Batch, Loss, Params, RewardLoss, Select, TrainState

log = logging.getLogger("alignjax")


class StoppedError(UserError):
    """A signal asked the run to stop, and the state was saved."""

    def __init__(self, signum: int, step: int, workdir: pathlib.Path) -> None:
        self.exit_code = 128 + signum
        super().__init__(
            f"{signal.Signals(signum).name}: saved step {step} in {workdir}; the same command "
            "goes on from there"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What one call of `fit` trains, and on what."""

    name: str  # for the progress bar
    workdir: pathlib.Path
    plan: Plan  # every batch of the run
    data: Bucketed
    ref_logps: np.ndarray | None  # [N, K] nats, when cached
    ref_params: Params | None  # when scored in every step
    params_shape: Params  # shapes and dtypes of the parameters
    apply: Apply
    loss: Loss | RewardLoss
    select: Select | None
    baseline: Baseline | None
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    accumulate: int
    mesh: Mesh
    identity: dict[str, Any]  # what a checkpoint must have been made of to be continued
    save_every: int
    log_every: int
    eval_every: int
    keep: int
    max_skipped: int
    forward: Forward = score  # a policy's; `step.reward_scores`: a reward model's


def fit(
    job: Job,
    load_start: Callable[[], Params],
    key: Array,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains to the end of the plan, from the newest checkpoint if there is one.

    Args:
      job: what to train.
      load_start: gives the parameters to start from, on the mesh, as buffers of its own; called
        only when there is no checkpoint.
      key: root PRNG key of the draws.
      evaluate: called every ``eval_every`` steps and after the last one, if that is not 0; its
        numbers are logged under ``eval_`` names.

    Returns:
      The final state, and counts: steps, steps skipped, compiles, the step resumed from, and the
      seconds that the steps took. Those are the time the host spent on starting steps and waiting
      for their numbers, over all starts of the run; compiling, reading rows, saving and evaluating
      are left out.

    Raises:
      StoppedError: SIGINT or SIGTERM came; the state is saved.
      NumericalError: too many steps in a row were not finite.
      CheckpointError: a checkpoint cannot be read or written.
    """

    def start(params: Params) -> TrainState:
        return init_state(params, job.optimizer, key)

    total = len(job.plan)
    shapes = jax.eval_shape(start, job.params_shape)
    sharding = shard_tree(shapes, job.mesh)
    compiles = 0

    def one_step(
        state: TrainState, ref_params: Params | None, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        nonlocal compiles
        compiles += 1  # runs while tracing only: once per batch shape
        return train_step(
            state,
            ref_params,
            batch,
            apply=job.apply,
            optimizer=job.optimizer,
            loss=job.loss,
            forward=job.forward,
            select=job.select,
            baseline=job.baseline,
            accumulate=job.accumulate,
        )

    step_fn = jax.jit(one_step, donate_argnums=0, out_shardings=(sharding, None))
    meter = metrics.Meter(max_skipped=job.max_skipped)
    with checkpoint.open_store(job.workdir / "checkpoints", keep=job.keep) as store:
        begin = checkpoint.latest(store)
        if begin is None:
            state = jax.jit(start, out_shardings=sharding, donate_argnums=0)(load_start())
            begin, stepped = 0, 0.0
        else:
            record = checkpoint.read_record(store, begin)
            checkpoint.refuse_other(store, begin, record["identity"], job.identity)
            if begin > total:
                raise UserError(
                    f"{job.workdir}: its checkpoint is of step {begin}, the {job.name} now has "
                    f"{total} steps: use another --workdir, or more steps"
                )
            state = checkpoint.restore(store, begin, abstract(shapes, sharding))
            meter.restore(record["meter"])
            stepped = float(record.get("seconds", 0.0))  # 0: from before they were counted
            if begin == total:
                log.info("%s: complete at step %d, nothing to do", job.name, total)
            else:
                log.info("%s: resuming from step %d of %d", job.name, begin, total)

        def save(step: int) -> None:
            fault_point("logged", f"{job.name}-{step}")
            record = {"identity": job.identity, "next_batch": step, "meter": meter.state()}
            record["seconds"] = stepped
            checkpoint.save(store, step, state, record)
            fault_point("saving", f"{job.name}-{step}")

        def report(step: int) -> None:
            values = meter.averages()
            values["data_wait_seconds"] = waited
            values["learning_rate"] = float(job.learning_rate(step - 1))
            values["epoch"] = rows_done[step - 1] / len(job.data.dataset)
            writer.write(step, values)

        rows_done = np.cumsum((job.plan.rows >= 0).sum(axis=1))
        waited = 0.0  # seconds that the host waited for rows since the last line
        batches = read(job.data.dataset, job.plan, start=begin, ref_logps=job.ref_logps)
        late: dict[str, Array] | None = None
        with (
            _signals() as caught,
            contextlib.closing(metrics.Writer(job.workdir, after_step=begin)) as writer,
            metrics.progress(job.name, total, done=begin) as advance,
        ):
            for step in range(begin + 1, total + 1):
                since = time.perf_counter()
                host = next(batches)
                waited += time.perf_counter() - since
                batch = put_rows(host, job.mesh)
                compiled, since = compiles, time.perf_counter()
                state, scalars = step_fn(state, job.ref_params, batch)
                if compiles > compiled:  # the step itself goes on, and is waited for below
                    since = time.perf_counter()
                fault_point("step", f"{job.name}-{step}")
                if late is not None:
                    meter.add(step - 1, late)
                stepped += time.perf_counter() - since
                late = scalars
                stopping = bool(caught)  # looked at once: a signal may come at any line
                at_end, logs = step == total, step % job.log_every == 0
                evaluates = job.eval_every and (at_end or step % job.eval_every == 0)
                saves = at_end or stopping or step % job.save_every == 0
                if logs or at_end or evaluates or saves:  # these look at this very step
                    since = time.perf_counter()
                    values = meter.add(step, late)
                    stepped += time.perf_counter() - since
                    late = None
                    advance(0, loss=values["loss"])
                    if logs or at_end:
                        report(step)
                        waited = 0.0
                if evaluate is not None and evaluates:
                    found = evaluate(state.params)
                    writer.write(step, {f"eval_{k}": v for k, v in found.items()})
                    fault_point("evaluated", f"{job.name}-{step}")
                if saves:
                    save(step)
                advance(1)
                if stopping:
                    break
            if caught:  # at the end of the plan too: another stage would follow
                store.wait()
                raise StoppedError(caught[0], int(state.step), job.workdir)
    counts = {
        "steps": total,
        "resumed_from": begin,
        "skipped_steps": int(state.skipped),
        "compiles": compiles,
        "seconds": stepped,
    }
    return state, counts


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; the loop looks between steps."""
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        del frame
        if not caught:
            log.warning("%s: stopping after this step", signal.Signals(signum).name)
        caught.append(signum)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
