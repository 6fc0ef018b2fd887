"""What the papers of the pair and list baselines state, as exact identities in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import dpo, lipo, orpo, plackett_luce, pro, robust_dpo, rrhf
from alignjax.testing import loss_inputs


def pairs(b=6):
    return np.random.default_rng(0).uniform(-9, 0, (2, b, 2))


def lists(b=6, k=4):
    """Log-probabilities, lengths, scores, in no order."""
    rng = np.random.default_rng(1)
    length = rng.integers(1, 9, (b, k))
    return -length * rng.uniform(0.1, 3.0, (b, k)), length, rng.uniform(0, 1, (b, k))


# Robust DPO


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.49])
def test_robust_dpo_is_unbiased_over_all_flips(rate):
    """Lemma 3.1, enumerated over the 2^4 ways to flip four pairs; smoothing is biased."""
    case = pairs(4)

    def mean(loss, **keywords):
        total = 0.0
        for flips in itertools.product((False, True), repeat=4):
            seen = [np.where(np.array(flips)[:, None], x[:, ::-1], x) for x in case]
            probability = np.prod(np.where(flips, rate, 1 - rate))
            total += probability * loss(*loss_inputs(*seen), **keywords)[0].mean()
        return total

    true = dpo.loss(*loss_inputs(*case))[0].mean()
    np.testing.assert_allclose(mean(robust_dpo.loss, flip_rate=rate), true, rtol=1e-9)
    assert abs(mean(dpo.loss, label_smoothing=rate) - true) > 1e-4


def test_robust_dpo_pushes_every_margin_up_and_smoothing_stops():
    """The slope is below 0 at all margins; that of smoothing changes sign at log((1 - e) / e)."""
    margins = jnp.linspace(-9.0, 9.0, 37)

    def slope(loss, **keywords):
        def value(m):
            case = loss_inputs(jnp.stack([m, m * 0])[None], [[0, 0]])
            return loss(*case, beta=1.0, **keywords)[0][0]

        return np.asarray(jax.vmap(jax.grad(value))(margins))

    assert (slope(robust_dpo.loss, flip_rate=0.2) < 0).all()
    np.testing.assert_array_equal(
        slope(dpo.loss, label_smoothing=0.2) < 0, margins < np.log(0.8 / 0.2)
    )


# ORPO


def test_orpo_gradient_is_the_papers():
    """Eq. 8 to 10: [1 + odds_w / odds_l]^-1 times (d p_w / (1 - P_w) - d p_l / (1 - P_l))."""
    policy, length, _ = lists(k=2)
    logps, batch = loss_inputs(policy, length=length)

    def ratio_term(policy):
        full = orpo.loss(logps.replace(policy=policy), batch, odds_weight=1.0)[0]
        return (full - orpo.loss(logps.replace(policy=policy), batch, odds_weight=0.0)[0]).sum()

    gradient = jax.grad(ratio_term)(logps.policy)
    probability = np.exp(policy / length)
    odds = probability / (1 - probability)
    delta = 1 / (1 + odds[:, :1] / odds[:, 1:])
    expected = delta / (1 - probability) / length * [-1, 1]
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


# RRHF


def test_rrhf_is_imitation_where_the_order_is_right_and_only_there():
    policy, length, _ = lists()
    p = policy / length
    right = rrhf.loss(*loss_inputs(policy, length=length, scores=p), rank_weight=50.0)
    np.testing.assert_allclose(right[0], -policy[np.arange(6), p.argmax(axis=1)], rtol=1e-9)
    wrong = rrhf.loss(*loss_inputs(policy, length=length, scores=-p), rank_weight=50.0)
    assert (wrong[0] > -policy[np.arange(6), p.argmin(axis=1)] + 0.1).all()


# LiPO


def test_lipo_of_two_responses_is_dpo_times_a_constant():
    policy, reference = pairs()
    psi = np.tile([0.8, 0.3], (6, 1))
    weight = (2**0.8 - 2**0.3) * (1 / np.log(2) - 1 / np.log(3))
    np.testing.assert_allclose(
        lipo.loss(*loss_inputs(policy, reference, scores=psi))[0],
        weight * np.asarray(dpo.loss(*loss_inputs(policy, reference))[0]),
        rtol=1e-9,
    )


def test_lipo_weighs_a_pair_by_what_swapping_it_changes_in_dcg():
    policy, _, psi = lists(b=1)
    reward = policy[0]

    def dcg(order):
        return sum((2 ** psi[0, i] - 1) / np.log(1 + t) for t, i in enumerate(order, 1))

    order = list(np.argsort(-reward))
    expected = 0.0
    for i, j in itertools.permutations(range(4), 2):
        if psi[0, i] > psi[0, j]:
            swapped = [{i: j, j: i}.get(x, x) for x in order]
            expected += abs(dcg(swapped) - dcg(order)) * np.logaddexp(0, reward[j] - reward[i])
    case = loss_inputs(policy, np.zeros((1, 4)), scores=psi)
    np.testing.assert_allclose(lipo.loss(*case, beta=1.0)[0], [expected], rtol=1e-9)


# PRO


def test_pro_with_equal_temperatures_is_plackett_luce():
    """A best response d above all others, which are tied: 1/T is d for each of them."""
    policy, length, scores = lists()
    p = policy / length
    best = scores == scores.max(axis=1, keepdims=True)
    for d in (1.0, 0.3):
        case = loss_inputs(policy, length=length, scores=best * d)
        per_token = loss_inputs(p, np.zeros_like(p), scores=best * d)
        np.testing.assert_allclose(
            pro.loss(*case, nll_weight=0.0)[0],
            plackett_luce.loss(*per_token, beta=d)[0],
            rtol=1e-9,
        )
    apart = loss_inputs(policy, length=length, scores=scores)
    assert not np.allclose(
        pro.loss(*apart, nll_weight=0.0)[0],
        plackett_luce.loss(*loss_inputs(p, np.zeros_like(p), scores=scores), beta=1.0)[0],
    )


def test_pro_of_two_responses_is_bradley_terry_on_the_gap_of_scores():
    policy, length, scores = lists(k=2)
    p, gap = policy / length, np.abs(scores[:, 0] - scores[:, 1])
    better = np.where(scores[:, 0] > scores[:, 1], 1, -1) * (p[:, 0] - p[:, 1])
    np.testing.assert_allclose(
        pro.loss(*loss_inputs(policy, length=length, scores=scores), nll_weight=0.0)[0],
        np.logaddexp(0, -gap * better),
        rtol=1e-9,
    )
