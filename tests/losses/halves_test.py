"""XPO and Nash-MD: the policy's samples against another policy's, by hand in NumPy."""

from functools import partial

import numpy as np
import pytest

from alignjax.losses import nash_md, xpo
from alignjax.testing import loss_inputs
from tests.losses import checks, golden


def xpo_by_hand(row, beta=0.3, alpha=0.05):
    own, other = row.scores[:2], row.scores[2:]
    losses = []
    for i in (0, 1):
        ahead = beta * (row.ratio[i] - row.ratio[i + 2]) * np.sign(own[i] - other[i])
        compared = np.log1p(np.exp(-ahead)) if own[i] != other[i] else 0.0
        losses.append(alpha * row.policy[i + 2] + compared)
    share = np.mean([(np.sign(a - b) + 1) / 2 for a, b in zip(own, other, strict=True)])
    return np.mean(losses), {"scores": own.mean(), "wins": share, "kl": row.ratio[:2].mean()}


def case_of(k=4):
    case = golden.rows(k)
    case["policy"], case["reference"] = case["policy"] / 10, case["reference"] / 10
    case["scores"][0, k // 2 :] = case["scores"][0, : k // 2]  # ties
    return case


def test_xpo_compares_each_sample_with_the_references_and_lowers_the_latter():
    golden.check(partial(xpo.loss, beta=0.3, alpha=0.05), xpo_by_hand, case_of())


def test_the_gradient_of_nash_md_is_the_preference_less_one_half_and_the_kl():
    case = case_of()
    found = checks.compiled(partial(nash_md.loss, tau=0.2, temperature=0.5))(*loss_inputs(**case))
    own, other = case["scores"][:, :2], case["scores"][:, 2:]
    preferred = np.mean(1 / (1 + np.exp(-(own[:, :, None] - other[:, None, :]) / 0.5)), axis=2)
    value = preferred - 0.5 - 0.2 * (case["policy"] - case["reference"])[:, :2]
    np.testing.assert_allclose(found.losses, -value.mean(axis=1), rtol=1e-4, atol=1e-6)
    wanted = np.concatenate([-value / 2, np.zeros((8, 2))], axis=1)  # of the opponent's: none
    np.testing.assert_allclose(found.gradient * 8, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.metrics["preferred"], preferred.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("loss", [xpo.loss, nash_md.loss])
def test_a_pair_without_a_score_or_a_response_takes_no_part(loss):
    case = case_of(6)
    case["length"][1, 4] = 0
    case["scores"][1, 0] = np.nan
    left = {name: x[1:2][:, [2, 5]] for name, x in case.items()}  # the one pair that is whole
    whole, alone = (checks.compiled(loss)(*loss_inputs(**x)) for x in (case, left))
    np.testing.assert_allclose(whole.losses[1], alone.losses[0], rtol=1e-5)
    np.testing.assert_allclose(whole.gradient[1, [2, 5]] * 8, alone.gradient[0], rtol=1e-5)
    np.testing.assert_array_equal(whole.gradient[1, [0, 1, 3, 4]], 0)


@pytest.mark.parametrize("loss", [xpo.loss, nash_md.loss])
def test_an_odd_number_has_no_halves(loss):
    with pytest.raises(ValueError, match=r"wanted an even number of responses .*, found 3"):
        loss(*loss_inputs(**golden.rows(3)))


def test_at_equal_preference_nash_md_moves_back_to_the_reference():
    logps, batch = loss_inputs([[-1.0, -3.0]], [[-2.0, -3.0]], length=[[3, 3]], scores=[[0.7, 0.7]])
    found = checks.compiled(partial(nash_md.loss, tau=0.5))(logps, batch)
    assert found.gradient[0, 0] > 0  # above the reference's probability: lowered
    assert found.metrics["wins"][0] == 0.5
