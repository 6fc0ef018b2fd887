"""The loop: what it resumes, saves, counts and refuses. In one process; see also resume_test."""

import dataclasses
import errno
import functools
import gc
import json
import math
import os
import pathlib
import shutil
import signal
import types
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from alignjax.config import TrainConfig
from alignjax.data.batching import Batches, Bucketed, choose_shapes, deal_batches, shuffled
from alignjax.errors import CheckpointError, NumericalError, UserError
from alignjax.runtime import checkpoint, metrics, sharding, stores
from alignjax.runtime.loggers import bars
from alignjax.runtime.metrics import Meter
from alignjax.training import loop, offline, progress
from alignjax.training.job import Feed, Job, Learner
from alignjax.training.step import Update, init_state
from alignjax.types import Batch, Schedule, TrainState
from tests import runs

N, B, WIDTH = 44, 8, 4
TOTAL = 12  # steps
SHAPE = {"w": jax.ShapeDtypeStruct((2, WIDTH), jnp.float32)}
IDENTITY = {"data": "d", "tokenizer": "t", "reference": "r"}


@dataclasses.dataclass(frozen=True)
class Rows:
    """Pairs of one-token responses: all that the loop needs of a prepared dataset."""

    prompt_length: np.ndarray
    response_length: np.ndarray
    adversarial: None = None
    objectives: tuple[str, ...] = ()
    labels: tuple[int, int] = (0, 0)

    def __len__(self):
        return len(self.prompt_length)

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        ids = tuple(rng.integers(0, WIDTH, n).astype(np.int32) for n in self.response_length[i])
        prompt = rng.integers(0, WIDTH, self.prompt_length[i]).astype(np.int32)
        return Example(prompt, ids)


@dataclasses.dataclass(frozen=True)
class Example:
    prompt_ids: np.ndarray
    response_ids: tuple
    scores: None = None
    desirable: None = None


def rows(count: int = 2) -> Bucketed:
    rng = np.random.default_rng(0)
    data = Rows(rng.integers(1, 9, N).astype(np.int32), rng.integers(1, 9, (N, 2)).astype(np.int32))
    shapes, assignment = choose_shapes(
        data.prompt_length, data.response_length, count=count, multiple=4
    )
    return Bucketed(data, shapes, assignment)


def apply(params, batch):
    """A bag of tokens: the log-probability of a response is the sum of its tokens' logits."""
    position = jnp.arange(batch.response.shape[-1])
    here = position < batch.response_length[..., None]
    logits = jax.nn.log_softmax(params["w"].sum(0))[batch.response]
    return jnp.where(here, logits, 0).sum(-1)


def level(logps, batch):
    """A baseline: how likely the first response is."""
    return logps.policy[:, 0]


def loss(logps, batch):
    margin = logps.policy[:, 0] - logps.policy[:, 1]
    margin -= 0.1 * batch.baseline + 0.2 * batch.running_baseline
    return -jax.nn.log_sigmoid(margin), {"rewards/margins": margin}


