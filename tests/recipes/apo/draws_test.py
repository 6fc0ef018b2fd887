"""Rows of a round count every draw: what the players learn, summed exactly over all draws.

A world of three responses, as in tests/claims/apo_test.py, but its draws go the way of a round's
samples: lists in a file, records, encoded rows, batches, losses.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.data.batching import assemble
from alignjax.data.records import Record
from alignjax.losses import apo, bradley_terry
from alignjax.recipes.apo import policy_turn, reward_turn, setup
from alignjax.runtime.sharding import make_mesh
from alignjax.sampling.generate import Sample
from alignjax.stages import sample_lists
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run
from alignjax.testing import loss_inputs
from alignjax.types import Logps
from tests.recipes.apo.rounds_test import config

TEXTS = (" Yes.", " No.", " Perhaps.")
GOLD = np.array([0.6, 0.3, 0.1])
THETA = np.array([0.2, 0.3, 0.5])
K = 2


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    """A game, to replace its prompts by one for each outcome of the draws."""
    workdir = tmp_path_factory.mktemp("draws")
    settings = config("data.source.size=20", game=dict(golden=None, max_drop_fraction=0.5))
    run = Run(settings, workdir, prepare_data(settings, workdir), make_mesh(1, 1, 1))
    return setup.set_up(run, settings.recipe.keywords["game"])


def listed(game, name, draws, own, score):
    """A game with a prompt for each of these draws, and the file of their lists."""
    originals = [
        Record(id=f"{name}-{i}", prompt=f"{i}", responses=("x",)) for i in range(len(draws))
    ]
    game = dataclasses.replace(game, **{name: setup.Prompts((), originals)})
    samples = [
        [Sample(r.prompt, TEXTS[y], 1, True, 0.0, 0.0, 0.0) for y in ys]
        for r, ys in zip(originals, draws, strict=True)
    ]
    records, _ = sample_lists.collect(setup.make_side(game, 1, name, own), samples)
    lines = [
        sample_lists.line(r, x.tolist()) for r, x in zip(records, score(records, {}), strict=True)
    ]
    file = game.workdir / f"{name}.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    return game, file


def opened(game, rows):
    """All rows in a batch, which of TEXTS each response is, and which draws each row is of."""
    data = rows.dataset
    batch = assemble(data, np.arange(len(data)), rows.shapes[0])
    known = [x.tobytes() for x in game.data.tokenizer.encode("0", TEXTS).response_ids]
    which = np.zeros(batch.response_length.shape, int)
    for b, k in np.argwhere(batch.present):
        which[b, k] = known.index(batch.response[b, k, : batch.response_length[b, k]].tobytes())
    return batch, which, [int(data[i].id.rpartition("-")[2]) for i in range(len(data))]


def adversarial_gradient(game, **changes):
    """Of the expected loss of the reward model's rows, by its three rewards, where all are 0."""
    draws = np.array(list(itertools.product(range(3), repeat=1 + K)))  # golden, samples
    answers = [TEXTS[g] for g in draws[:, 0]]
    golden_first = lambda records, cuts: [np.eye(len(r.responses))[0] for r in records]  # noqa: E731
    game, file = listed(game, "reward", draws[:, 1:], [(y,) for y in answers], golden_first)
    game = dataclasses.replace(game, answers=answers)
    rows = [dataclasses.replace(r, **changes) for r in reward_turn.adversarial_rows(game, file)]
    made_of = sorted(changes)
    batch, which, number = opened(game, setup.prepare_rows(game, rows, made_of, "draws"))
    chance = GOLD[draws].prod(axis=1)[number]

    def expected(reward):
        return jnp.sum(chance * apo.reward_loss(reward[which], batch)[0])

    return np.asarray(jax.grad(expected)(jnp.zeros(3)))


def test_golden_distribution_is_a_fixed_point_of_the_rounds_rows(game):
    np.testing.assert_allclose(adversarial_gradient(game), 0.0, atol=1e-8)  # float32, 0.1 a row
    # Without the samples that repeat one another or the golden answer it is not.
    assert np.abs(adversarial_gradient(game, repeats=False)).max() > 1e-3


def test_policy_gradient_of_a_rounds_rows_is_that_of_its_objective(game):
    """Of E[r] - beta KL at the policy that was sampled, by its three logits."""
    reward, beta = np.array([1.0, -0.5, 0.4]), 0.3
    draws = np.array(list(itertools.product(range(3), repeat=1 + K)))  # some repeat, in part

    def score(records, cuts):
        return [np.array([reward[TEXTS.index(y)] for y in r.responses]) for r in records]

    once = functools.partial(policy_turn.score_once, score)
    game, file = listed(game, "policy", draws, [()] * len(draws), once)
    batch, which, number = opened(game, policy_turn.open_lists(game, 1, file, "draws"))
    chance = THETA[draws].prod(axis=1)[number]
    np.testing.assert_allclose(np.asarray(batch.scores), reward[which], rtol=1e-6)

    def expected(logits):
        policy = jax.nn.log_softmax(logits)[which]
        logps = Logps(policy=policy, reference=jnp.log(GOLD)[which], length=batch.response_length)
        return jnp.sum(chance * apo.loss(logps, batch, beta=beta)[0])

    def objective(logits):
        policy = jax.nn.softmax(logits)
        return policy @ (reward - beta * (jnp.log(policy) - jnp.log(GOLD)))

    found, wanted = (jax.grad(f)(jnp.log(THETA)) for f in (expected, objective))
    np.testing.assert_allclose(found, -wanted, atol=1e-6)


def test_a_repeated_response_is_scored_once():
    """A reward model's last bit may depend on the place in a batch; a tie must stay one."""
    seen = []

    def score(records, cuts):
        seen.extend(r.responses for r in records)
        return [np.arange(len(r.responses)) + 0.5 for r in records]

    records = [Record(id=y, prompt="p", responses=tuple(y)) for y in ("abab", "c")]
    found = [x.tolist() for x in policy_turn.score_once(score, records, {})]
    assert found == [[0.5, 1.5, 0.5, 1.5], [0.5]]
    assert seen == [("a", "b"), ("c",)]


@pytest.mark.parametrize("select", [bradley_terry.select, apo.select_best])
def test_best_and_worst_do_not_depend_on_how_often_they_were_drawn(select):
    """The pair of DPO, and what rejection sampling imitates."""
    _, often = loss_inputs(jnp.zeros((1, 4)), scores=[[0.2, 0.9, 0.2, 0.9]])
    _, once = loss_inputs(jnp.zeros((1, 2)), scores=[[0.2, 0.9]])
    often = often.replace(response=jnp.array([[[5], [6], [5], [6]]]))
    once = once.replace(response=jnp.array([[[5], [6]]]))
    found, wanted = (select(jax.random.key(0), x).response for x in (often, once))
    np.testing.assert_array_equal(found, wanted)
