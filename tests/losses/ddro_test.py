"""DDRO's two losses against NumPy in float64, and the clamp."""

import jax
import numpy as np
import pytest

from alignjax.losses import ddro
from alignjax.testing import loss_inputs

ALPHA, F = 0.4, 0.3


def inputs(ratio, labels):
    ratio = np.asarray(ratio, float)
    return loss_inputs(ratio - 20, np.full(ratio.shape, -20.0), desirable=labels)


def run(loss, ratio, labels):
    """Losses and the gradient of their sum with respect to the log-ratios, in float64."""
    with jax.enable_x64(True):
        logps, batch = inputs(ratio, labels)

        def total(policy):
            losses, metrics = loss(
                logps.replace(policy=policy), batch, alpha=ALPHA, desirable_fraction=F
            )
            return losses.sum(), (losses, metrics)

        gradient, (losses, metrics) = jax.grad(total, has_aux=True)(logps.policy)
        return np.asarray(losses), np.asarray(gradient), jax.tree.map(np.asarray, metrics)


@pytest.mark.parametrize("transform", [False, True])
def test_value_and_gradient(transform):
    rng = np.random.default_rng(0)
    ratio = rng.uniform(-6, -np.log(ALPHA) - 0.01, (50, 2))
    labels = rng.random((50, 2)) < F
    losses, gradient, _ = run(ddro.loss_log_sigmoid if transform else ddro.loss, ratio, labels)

    g = (np.exp(-ratio) - ALPHA) / (1 - ALPHA)
    slope_of_g = -np.exp(-ratio) / (1 - ALPHA)
    if transform:
        terms = np.log(np.where(labels, (1 + g) / (2 + g), (1 + g) / (1 + 2 * g)))
        slopes = 1 / (1 + g) - np.where(labels, 1 / (2 + g), 2 / (1 + 2 * g))
    else:
        terms = np.log(np.where(labels, 1 + g, 1 + 1 / g))
        slopes = np.where(labels, 1 / (1 + g), 1 / (1 + g) - 1 / g)
    weight = np.where(labels, 1 / F, 1 / (1 - F))
    np.testing.assert_allclose(losses, (weight * terms).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(gradient, weight * slopes * slope_of_g, rtol=1e-9)


@pytest.mark.parametrize("loss", [ddro.loss, ddro.loss_log_sigmoid])
def test_beyond_the_clamp_the_loss_is_constant_and_has_no_gradient(loss):
    """Where g = 1e-6: at alpha rho = 1 / (1 + 1e-6 (1 - alpha) / alpha)."""
    edge = -np.log(ALPHA + (1 - ALPHA) * ddro.CLAMP)
    beyond = [[edge + 1e-3], [5.0], [1e4]]
    for label in (True, False):
        labels = np.full((3, 1), label)
        losses, gradient, metrics = run(loss, beyond, labels)
        np.testing.assert_array_equal(gradient, 0.0)
        np.testing.assert_array_equal(metrics["clamped"], 1.0)
        g = ddro.CLAMP
        at_clamp = np.log(1 + g if label else 1 + 1 / g)
        if loss is ddro.loss_log_sigmoid:
            at_clamp = -np.log1p(np.exp(-at_clamp))
        weight = 1 / F if label else 1 / (1 - F)
        np.testing.assert_allclose(losses, weight * at_clamp, rtol=1e-9)
        inside, gradient, metrics = run(loss, [[edge - 1e-3]], labels[:1])
        assert abs(gradient[0, 0]) > 0.1
        assert metrics["clamped"][0] == 0
        assert inside[0] != losses[0]


def test_without_the_clamp_far_log_ratios_are_not_finite(monkeypatch):
    """What the clamp is for: the check on finite values, which passes with it, fails."""
    case = loss_inputs([[0.0], [3.0]], [[0.0], [0.0]], desirable=[[1], [0]])
    assert np.isfinite(ddro.loss(*case, alpha=ALPHA, desirable_fraction=F)[0]).all()
    monkeypatch.setattr(ddro, "CLAMP", -1e9)
    assert not np.isfinite(ddro.loss(*case, alpha=ALPHA, desirable_fraction=F)[0]).all()
