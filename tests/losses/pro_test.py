"""PRO against NumPy in float64, with ties, absent and unscored responses."""

import functools

import chex
import jax
import numpy as np
import pytest

from alignjax.losses import pro
from alignjax.testing import loss_inputs
from tests.losses import checks
from tests.losses.rrhf_test import lists


def test_value_and_gradient():
    policy, length, scores = lists()
    with jax.enable_x64(True):
        loss = functools.partial(pro.loss, nll_weight=0.3)
        result = checks.compiled(loss)(*loss_inputs(policy, length=length, scores=scores))
    p = policy / length
    expected, gradient = np.zeros(8), np.zeros((8, 4))
    for b in range(8):
        order = np.argsort(-scores[b])
        expected[b] = -0.3 * 9 * policy[b, order[0]]
        gradient[b, order[0]] = -0.3 * 9
        for place in range(3):
            k, rest = order[place], order[place + 1 :]
            inverse = np.append(0.0, scores[b, k] - scores[b, rest])
            inverse[0] = inverse.max()
            among = np.append(k, rest)
            e = np.exp(p[b, among] * inverse)
            expected[b] += np.log(e.sum()) - p[b, k] * inverse[0]
            gradient[b, among] += e / e.sum() * inverse / length[b, among]
            gradient[b, k] -= inverse[0] / length[b, k]
    np.testing.assert_allclose(result.losses, expected, rtol=1e-9)
    np.testing.assert_allclose(result.gradient, gradient / 8, rtol=1e-9)
    best = scores.argmax(axis=1)
    np.testing.assert_allclose(result.metrics["rewards/chosen"], p[range(8), best], rtol=1e-9)


def test_tied_responses_are_chosen_from_themselves_and_the_lower_ones():
    logps, batch = loss_inputs([[-1.0, -3.0, -2.5]], scores=[[1.0, 1.0, 0.0]])
    losses, _ = pro.loss(logps, batch, nll_weight=0.5)
    expected = np.log1p(np.exp(-2.5 + 1)) + np.log1p(np.exp(-2.5 + 3)) + 0.5 * 4 * 2.0
    np.testing.assert_allclose(losses, [expected], rtol=1e-6)


@pytest.mark.parametrize("fault", ["absent", "nan", "inf"])
def test_what_takes_no_part_is_as_if_it_were_not_there(fault):
    policy, length, scores = lists()
    scores[:, 3] = 99.0 if fault == "absent" else float(fault)
    length[:, 3] *= fault != "absent"
    run = checks.compiled(pro.loss)
    with_fault = run(*loss_inputs(policy, length=length, scores=scores))
    short = run(*loss_inputs(policy[:, :3], length=length[:, :3], scores=scores[:, :3]))
    chex.assert_trees_all_close(with_fault[:2], short[:2], rtol=1e-5, atol=1e-6)
