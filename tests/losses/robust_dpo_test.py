"""Robust DPO against NumPy in float64."""

import functools

import jax
import numpy as np
import pytest

from alignjax.losses import dpo, robust_dpo
from alignjax.testing import loss_inputs
from tests.losses import checks


@pytest.mark.parametrize(("beta", "rate"), [(0.1, 0.1), (0.5, 0.3)])
def test_value_and_gradient(beta, rate):
    policy, reference = np.random.default_rng(0).uniform(-10, 0, (2, 16, 2))
    with jax.enable_x64(True):
        loss = functools.partial(robust_dpo.loss, beta=beta, flip_rate=rate)
        result = checks.compiled(loss)(*loss_inputs(policy, reference))
    margin = beta * ((policy - reference)[:, 0] - (policy - reference)[:, 1])
    right = 1 / (1 + np.exp(-margin))
    expected = (-(1 - rate) * np.log(right) + rate * np.log1p(-right)) / (1 - 2 * rate)
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    slope = -beta * ((1 - rate) * (1 - right) + rate * right) / (1 - 2 * rate)
    np.testing.assert_allclose(result.gradient, np.stack([slope, -slope], 1) / 16, rtol=1e-9)
    np.testing.assert_allclose(result.metrics["rewards/margins"], margin, rtol=1e-9)


def test_without_flips_it_is_dpo():
    policy, reference = np.random.default_rng(1).uniform(-60, 0, (2, 8, 2))
    case = loss_inputs(policy, reference)
    np.testing.assert_allclose(
        robust_dpo.loss(*case, flip_rate=0.0)[0], dpo.loss(*case)[0], rtol=1e-6
    )


@pytest.mark.parametrize("rate", [0.5, 0.7, -0.1])
def test_a_flip_rate_out_of_range_is_refused(rate):
    with pytest.raises(
        ValueError, match=rf"loss\.flip_rate has to be in \[0, 0\.5\), found {rate}"
    ):
        robust_dpo.loss(*checks.make(2), flip_rate=rate)
