"""CPO against NumPy in float64."""

import functools

import jax
import numpy as np

from alignjax.losses import cpo
from alignjax.testing import loss_inputs
from tests.losses import checks


def test_value_and_gradient():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 9, (16, 2))
    policy = rng.uniform(-30, 0, (16, 2))
    beta, weight = 0.3, 0.7
    with jax.enable_x64(True):
        loss = functools.partial(cpo.loss, beta=beta, nll_weight=weight)
        result = checks.compiled(loss)(*loss_inputs(policy, length=length))
    right = 1 / (1 + np.exp(-beta * (policy[:, 0] - policy[:, 1])))
    nll = -policy[:, 0] / length[:, 0]
    np.testing.assert_allclose(result.losses, -np.log(right) + weight * nll, rtol=1e-9)
    np.testing.assert_allclose(result.metrics["nll_per_token"], nll, rtol=1e-9)
    np.testing.assert_allclose(result.metrics["rewards/rejected"], beta * policy[:, 1], rtol=1e-9)
    slope = beta * (1 - right)
    expected = np.stack([-slope - weight / length[:, 0], slope], axis=1) / 16
    np.testing.assert_allclose(result.gradient, expected, rtol=1e-9)


def test_a_pair_without_its_rejected_response_is_imitated_only():
    losses, _ = cpo.loss(*loss_inputs([[-3.0, 0.0]], length=[[2, 0]]))
    np.testing.assert_allclose(losses, [1.5], rtol=1e-6)
