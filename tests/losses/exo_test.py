"""Reverse divergences of pairs and lists against NumPy in float64."""

import functools

import numpy as np
import pytest

from alignjax.losses import exo
from alignjax.testing import loss_inputs
from tests.losses import checks, golden


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def divergence(p, q):
    return (p * np.log(p / q)).sum()


def test_values_and_gradients():
    golden.check(
        functools.partial(exo.loss, beta=0.2, label_smoothing=0.05),
        lambda p, r, *_: divergence(softmax(0.2 * (p - r)), np.array([0.95, 0.05])),
        golden.rows(2),
    )
    golden.check(
        functools.partial(exo.loss_list, beta=0.2, beta_r=0.5),
        lambda p, r, _, s: divergence(softmax(0.2 * (p - r)), softmax(s / 0.5)),
        golden.rows(4),
    )


def test_a_pair_is_the_list_with_the_labels_log_odds_as_scores():
    case = golden.rows(2)
    case["scores"] = np.tile([np.log(0.9 / 0.1), 0.0], (8, 1))
    case = loss_inputs(**case)
    np.testing.assert_allclose(
        exo.loss(*case, label_smoothing=0.1)[0], exo.loss_list(*case)[0], rtol=1e-4
    )


def test_absent_and_unscored_responses_take_no_part():
    case = golden.rows(4)
    case["scores"][:, 2] = np.nan
    case["length"][:, 3] = 0
    short = loss_inputs(**{k: v[:, :2] for k, v in case.items()})
    result = checks.compiled(exo.loss_list)(*loss_inputs(**case))
    np.testing.assert_allclose(result.losses, exo.loss_list(*short)[0], rtol=1e-5)
    np.testing.assert_array_equal(result.gradient[:, 2:], 0.0)


@pytest.mark.parametrize("e", [0, 0.0, 0.5, -0.1])
def test_a_certain_label_is_refused(e):
    with pytest.raises(ValueError, match=r"label_smoothing in \(0, 0\.5\), found"):
        exo.loss(*loss_inputs(np.zeros((1, 2)), np.zeros((1, 2))), label_smoothing=e)
