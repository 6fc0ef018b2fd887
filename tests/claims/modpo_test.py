"""MODPO's minimum, over all policies of a small world: ref exp(w . r / beta), as MORLHF's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import modpo
from alignjax.testing import loss_inputs

BETA, PREFERENCE = 0.4, (0.2, 0.5, 0.3)
RNG = np.random.default_rng(0)
REWARDS = RNG.normal(size=(5, 3))  # of five responses on three objectives, log-odds
REFERENCE = np.log(RNG.dirichlet(np.ones(5)))
PAIRS = np.array(list(itertools.permutations(range(5), 2)))


def expected_loss(logits, main, preference=PREFERENCE):
    """Over the answers of one who compares any two responses by Bradley-Terry on ``main``."""
    policy = jax.nn.log_softmax(logits)
    reward = REWARDS[:, main]
    answered = 1 / (1 + np.exp(reward[PAIRS[:, 1]] - reward[PAIRS[:, 0]]))
    logps, batch = loss_inputs(policy[PAIRS], REFERENCE[PAIRS], scores=REWARDS[PAIRS])
    losses, _ = modpo.loss(logps, batch, beta=BETA, preference=preference, main=main)
    return jnp.mean(answered * losses)


def optimum(preference=PREFERENCE):
    return REFERENCE + REWARDS @ np.array(preference) / BETA


@pytest.mark.parametrize("main", [0, 1, 2])
def test_whichever_objective_orders_the_pairs_the_minimum_is_the_one_of_morlhf(main):
    @jax.jit
    def look(logits):
        moves = np.random.default_rng(1).normal(size=(3, 100, 5)) * np.array(
            [[[0.01]], [[0.3]], [[3]]]
        )
        values = jax.vmap(jax.vmap(lambda m: expected_loss(logits + m, main)))(moves)
        at, gradient = jax.value_and_grad(expected_loss)(logits, main)
        return at, gradient, values

    at, gradient, values = look(optimum())
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    assert (values > at).all()
    # Another preference's optimum is none here.
    assert np.abs(look(optimum((0.3, 0.4, 0.3)))[1]).max() > 1e-3
