"""SLiC-HF and the hinge on implicit rewards against NumPy in float64."""

import functools

import jax
import numpy as np

from alignjax.losses import slic
from alignjax.testing import loss_inputs
from tests.losses import checks


def test_value_and_gradient():
    policy = np.random.default_rng(0).uniform(-9, 0, (16, 2))
    margin, weight = 1.5, 0.2
    with jax.enable_x64(True):
        loss = functools.partial(slic.loss, margin=margin, nll_weight=weight)
        result = checks.compiled(loss)(*loss_inputs(policy))
    missing = margin - policy[:, 0] + policy[:, 1]
    short = missing > 0
    assert 0 < short.mean() < 1
    expected = np.where(short, missing, 0) - weight * policy[:, 0]
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(result.metrics["nll"], -policy[:, 0], rtol=1e-9)
    expected = np.stack([-1.0 * short - weight, 1.0 * short], axis=1) / 16
    np.testing.assert_allclose(result.gradient, expected, rtol=1e-9)


def test_hinge_value_and_gradient():
    policy, reference = np.random.default_rng(0).uniform(-30, 0, (2, 16, 2))
    with jax.enable_x64(True):
        loss = functools.partial(slic.loss_hinge, beta=0.2)
        result = checks.compiled(loss)(*loss_inputs(policy, reference))
    reward = 0.2 * (policy - reference)
    missing = 1 - (reward[:, 0] - reward[:, 1])
    assert 0 < (missing > 0).mean() < 1
    np.testing.assert_allclose(result.losses, np.maximum(missing, 0), rtol=1e-9)
    expected = 0.2 * (missing > 0)[:, None] * np.array([-1, 1]) / 16
    np.testing.assert_allclose(result.gradient, expected, rtol=1e-9)


def test_beyond_its_margin_a_pair_is_still_imitated():
    """The term that the HPS paper prints inside the max: there, nothing would be left here."""
    result = checks.compiled(slic.loss)(*loss_inputs([[-2.0, -9.0]]))
    np.testing.assert_allclose(result.losses, [0.2], rtol=1e-6)
    np.testing.assert_allclose(result.gradient, [[-0.1, 0.0]], rtol=1e-6)


def test_a_pair_without_its_rejected_response_is_imitated_only():
    losses, _ = slic.loss(*loss_inputs([[-3.0, 0.0]], length=[[2, 0]]))
    np.testing.assert_allclose(losses, [0.3], rtol=1e-6)
