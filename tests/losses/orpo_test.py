"""ORPO against NumPy in float64, and its odds where they are hard to compute."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.losses import orpo
from alignjax.testing import loss_inputs
from tests.losses import checks


def test_value_and_gradient():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 9, (16, 2))
    policy = -length * rng.uniform(0.05, 3.0, (16, 2))
    weight = 0.4
    with jax.enable_x64(True):
        loss = functools.partial(orpo.loss, odds_weight=weight)
        result = checks.compiled(loss)(*loss_inputs(policy, length=length))
    p = policy / length
    odds = np.exp(p) / (1 - np.exp(p))
    ratio = odds[:, 0] / odds[:, 1]
    expected = -p[:, 0] - weight * np.log(ratio / (1 + ratio))
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(result.metrics["log_odds_ratio"], np.log(ratio), rtol=1e-9)
    np.testing.assert_allclose(result.metrics["nll_per_token"], -p[:, 0], rtol=1e-9)
    np.testing.assert_allclose(result.metrics["rewards/chosen"], p[:, 0], rtol=1e-9)
    # d log odds / d p = 1 / (1 - P)
    pull = weight / (1 + ratio)[:, None] / (1 - np.exp(p)) * [-1, 1] - np.array([1.0, 0.0])
    np.testing.assert_allclose(result.gradient, pull / length / 16, rtol=1e-9)


def test_log_odds_near_and_far_from_0():
    """Against math.log and expm1 in float64, where the plain formula of float32 gives inf or 0."""
    score = [-1e-5, -1e-3, -0.5, -0.7, -20.0, -200.0]
    expected = [s - math.log(-math.expm1(s)) for s in score]
    value, slope = jax.vmap(jax.value_and_grad(orpo.log_odds))(jnp.asarray(score))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, [-1 / math.expm1(s) for s in score], rtol=1e-5)
    certain = jax.vmap(jax.value_and_grad(orpo.log_odds))(jnp.asarray([0.0, -1e-9]))
    np.testing.assert_allclose(certain, [[math.log(1e6)] * 2, [0.0] * 2], rtol=1e-6)


def test_a_pair_without_its_rejected_response_is_imitated_only():
    losses, _ = orpo.loss(*loss_inputs([[-3.0, 0.0]], length=[[2, 0]]))
    np.testing.assert_allclose(losses, [1.5], rtol=1e-6)
