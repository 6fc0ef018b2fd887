"""The reward with its length term against NumPy in float64."""

import functools

import numpy as np

from alignjax.losses import dpo, rdpo
from alignjax.testing import loss_inputs
from tests.losses import golden

BETA, ALPHA = 0.2, 0.06
LOSS = functools.partial(
    rdpo.loss, beta=BETA, implicit=functools.partial(rdpo.implicit, penalty=ALPHA / BETA)
)


def formula(policy, reference, length, _):
    t = policy - reference
    margin = BETA * (t[0] - t[1]) + ALPHA * (length[0] - length[1])
    return np.log1p(np.exp(-margin))


def test_values_and_gradients():
    golden.check(LOSS, formula, golden.rows(2))


def test_equal_lengths_are_dpo_and_a_longer_chosen_response_moves_the_policy_less():
    case = golden.rows(2)
    case["length"][:] = 7
    wanted = dpo.loss(*loss_inputs(**case), beta=BETA)[0]
    np.testing.assert_allclose(LOSS(*loss_inputs(**case))[0], wanted, rtol=1e-4)
    case["length"][:, 0] = 9
    assert (LOSS(*loss_inputs(**case))[0] < wanted).all()
    case["length"][:, 0] = 5
    assert (LOSS(*loss_inputs(**case))[0] > wanted).all()
