"""What a step scores, from the loss that the config names."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from alignjax.losses import dpo, ld_dpo, wpo
from alignjax.models.logps import logps_and_squares, response_logps, token_logps
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import learners
from alignjax.training import step
from tests import runs, tiny

MODEL = tiny.model(layers=1, logits_chunk=3)
PARAMS, REFERENCE = tiny.params(MODEL), tiny.params(MODEL, seed=1)


def update_of(loss, kernel="auto"):
    config = runs.get_config(loss=loss, model=dataclasses.replace(MODEL, attention=kernel))
    learner = learners.policy(
        config, make_mesh(1, 1, 1), 8, load_reference=lambda: PARAMS, base=REFERENCE, live=True
    )
    return learner.update


def scored(update, batch):
    forward = partial(update.forward, apply=update.apply)
    return jax.jit(forward, compiler_options=tiny.FAST)(PARAMS, REFERENCE, batch)


@partial(jax.jit, compiler_options=tiny.FAST)
def every(params, batch):
    return token_logps(params, batch, config=MODEL)


def tokens_of(params, batch):
    return np.asarray(every(params, batch), np.float64)


def assert_close(found, wanted):
    """Close relative to the largest number of each array: gradients are sums that cancel."""

    def one(x, y):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1.0, np.abs(y).max()))

    jax.tree.map(one, found, wanted)


def test_a_loss_of_sums_is_given_sums_alone():
    update = update_of(partial(dpo.loss, beta=0.2))
    assert (update.forward, update.apply.func) == (step.score, response_logps)
    logps = scored(update, tiny.ragged(2))
    assert (logps.policy_tail, logps.reference_tail, logps.log_squares) == (None, None, None)


@pytest.mark.parametrize("kernel", ["tiles", "xla"])
@pytest.mark.parametrize("k", [2, 3])
def test_tails_are_beyond_the_shortest_response_that_is_there(k, kernel):
    batch = tiny.ragged(k, b=4)
    logps = scored(update_of(ld_dpo.loss, kernel), batch)
    lengths = batch.response_length
    shortest = [min(n for n in row if n) for row in lengths]
    assert any(len({n for n in row if n}) > 1 for row in lengths)
    assert not lengths.all()  # one is absent
    for params, whole, tail in (
        (PARAMS, logps.policy, logps.policy_tail),
        (REFERENCE, logps.reference, logps.reference_tail),
    ):
        tokens = tokens_of(params, batch)
        wanted = np.stack([row[:, n:].sum(1) for row, n in zip(tokens, shortest, strict=True)])
        np.testing.assert_allclose(whole, tokens.sum(-1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tail, wanted, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_ld_dpo_goes_through_the_tail():
    """Against DPO of log-probabilities whose every token has its weight."""
    batch, update = tiny.batch([2, 5, 3], [[6, 2], [1, 5], [4, 4]]), update_of(ld_dpo.loss)
    shorter = batch.response_length.min(axis=1)[:, None, None]
    weight = np.where(np.arange(6) < shorter, 1.0, 0.3)

    def found(params):
        logps = update.forward(params, REFERENCE, batch, apply=update.apply)
        return ld_dpo.loss(logps, batch, beta=0.2, alpha=0.3)[0].sum()

    def weighted(params, batch):
        return (token_logps(params, batch, config=MODEL) * weight).sum(-1)

    def wanted(params):
        logps = step.score(params, REFERENCE, batch, apply=weighted)
        return dpo.loss(logps, batch, beta=0.2)[0].sum()

    one, other = (
        jax.jit(jax.value_and_grad(f), compiler_options=tiny.FAST)(PARAMS) for f in (found, wanted)
    )
    assert_close(one, other)


@pytest.mark.parametrize("kernel", ["tiles", "xla"])
def test_squares_are_sums_over_the_vocabulary(kernel):
    """Against the probability of every token at every place, each as a response of its own."""
    batch = tiny.batch([3, 2], [[4, 2, 0], [1, 3, 4]])
    update = update_of(wpo.loss, kernel)
    logps = scored(update, batch)
    np.testing.assert_allclose(logps.policy, tokens_of(PARAMS, batch).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(logps.reference, tokens_of(REFERENCE, batch).sum(-1), rtol=1e-5)
    wanted = np.zeros((2, 3))
    for place in range(4):  # of all responses at once: 3 x 64 to a prompt
        others = np.repeat(batch.response, 64, axis=1)
        others[:, :, place] = np.tile(np.arange(64), 3)
        full = tiny.given(batch.prompt, batch.prompt_length, others)
        nats = tokens_of(PARAMS, full)[:, :, place].reshape(2, 3, 64)
        squares = np.log(np.exp(2 * nats).sum(-1))
        wanted += np.where(place < batch.response_length, squares, 0.0)
    np.testing.assert_allclose(logps.log_squares, wanted, rtol=1e-5)


def test_squares_have_no_gradient_and_change_none():
    batch = tiny.batch([3, 2], [[4, 2], [1, 3]])

    def total(params):
        logps, squares = logps_and_squares(params, batch, config=MODEL)
        return logps.sum() + squares.sum()

    def sums(params):
        return response_logps(params, batch, config=MODEL).sum()

    found, wanted = (
        jax.jit(jax.grad(f), compiler_options=tiny.FAST)(PARAMS) for f in (total, sums)
    )
    assert_close(found, wanted)


@pytest.mark.slow
def test_ld_dpo_with_a_whole_tail_is_a_step_of_dpo():
    batch = tiny.batch([2, 5, 3], [[6, 2], [1, 5], [4, 4]])
    made = []
    for loss in (partial(ld_dpo.loss, alpha=1.0), partial(ld_dpo.loss, alpha=0.0), dpo.loss):
        update = update_of(loss)
        state = step.init_state(PARAMS, update.optimizer, jax.random.key(0))
        run = jax.jit(partial(step.train_step, update=update), compiler_options=tiny.FAST)
        made.append(run(state, REFERENCE, batch)[1])
    whole, shared, dpo_s = made
    for name in ("loss", "grad_norm", "rewards/margins"):
        np.testing.assert_allclose(whole[name], dpo_s[name], rtol=1e-5)
        assert abs(shared[name] - dpo_s[name]) > 1e-3
