"""Squared distances to the win rates' targets against NumPy in float64."""

import functools

import numpy as np

from alignjax.losses import sppo
from alignjax.testing import loss_inputs
from tests.losses import checks, golden


def pair(policy, reference, *_):
    w, j = policy - reference
    return (w - 1 / 0.6) ** 2 + (j + 1 / 0.6) ** 2


def of_list(policy, reference, _, scores):
    wins = 1 / (1 + np.exp(-(scores[:, None] - scores[None, :]) / 0.5))
    target = (wins.mean(axis=1) - 0.5) / 0.3
    return ((policy - reference - target) ** 2).mean()


def test_values_and_gradients():
    golden.check(functools.partial(sppo.loss, beta=0.3), pair, golden.rows(2))
    golden.check(
        functools.partial(sppo.loss_list, beta=0.3, temperature=0.5), of_list, golden.rows(4)
    )


def test_absent_and_unscored_responses_take_no_part():
    case = golden.rows(4)
    case["scores"][:, 2] = np.nan
    case["length"][:, 3] = 0
    short = loss_inputs(**{k: v[:, :2] for k, v in case.items()})
    result = checks.compiled(sppo.loss_list)(*loss_inputs(**case))
    np.testing.assert_allclose(result.losses, sppo.loss_list(*short)[0], rtol=1e-5)
    np.testing.assert_array_equal(result.gradient[:, 2:], 0.0)
    case["length"][:, 1] = 0
    alone = checks.compiled(sppo.loss_list)(*loss_inputs(**case))
    np.testing.assert_array_equal(alone.losses, 0.0)
    np.testing.assert_array_equal(alone.gradient, 0.0)
