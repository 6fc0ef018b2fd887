"""DDRO's clamp."""

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
