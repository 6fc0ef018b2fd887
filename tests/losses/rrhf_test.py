"""RRHF against NumPy in float64, with ties, absent and unscored responses."""

import functools

import chex
import jax
import numpy as np
import pytest

from alignjax.losses import rrhf
from alignjax.testing import loss_inputs
from tests.losses import checks


def lists(b=8, k=4, seed=0):
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 9, (b, k))
    return -length * rng.uniform(0.1, 3.0, (b, k)), length, rng.normal(size=(b, k))


@pytest.mark.parametrize("penalty", [1.0, 0.5])
def test_value_and_gradient(penalty):
    policy, length, scores = lists()
    weight = 3.0
    with jax.enable_x64(True):
        loss = functools.partial(rrhf.loss, rank_weight=weight, length_penalty=penalty)
        result = checks.compiled(loss)(*loss_inputs(policy, length=length, scores=scores))
    p = policy / length**penalty
    expected, gradient = np.zeros(8), np.zeros((8, 4))
    for b in range(8):
        best = scores[b].argmax()
        expected[b] = -policy[b, best]
        gradient[b, best] = -1
        for i in range(4):
            for j in range(4):
                if scores[b, i] < scores[b, j] and p[b, i] > p[b, j]:
                    expected[b] += weight * (p[b, i] - p[b, j])
                    gradient[b, i] += weight / length[b, i] ** penalty
                    gradient[b, j] -= weight / length[b, j] ** penalty
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(result.gradient, gradient / 8, rtol=1e-9)
    best = scores.argmax(axis=1)
    np.testing.assert_allclose(result.metrics["nll"], -policy[range(8), best], rtol=1e-9)
    np.testing.assert_allclose(result.metrics["rewards/chosen"], p[range(8), best], rtol=1e-9)


def test_tied_responses_are_not_compared_and_share_the_imitation():
    logps, batch = loss_inputs([[-1.0, -3.0, -2.5]], scores=[[1.0, 1.0, 0.0]])
    result = checks.compiled(rrhf.loss)(logps, batch)
    np.testing.assert_allclose(result.losses, [(-2.5 + 3.0) + 2.0], rtol=1e-6)
    np.testing.assert_allclose(result.gradient, [[-0.5, -1.5, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("fault", ["absent", "nan", "inf"])
def test_what_takes_no_part_is_as_if_it_were_not_there(fault):
    policy, length, scores = lists()
    scores[:, 3] = 99.0 if fault == "absent" else float(fault)
    length[:, 3] *= fault != "absent"
    run = checks.compiled(rrhf.loss)
    with_fault = run(*loss_inputs(policy, length=length, scores=scores))
    short = run(*loss_inputs(policy[:, :3], length=length[:, :3], scores=scores[:, :3]))
    chex.assert_trees_all_close(with_fault[:2], short[:2], rtol=1e-5, atol=1e-6)