def draw(key, batch):
    """Swaps the responses of some rows, at random."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch.prompt_id)
    swap = jax.vmap(jax.random.bernoulli)(keys)
    return dataclasses.replace(
        batch,
        response=jnp.where(swap[:, None, None], batch.response[:, ::-1], batch.response),
        response_length=jnp.where(
            swap[:, None], batch.response_length[:, ::-1], batch.response_length
        ),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(Feed):
    """A feed whose batches are seen on their way: ``see(i, batch)`` of the i-th one read."""

    see: Callable[[int, Batch], None] = lambda i, batch: None

    def read(self, start, mesh):
        for i, batch in enumerate(super().read(start, mesh)):
            self.see(i, batch)
            yield batch


def make_feed(*, epochs: float = 2.0, count: int = 2, see=lambda i, batch: None) -> Feed:
    data = rows(count)
    order = shuffled(N, 0)
    batches = deal_batches(
        data.shapes, data.assignment, batch_size=B, order=order, rows=round(epochs * N)
    )
    return Watched(data.dataset, batches, see=see)


def job(
    workdir,
    *,
    mesh=None,
    identity=IDENTITY,
    feed=None,
    params_shape=SHAPE,
    loss=loss,
    extendable=True,
    **train,
) -> tuple[Job, Learner, Feed]:
    """What `offline.fit` is given for `TOTAL` steps; ``train`` are fields of a `TrainConfig`."""
    schedule = optax.linear_schedule(0.1, 0.0, 12)
    times = dict(save_every=4, log_every=3, keep=3, max_skipped=3, stuck_after=0.0)
    return (
        Job(
            name="alignment",
            workdir=workdir,
            mesh=mesh or sharding.make_mesh(1, 1, 1),
            identity=identity,
            train=TrainConfig(**{**times, **train}),
            extendable=extendable,
        ),
        Learner(
            update=Update(
                apply=apply,
                loss=loss,
                optimizer=optax.adam(schedule),
                select=draw,
                baseline=level,
            ),
            learning_rate=schedule,
            params_shape=params_shape,
            load_start=begin,
        ),
        feed or make_feed(),
    )


def begin():
    return {"w": jnp.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)}


def fit(settings, evaluate=None):
    return offline.fit(*settings, jax.random.key(7), evaluate)


class StopHereError(Exception):
    """The end of the process, as far as the loop is concerned."""


def stop_after(step):
    """For `make_feed`: ends the run where step + 1 would be taken."""

    def see(i, batch):
        if i == step:
            raise StopHereError

    return see


def run_until(step, workdir, **changes):
    """A run that ends after so many steps."""
    with pytest.raises(StopHereError):
        fit(job(workdir, feed=make_feed(see=stop_after(step)), **changes))


class Clean(NamedTuple):
    state: TrainState
    counts: dict
    lines: list
    seen: list  # prompt ids of every step
    workdir: pathlib.Path


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The run that never stopped: its state, counts, lines and the rows of every step."""
    workdir = tmp_path_factory.mktemp("clean")
    seen = []
    feed = make_feed(see=lambda i, batch: seen.append(batch.prompt_id))
    state, counts = fit(job(workdir, feed=feed))
    return Clean(state, counts, runs.lines(workdir), seen, workdir)


@pytest.fixture
def done(clean, tmp_path):
    """The folder of a complete run, to change."""
    return shutil.copytree(clean.workdir, tmp_path / "done")


@pytest.fixture(scope="module")
def fifth(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fifth")
    run_until(5, workdir)
    return workdir


@pytest.fixture
def stopped(fifth, tmp_path):
    """The folder of a run that ended after step 5, one after its checkpoint."""
    return shutil.copytree(fifth, tmp_path / "stopped")


def same_bits(a, b):
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    assert checkpoint.tree_digest(bare(a)) == checkpoint.tree_digest(bare(b))


def bare(state):
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def test_the_run_covers_what_resuming_has_to_get_right(clean):
    state, counts, lines, *_ = clean
    assert counts["steps"] == len(make_feed().batches) == int(state.step) == TOTAL
    assert counts["skipped_steps"] == 0
    assert abs(float(state.baseline)) > 0.1  # what the loss reads of the steps before
    assert counts["resumed_from"] == 0
    assert len(make_feed().batches.shapes) == 2
    assert (make_feed().batches.rows == -1).any()  # batches that are filled up
    assert [float.fromhex(line["step"]) for line in lines][:5] == [1, 3, 6, 9, 12]


def test_slow_steps_say_one_line_each(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bars, "EVERY", 0.0)  # every step is slow
    with caplog.at_level("INFO", logger="alignjax"):
        fit(job(tmp_path, log_every=2))
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("alignment ")]
    counts = [int(line.split()[1].partition("/")[0]) for line in said]
    assert counts == list(range(1, TOTAL + 1))
    assert "loss" in said[1]
    assert "loss" not in said[2]


def test_it_compiles_once_for_every_shape(clean, tmp_path):
    assert clean.counts["compiles"] == 2
    assert fit(job(tmp_path, feed=make_feed(count=1)))[1]["compiles"] == 1


def test_the_compiler_agrees_with_the_count(tmp_path, caplog):
    """A program is traced once and compiled once: what comes back from a step fits the next."""
    with jax.log_compiles():
        counts = fit(job(tmp_path))[1]
        fit(job(tmp_path, save_every=5))  # complete
    compiled = [r for r in caplog.records if "Compiling jit(one_step)" in r.getMessage()]
    assert len(compiled) == counts["compiles"] == 2


def test_resuming_compiles_no_more(stopped, caplog):
    with jax.log_compiles():
        assert fit(job(stopped))[1]["compiles"] == 2
    compiled = [r for r in caplog.records if "Compiling jit(one_step)" in r.getMessage()]
    assert len(compiled) == 2


