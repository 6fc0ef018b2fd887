"""LiPO-lambda against NumPy in float64, with ties in scores and rewards, absent responses."""

import functools

import chex
import jax
import numpy as np
import pytest

from alignjax.losses import lipo
from alignjax.testing import loss_inputs
from tests.losses import checks


def lists(b=8, k=4, seed=0):
    rng = np.random.default_rng(seed)
    policy, reference = rng.uniform(-30, 0, (2, b, k))
    return policy, reference, rng.uniform(0, 1, (b, k))


def weights(s, psi):
    """``[i, j]`` D of one list without ties."""
    tau = np.empty(len(s))
    tau[np.argsort(-s)] = np.arange(1, len(s) + 1)
    discount = 1 / np.log(1 + tau)
    return np.abs(np.subtract.outer(2**psi, 2**psi)) * np.abs(np.subtract.outer(discount, discount))


def test_value_and_gradient():
    policy, reference, psi = lists()
    with jax.enable_x64(True):
        loss = functools.partial(lipo.loss, beta=0.2)
        result = checks.compiled(loss)(*loss_inputs(policy, reference, scores=psi))
    s = 0.2 * (policy - reference)
    expected, gradient = np.zeros(8), np.zeros((8, 4))
    for b in range(8):
        d = weights(s[b], psi[b])
        for i, j in zip(*np.nonzero(np.greater.outer(psi[b], psi[b])), strict=True):
            expected[b] += d[i, j] * np.log(1 + np.exp(s[b, j] - s[b, i]))
            slope = 0.2 * d[i, j] / (1 + np.exp(s[b, i] - s[b, j]))
            gradient[b, i] -= slope
            gradient[b, j] += slope
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(result.gradient, gradient / 8, rtol=1e-9)


def test_equal_rewards_rank_the_lower_score_first_and_the_order_means_nothing():
    """At policy = reference all s are 0: ranks 4, 3 and, for the two tied ones, 1.5 each."""
    psi = np.array([1.0, 0.5, 0.2, 0.2])
    tau = np.array([4.0, 3.0, 1.5, 1.5])
    gain, discount = 2**psi, 1 / np.log(1 + tau)
    expected = sum(
        (gain[i] - gain[j]) * abs(discount[i] - discount[j]) * np.log(2)
        for i in range(4)
        for j in range(4)
        if psi[i] > psi[j]
    )
    gradients = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        case = loss_inputs(np.full((1, 4), -2.0), np.full((1, 4), -2.0), scores=psi[None, order])
        result = checks.compiled(lipo.loss)(*case)
        np.testing.assert_allclose(result.losses, [expected], rtol=1e-5)
        gradients.append(np.asarray(result.gradient)[0, np.argsort(order)])
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-8)
    assert (np.abs(gradients[0]) > 1e-3).all()


@pytest.mark.parametrize("fault", ["absent", "nan", "inf"])
def test_what_takes_no_part_is_as_if_it_were_not_there(fault):
    policy, reference, psi = lists()
    length = np.ones((8, 4), int)
    psi[:, 3] = 99.0 if fault == "absent" else float(fault)
    length[:, 3] *= fault != "absent"
    run = checks.compiled(lipo.loss)
    with_fault = run(*loss_inputs(policy, reference, length=length, scores=psi))
    short = run(*loss_inputs(policy[:, :3], reference[:, :3], scores=psi[:, :3]))
    chex.assert_trees_all_close(with_fault[:2], short[:2], rtol=1e-5, atol=1e-6)
