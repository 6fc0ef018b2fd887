"""The reward per token against NumPy in float64, alone and under other losses."""

import functools

import numpy as np

from alignjax.losses import dpo, hps, plackett_luce, simpo
from alignjax.testing import loss_inputs
from tests.losses import golden


def formula(policy, _, length, *__):
    w, j = 2.5 * policy / length
    return np.log1p(np.exp(-(w - j - 1.0)))


def test_values_and_gradients():
    loss = functools.partial(simpo.loss, beta=2.5, gamma_beta_ratio=0.4)
    golden.check(loss, formula, golden.rows(2))


def test_no_reference_is_needed_and_none_is_read():
    case = golden.rows(2)
    with_reference = simpo.loss(*loss_inputs(**case))[0]
    case["reference"] = None
    np.testing.assert_array_equal(simpo.loss(*loss_inputs(**case))[0], with_reference)


def test_under_other_losses():
    """Two lines of a config: a draw of HPS, and its loss over SimPO's reward."""
    case = golden.rows(2)
    per_token = 2.0 * case["policy"] / case["length"]
    case["reference"] = None
    logps, batch = loss_inputs(**case, drawn_from=np.full(8, 3))
    losses, metrics = hps.loss(logps, batch, beta=2.0, implicit=simpo.implicit)
    w, j = per_token.T
    np.testing.assert_allclose(losses, np.log1p(3 * np.exp(j - w)), rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/margins"], w - j, rtol=1e-4, atol=1e-5)
    for loss in (plackett_luce.loss, plackett_luce.loss_top1, hps.loss_full):
        order = np.argsort(-case["scores"], axis=1)
        w, j = np.take_along_axis(per_token, order, axis=1).T
        losses = loss(logps, batch, beta=2.0, implicit=simpo.implicit)[0]
        np.testing.assert_allclose(losses, np.log1p(np.exp(j - w)), rtol=1e-4, atol=1e-6)
    bare = simpo.loss(logps, batch, gamma_beta_ratio=0.0)[0]
    np.testing.assert_allclose(
        bare, dpo.loss(logps, batch, beta=2.0, implicit=simpo.implicit)[0], rtol=1e-5
    )
