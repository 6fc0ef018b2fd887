"""Pairs and lists of rewards against NumPy in float64, and what they become at the limits."""

import functools

import numpy as np
import pytest

from alignjax.losses import dpo, nca, plackett_luce
from alignjax.testing import loss_inputs
from tests.losses import checks, golden


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def pair(policy, reference, *_):
    w, j = 0.2 * (policy - reference)
    return -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-j)


def of_list(policy, reference, _, scores):
    r, w = 0.2 * (policy - reference), softmax(scores / 0.5)
    return -(w * log_sigmoid(r) + log_sigmoid(-r) / len(r)).sum()


def info(policy, reference, _, scores):
    return -(softmax(scores / 0.5) * np.log(softmax(0.2 * (policy - reference)))).sum()


def test_values_and_gradients():
    golden.check(functools.partial(nca.loss, beta=0.2), pair, golden.rows(2))
    golden.check(functools.partial(nca.loss_list, beta=0.2, alpha=0.5), of_list, golden.rows(4))
    golden.check(functools.partial(nca.loss_info, beta=0.2, alpha=0.5), info, golden.rows(4))


def test_certain_rewards_give_the_pair_dpo_and_top_1():
    case = golden.rows(2)
    case["scores"] = np.tile([1.0, 0.0], (8, 1))
    case = loss_inputs(**case)
    for of_pair, of_list in ((nca.loss, nca.loss_list), (dpo.loss, nca.loss_info)):
        np.testing.assert_allclose(
            of_list(*case, alpha=1e-3)[0], of_pair(*case)[0], rtol=1e-5, atol=1e-6
        )
    case = loss_inputs(**golden.rows(4))
    top = plackett_luce.loss_top1(*case)[0]
    np.testing.assert_allclose(nca.loss_info(*case, alpha=1e-4)[0], top, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [nca.loss_list, nca.loss_info])
def test_absent_and_unscored_responses_take_no_part(loss):
    case = golden.rows(4)
    case["scores"][:, 2] = np.nan
    case["length"][:, 3] = 0
    short = loss_inputs(**{k: v[:, :2] for k, v in case.items()})
    result = checks.compiled(loss)(*loss_inputs(**case))
    np.testing.assert_allclose(result.losses, loss(*short)[0], rtol=1e-5)
    np.testing.assert_array_equal(result.gradient[:, 2:], 0.0)
    case["length"][:, 1] = 0
    alone = checks.compiled(loss)(*loss_inputs(**case))
    np.testing.assert_array_equal(alone.losses, 0.0)
    np.testing.assert_array_equal(alone.gradient, 0.0)