def test_a_compile_more_is_counted(tmp_path):
    # What would compile in every step: a batch whose shape is its longest row's.
    given = make_feed()
    plan = given.batches
    shapes = tuple(dataclasses.replace(plan.shapes[i], prompt=12 + j) for j, i in enumerate([0, 1]))
    odd = Batches((*plan.shapes, *shapes), (plan.shape + 2 * (np.arange(len(plan)) % 2)), plan.rows)
    assert fit(job(tmp_path, feed=Feed(given.dataset, odd)))[1]["compiles"] == 4


def test_every_row_is_used_once_in_every_epoch(clean):
    plan = make_feed().batches
    ids = np.concatenate(clean.seen)
    weights = (plan.rows >= 0).reshape(-1)
    assert np.bincount(ids[weights], minlength=N).tolist() == [2] * N


@pytest.mark.parametrize("stop", range(1, TOTAL))
def test_resuming_after_any_step_gives_the_same_bits(stop, clean, tmp_path):
    state, _, lines, seen, _ = clean
    run_until(stop, tmp_path)
    again = []
    feed = make_feed(see=lambda i, batch: again.append(batch.prompt_id))
    resumed, found = fit(job(tmp_path, feed=feed))
    assert found["resumed_from"] == stop // 4 * 4
    same_bits(resumed, state)
    assert runs.lines(tmp_path) == lines
    assert [ids.tolist() for ids in again] == [s.tolist() for s in seen[stop // 4 * 4 :]]


def test_the_time_of_steps_adds_up_over_starts_without_what_is_no_step(tmp_path, monkeypatch):
    """A clock that a step moves by 1, a row's wait by 10 and an evaluation by 100 seconds."""
    now = [0.0]
    names = ("perf_counter", "time", "monotonic")
    clock = types.SimpleNamespace(**{name: lambda: now[0] for name in names})
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(metrics, "time", clock)
    real_add = Meter.add

    def wait(i, batch):
        now[0] += 10.0

    def wait_and_stop(i, batch):
        wait(i, batch)
        stop_after(5)(i, batch)

    def add(self, *a):
        now[0] += 1.0
        return real_add(self, *a)

    def evaluate(params):
        now[0] += 100.0
        return {"x": 0.0}

    monkeypatch.setattr(Meter, "add", add)
    first, rest = (
        job(tmp_path, feed=make_feed(count=1, see=see), eval_every=5)
        for see in (wait_and_stop, wait)
    )
    with pytest.raises(StopHereError):
        fit(first, evaluate)
    fit(rest, evaluate)  # from step 4 on
    lines = metrics.read(tmp_path / "metrics.jsonl")
    found = {x["step"]: x["train_seconds"] for x in lines if "train_seconds" in x}
    # One shape: a start compiles in its first step, whose numbers are looked at in the second.
    assert found == {1: 1.0, 3: 3.0, 6: 6.0, 9: 9.0, 11: 11.0}
    assert {x["step_seconds"] for x in lines if "step_seconds" in x} == {1.0}


def test_a_line_that_spans_a_stop_needs_the_sums_before_it(clean, stopped, monkeypatch):
    # The control of the test above: steps 4 and 5 of the line at step 6 lie on both sides.
    monkeypatch.setattr(Meter, "restore", lambda self, state, seconds: None)
    fit(job(stopped))
    assert runs.lines(stopped) != clean.lines


def test_a_stop_at_the_wrong_batch_would_show(clean, stopped):
    # The control of the data position: read from one batch earlier.

    class EarlierFeed(Watched):
        def read(self, start, mesh):
            return super().read(start - 1, mesh)

    feed = make_feed()
    resumed, _ = fit(job(stopped, feed=EarlierFeed(feed.dataset, feed.batches)))
    assert checkpoint.tree_digest(bare(resumed)) != checkpoint.tree_digest(bare(clean.state))


SCORES = {2: 0.5, 4: 0.9, 6: math.nan, 8: 0.9, 10: 0.7, 11: 0.6}  # of the evaluations, by step


def scored(name, seen):
    """An evaluation whose values are `SCORES`, in turn; ``seen`` gets the parameters by value."""
    steps = iter(SCORES)

    def evaluate(params):
        value = SCORES[next(steps)]
        seen.append((value, np.asarray(params["w"])))
        return {name: value}

    return evaluate


def best_of(workdir):
    """The steps in ``best/``, and the parameters of the last one."""
    with stores.open_store(workdir / progress.BEST, keep=1) as store:
        steps = stores.list_steps(store)
        target = sharding.abstract(SHAPE, sharding.shard_tree(SHAPE, sharding.make_mesh(1, 1, 1)))
        return steps, checkpoint.restore_params(store, steps[-1], target)["w"]


@pytest.mark.parametrize(("name", "step"), [("rewards/accuracies", 4), ("loss", 2)])
def test_the_best_evaluation_is_kept_the_first_of_equals(name, step, tmp_path):
    seen = []
    fit(job(tmp_path, eval_every=2, keep_best=f"eval/{name}"), scored(name, seen))
    steps, params = best_of(tmp_path)
    assert steps == [step]
    assert np.array_equal(params, seen[step // 2 - 1][1])


def test_a_best_evaluation_after_the_step_that_a_run_goes_on_from_is_found_again(tmp_path):
    # Stopped before step 7: the checkpoint is of step 4, the best evaluation so far of step 6.
    values, seen = iter([0.1, 0.2, 0.3, 0.1, 0.25, 0.2, 0.1]), []

    def evaluate(params):
        seen.append(np.asarray(params["w"]))
        return {"x": next(values)}

    with pytest.raises(StopHereError):
        fit(job(tmp_path, feed=make_feed(see=stop_after(7)), eval_every=2, keep_best="x"), evaluate)
    assert best_of(tmp_path)[0] == [6]
    fit(job(tmp_path, eval_every=2, keep_best="x"), evaluate)
    steps, params = best_of(tmp_path)
    assert steps == [8]  # 0.25: what step 6 had before the stop counts no more
    assert np.array_equal(params, seen[4])


def test_a_run_does_not_go_on_from_a_best_evaluation_that_is_damaged(tmp_path):
    values = iter([0.3, 0.2, 0.1])

    def evaluate(params):
        return {"x": next(values)}

    with pytest.raises(StopHereError):
        fit(job(tmp_path, feed=make_feed(see=stop_after(7)), eval_every=2, keep_best="x"), evaluate)
    kept = tmp_path / progress.BEST / "2" / "record"
    file = max((p for p in kept.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=f"best/checkpoints: step 2 is damaged: .*{file.name}"
    ):
        fit(job(tmp_path, eval_every=2, keep_best="x"), evaluate)


def test_how_often_it_saves_and_evaluates_changes_nothing_trained(clean, tmp_path):
    calls = []

    def evaluate(params):
        calls.append(float(params["w"].sum()))
        return {"rewards/accuracies": 0.5}

    state, _ = fit(job(tmp_path, save_every=1, eval_every=5), evaluate)
    same_bits(state, clean.state)
    found = runs.lines(tmp_path)
    assert [x for x in found if "loss" in x] == clean.lines
    evals = [x for x in found if "eval_rewards/accuracies" in x]
    total = int(state.step)
    assert total % 5
    assert [float.fromhex(x["step"]) for x in evals] == [*range(5, total, 5), total]
    assert len(calls) == len(evals)


def test_a_complete_run_is_left_as_it_is(clean, done):
    before = (done / "metrics.jsonl").read_bytes()
    state, counts = fit(job(done))
    same_bits(state, clean.state)
    assert counts["compiles"] == 0
    assert counts["resumed_from"] == counts["steps"]
    assert (done / "metrics.jsonl").read_bytes() == before


def test_a_longer_checkpoint_than_the_run_is_refused(done):
    with pytest.raises(UserError, match=r"wanted a checkpoint of at most step \d+, .* found step"):
        fit(job(done, feed=make_feed(epochs=1.0)))


@pytest.mark.parametrize("name", list(IDENTITY))
def test_another_runs_checkpoint_is_refused(name, done, monkeypatch):
    other = job(done, identity={**IDENTITY, name: "other"})
    wanted = rf"belongs to another run: {name} '.' \(this run: 'other'\)"
    with pytest.raises(UserError, match=wanted) as caught:
        fit(other)
    assert caught.value.exit_code == 2
    monkeypatch.setattr(checkpoint, "refuse_other", lambda *a: None)
    assert fit(other)[1]["compiles"] == 0  # without the guard it is taken for its own


# --- signals


def signalled(workdir, signum, at, *, times=1):
    """Sends this process a signal before step ``at``."""

    def see(i, batch):
        if i + 1 == at:
            for _ in range(times):
                os.kill(os.getpid(), signum)

    return fit(job(workdir, feed=make_feed(see=see)))


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(signum, code, times, clean, tmp_path):
    with pytest.raises(loop.StoppedError, match=rf"{signum.name}: saved step 6 in ") as caught:
        signalled(tmp_path, signum, 6, times=times)
    assert caught.value.exit_code == code
    resumed, counts = fit(job(tmp_path))
    assert counts["resumed_from"] == 6
    same_bits(resumed, clean.state)
    assert runs.lines(tmp_path) == clean.lines


@pytest.mark.parametrize("fails", ["digests.seal", "ocp.save_checkpointables_async"])
def test_a_full_disk_after_a_signal_ends_in_6(fails, tmp_path, monkeypatch):
    """While the arrays are written, and before; without a signal it is 3."""
    owner, name = getattr(checkpoint, fails.split(".")[0]), fails.split(".")[1]
    write = getattr(owner, name)

    def full(path, *rest):
        if path.name == "6.writing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *rest)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        signalled(tmp_path, signal.SIGTERM, 6)
    assert caught.value.exit_code == 6
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        fit(job(tmp_path, save_every=6))
    assert caught.value.exit_code == 3
    assert os.listdir(tmp_path / "checkpoints").count("4") == 1  # it goes on from there


def test_a_signal_in_the_last_step_stops_too(clean, tmp_path):
    total = clean.counts["steps"]
    with pytest.raises(loop.StoppedError, match=rf"saved step {total} in"):
        signalled(tmp_path, signal.SIGTERM, total)
    assert fit(job(tmp_path))[1]["resumed_from"] == total


def test_handlers_are_those_of_before(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(job(tmp_path, feed=make_feed(epochs=0.5)))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# --- numbers that are none


def nan_at(first, last, logps, batch, *, step):
    losses, metrics = loss(logps, batch)
    return jnp.where((step >= first) & (step < last), jnp.nan, losses), metrics


def broken(first, last):
    """A loss that is NaN in some steps; its one hyperparameter is a schedule of the step."""

    def with_step(logps, batch, *, step):
        return nan_at(first, last, logps, batch, step=step)

    return functools.partial(with_step, step=Schedule(lambda step: step))


def test_skipped_steps_are_counted_and_training_goes_on(tmp_path):
    state, counts = fit(job(tmp_path, loss=broken(4, 6), log_every=1))
    assert counts["skipped_steps"] == 2
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if x["skipped"]] == [5, 6]
    assert ["loss" in x for x in lines if x["skipped"]] == [False, False]
    assert np.isfinite(state.params["w"]).all()


def test_too_many_bad_steps_end_the_run_with_the_last_good_parameters(tmp_path):
    broken_job = job(tmp_path, loss=broken(5, 99))
    with pytest.raises(NumericalError, match=r"3 steps in a row \(6 to 8; loss nan") as caught:
        fit(broken_job)
    assert caught.value.exit_code == 4
    stored = stored_state(tmp_path)
    assert int(stored.step) == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((stored.params, stored.opt_state)))
    good, _ = fit(job(tmp_path / "good"))
    assert stored_equal(stored, stored_state(tmp_path / "good", step=4))
    assert good is not None


def test_a_training_of_bad_steps_alone_is_no_success(tmp_path):
    """Fewer than may be skipped in a row, and not one step was taken: again when started again."""
    for _ in range(2):
        short = job(tmp_path, loss=broken(0, 99), log_every=1, max_skipped=99)
        with pytest.raises(NumericalError, match=rf"in each of its {TOTAL} steps") as caught:
            fit(short)
        assert caught.value.exit_code == 4


def test_bad_steps_before_a_stop_count_after_it(tmp_path):
    # Steps 3 to 5 are bad, the checkpoint of step 4 lies between: two before it, one after.
    run_until(4, tmp_path, loss=broken(2, 99))
    with pytest.raises(NumericalError, match=r"3 steps in a row \(3 to 5"):
        fit(job(tmp_path, loss=broken(2, 99)))


def stored_state(workdir, step=None):
    its, learner, _ = job(workdir)
    shapes = jax.eval_shape(
        lambda p: init_state(p, learner.update.optimizer, jax.random.key(0)), SHAPE
    )
    target = sharding.abstract(shapes, sharding.shard_tree(shapes, its.mesh))
    with stores.open_store(workdir / "checkpoints", keep=3) as store:
        return checkpoint.restore(store, step or stores.latest(store), target)


def stored_equal(a, b):
    return checkpoint.tree_digest(bare(a)) == checkpoint.tree_digest(bare(b))


def test_a_metric_of_the_steps_own_name_would_replace_its_number(tmp_path):
    """Why such names are refused before a run (see `stages.check`)."""

    def heavy(logps, batch):
        return loss(logps, batch)[0], {"weight": jnp.full(batch.weight.shape, 1000.0)}

    fit(job(tmp_path, loss=heavy, feed=make_feed(epochs=0.5)))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["weight"] == 1000  # not the rows of the batch


# --- checkpoints that are damaged or half


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_one_line_with_exit_code_3(done):
    newest = max((done / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    for path in newest.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(CheckpointError, match=rf"{newest.parent}: step {newest.name} ") as caught:
        fit(job(done))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_shapes_than_the_checkpoints_are_refused(done):
    wider = job(done, params_shape={"w": jax.ShapeDtypeStruct((3, WIDTH), jnp.float32)})
    with pytest.raises(CheckpointError, match=r"cannot be restored") as caught:
        fit(wider)
    assert "\n" not in str(caught.value)
    gc.collect()  # what the library had begun to read, and its warnings about that


def test_a_half_written_save_is_not_seen(clean, tmp_path):
    run_until(9, tmp_path)
    folder = tmp_path / "checkpoints"
    done = folder / "8"
    # What a killed save leaves: the name before the rename, and no mark of success.
    half = folder / "9.orbax-checkpoint-tmp"
    done.rename(half)
    for mark in half.rglob("commit_success.txt"):
        mark.unlink()
    resumed, counts = fit(job(tmp_path))
    assert counts["resumed_from"] == 4
    same_bits(resumed, clean.state)
    assert not list(folder.glob("*tmp*"))


def test_only_the_newest_are_kept(tmp_path):
    total = fit(job(tmp_path, save_every=1, keep=2))[1]["steps"]
    names = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert names == [total - 1, total]


# --- what is left at the end


def arrays(workdir):
    """The arrays of each step's checkpoint, by their paths."""
    with stores.open_store(workdir / "checkpoints", keep=9) as store:
        paths = {step: store.directory / str(step) for step in stores.list_steps(store)}
        saved = {step: ocp.checkpointables_metadata(path) for step, path in paths.items()}
        trees = {step: x.metadata["state"] for step, x in saved.items()}
    leaves = {step: jax.tree_util.tree_leaves_with_path(tree) for step, tree in trees.items()}
    return {step: [sharding.path_name(path) for path, _ in own] for step, own in leaves.items()}


def test_a_stage_that_others_build_on_ends_without_optimizer_state(clean, done, tmp_path):
    """However it ended, even killed while the checkpoints before are to go."""
    assert {"params/w", "opt_state/0/mu/w"} < set(arrays(done)[TOTAL])
    runs.end_at(f"saving:alignment-{TOTAL}", lambda: fit(job(tmp_path, extendable=False)))
    assert len(arrays(tmp_path)) > 1
    before = (tmp_path / "metrics.jsonl").read_bytes()
    state, counts = fit(job(tmp_path, extendable=False))
    left = arrays(tmp_path)
    assert left.keys() == {TOTAL}
    assert "params/w" in left[TOTAL]
    assert not [name for name in left[TOTAL] if name.startswith("opt_state")]
    assert (counts["resumed_from"], counts["compiles"]) == (TOTAL, 0)
    assert checkpoint.tree_digest(state.params) == checkpoint.tree_digest(clean.state.params)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert runs.lines(tmp_path) == clean.lines


def test_more_steps_go_on_from_a_run_s_end_and_begin_a_stage_again(done, tmp_path):
    longer = make_feed(epochs=3.0)
    state, counts = fit(job(done, feed=longer))
    assert counts["resumed_from"] == TOTAL < int(state.step) == counts["steps"]
    fit(job(tmp_path, extendable=False, save_every=5))
    again, counts = fit(job(tmp_path, extendable=False, feed=longer))
    assert counts["resumed_from"] == 0
    whole, _ = fit(job(tmp_path / "whole", feed=longer))
    assert checkpoint.tree_digest(again.params) == checkpoint.tree_digest(whole.params)
    assert arrays(tmp_path).keys() == {counts["steps"]}


def test_without_its_state_a_stage_is_made_again_and_another_s_is_refused(clean, tmp_path):
    for _ in range(2):  # the second time nothing is left to drop
        fit(job(tmp_path, extendable=False))
        stores.drop_state(tmp_path / "checkpoints")
        with pytest.raises(UserError, match="belongs to another run: data"):
            fit(job(tmp_path, extendable=False, identity={**IDENTITY, "data": "other"}))
        stores.drop_state(tmp_path / "checkpoints")
    state, counts = fit(job(tmp_path))
    assert counts["resumed_from"] == 0
    same_bits(state, clean.state)
