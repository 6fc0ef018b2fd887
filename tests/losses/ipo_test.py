"""The squared gap, summed, per token and over lists, against NumPy in float64."""

import functools

import numpy as np
import pytest

from alignjax.losses import dpo, ipo
from alignjax.testing import loss_inputs
from tests.losses import golden


def gap(x):
    return x[0] - x[1]


def test_values_and_gradients():
    golden.check(
        functools.partial(ipo.loss, beta=0.3),
        lambda p, r, *_: (gap(p - r) - 1 / 0.6) ** 2,
        golden.rows(2),
    )
    golden.check(
        functools.partial(ipo.loss_mean, beta=0.3),
        lambda p, r, n, _: (gap((p - r) / n) - 1 / 0.6) ** 2,
        golden.rows(2),
    )


def over_pairs(policy, reference, _, scores):
    t, k = policy - reference, range(len(scores))
    pairs = [(w, j) for w in k for j in k if scores[w] > scores[j]]
    return np.mean([(t[w] - t[j] - 1 / 0.6) ** 2 for w, j in pairs])


def test_lists():
    case = golden.rows(4)
    case["scores"][:, 3] = case["scores"][:, 0]  # tied: not compared
    golden.check(functools.partial(ipo.loss_list, beta=0.3), over_pairs, case)
    case = golden.rows(2)
    case["scores"] = np.tile([1.0, 0.0], (8, 1))
    pair, of_list = (f(*loss_inputs(**case)) for f in (ipo.loss, ipo.loss_list))
    np.testing.assert_allclose(of_list[0], pair[0], rtol=1e-6)
    for name, value in pair[1].items():
        np.testing.assert_allclose(of_list[1][name], value, rtol=1e-5, err_msg=name)


def test_metrics_are_on_the_scale_of_the_loss():
    logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]])
    _, summed = ipo.loss(logps, batch, beta=0.5)
    _, mean = ipo.loss_mean(logps, batch, beta=0.5)
    assert float(summed["rewards/margins"][0]) == 2.0
    assert float(mean["rewards/margins"][0]) == pytest.approx(0.75)
    assert summed.keys() == dpo.loss(logps, batch)[1].keys()
