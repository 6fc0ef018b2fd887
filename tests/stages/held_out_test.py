"""The loss of held-out rows, and how often a run measures it."""

import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.data import store
from alignjax.data.batching import bucket
from alignjax.data.encode import Row
from alignjax.data.records import Record
from alignjax.evaluation.statistics import Interval
from alignjax.losses import dpo, ld_dpo, wpo
from alignjax.stages import evaluation, held_out
from alignjax.stages.run import Run
from alignjax.types import Logps, RunSchedule, take_responses
from tests import runs


def rows(k, **fields):
    """Three rows of k responses of different lengths."""
    made = []
    for i in range(3):
        texts = tuple(f"{i}{j}" for j in range(k))
        record = Record(id=str(i), prompt=f"p{i}", responses=texts, **fields)
        ids = [np.arange(1 + i + j, dtype=np.int32) for j in range(k)]
        made.append(Row(record, record.prompt, np.arange(2, dtype=np.int32), ids))
    return bucket(store.in_memory(made), count=1, multiple=8)


def run_of(data, **changes):
    config = runs.get_config(**changes)
    return Run(config, None, types.SimpleNamespace(held_out=data), None)


def nats(k, seed=0):
    drawn = np.random.default_rng(seed).normal(-5, 1, (2, 3, k)).astype(np.float32)
    return drawn[0], drawn[1]


def test_it_is_the_loss_that_is_trained_with_schedules_at_their_end():
    data, (policy, reference) = rows(2), nats(2)
    rising = RunSchedule(lambda steps: lambda step: 0.2 * step / steps)
    run = run_of(data, loss=partial(dpo.loss, beta=rising))
    found = held_out.losses(run, policy, reference, steps=8)
    length = jnp.asarray(data.dataset.response_length)
    logps = Logps(policy=jnp.asarray(policy), reference=jnp.asarray(reference), length=length)
    assert found == pytest.approx(np.asarray(dpo.loss(logps, None, beta=0.2)[0]))


def test_draws_are_the_same_for_policy_and_reference():
    """A policy that is the reference has DPO's log 2, whichever response is drawn."""
    data, (policy, _) = rows(4), nats(4)
    swap = lambda key, batch: dataclasses.replace(batch, ref_logps=None)  # noqa: E731
    run = run_of(data, select=pick, loss=partial(dpo.loss, beta=0.1))
    assert held_out.losses(run, policy, policy, steps=8) == pytest.approx(np.log(2))
    assert held_out.losses(run_of(data, select=swap), policy, policy, steps=8) is None


@pytest.mark.parametrize("loss", [ld_dpo.loss, partial(wpo.weighted, loss=dpo.loss)])
def test_there_is_none_of_a_loss_that_reads_more_than_the_tables_hold(loss):
    policy, reference = nats(2)
    assert held_out.losses(run_of(rows(2), loss=loss), policy, reference, steps=8) is None


def pick(key, batch):
    two = jax.random.randint(key, (len(batch.weight), 2), 0, 4)
    return take_responses(batch, two)


@pytest.mark.parametrize(
    ("held", "size", "steps", "every"),
    [(100, 32, 1000, 100), (1000, 8, 40, 0), (96, 8, 40, 40), (6, 4, 6, 6), (570, 32, 287, 72)],
)
def test_evaluations_cost_a_tenth_of_the_training_at_most(held, size, steps, every):
    run = run_of(types.SimpleNamespace(dataset=range(held)))
    paced = evaluation.paced(run, size * steps, steps).config
    assert (paced.train.eval_every, paced.evaluate.during) == (every, 0)
    count = -(-steps // every) if every else 0
    assert count * held / 3 <= 0.1 * size * steps
    asked = dataclasses.replace(run.config.train, eval_every=3)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, train=asked))
    assert evaluation.paced(run, 1, 1) is run


def test_what_was_scored_last_is_known_by_its_very_parameters():
    table, params = np.ones((3, 2)), {"a": np.zeros(4), "b": np.zeros(2)}
    last = held_out.LastScored()
    assert last.of(params) is None
    assert last.keep(params, table) is table
    assert last.of({**params, "a": np.ones(4)}) is table  # the smallest array is the sign of all
    assert last.of({**params, "b": np.zeros(2)}) is None
    last.keep({"b": np.zeros(2)}, table + 1)
    assert last.of(params) is None


def test_a_run_that_measured_nothing_says_so_and_prints_no_table(capsys):
    evaluation._print_result({}, "runs/x: 2 steps")
    assert capsys.readouterr().out == (
        "runs/x: 2 steps; nothing was measured (evaluate.held_out=False, evaluate.prompts=0)\n"
    )
    evaluation._print_result({"loss": (None, Interval(0.5, 0.1, 3))}, "runs/x: 2 steps")
    assert "│ loss     │      - │ 0.500 ± 0.100 │" in capsys.readouterr().out
