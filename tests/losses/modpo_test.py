"""What MODPO reads of the scores, which pairs it draws in which order, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignjax.losses import dpo, modpo
from alignjax.testing import loss_inputs
from tests.losses import golden


def rows(m=3):
    case = golden.rows(2)
    case["scores"] = np.random.default_rng(5).normal(0, 2, (8, 2, m))
    return case


def test_all_weight_on_the_ordering_objective_is_dpo():
    case = loss_inputs(**rows())
    losses, metrics = modpo.loss(*case, preference=(0.0, 3.0, 0.0), main=1)
    wanted, known = dpo.loss(*case)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics["rewards/collective"], known["rewards/margins"], rtol=1e-6)
    assert known.keys() < metrics.keys()


def test_the_scores_of_the_ordering_objective_are_not_read():
    case, other = rows(), rows()
    other["scores"][:, :, 0] *= -3
    ask = functools.partial(modpo.loss, preference=(0.5, 0.25, 0.25))
    np.testing.assert_array_equal(ask(*loss_inputs(**case))[0], ask(*loss_inputs(**other))[0])
    other["scores"][:, 0, 1] += 1
    assert (ask(*loss_inputs(**case))[0] < ask(*loss_inputs(**other))[0]).all()


def lists(n):
    """Objective 1 orders 2 > 1 > 0; response 3 is absent."""
    scores = np.array([[5.0, 0.0], [3.0, 0.5], [1.0, 2.0], [9.0, 9.0]])
    table = np.tile(scores, (n, 1, 1))
    return loss_inputs(np.zeros((n, 4)), scores=table, length=np.tile([1, 1, 1, 0], (n, 1)))[1]


draw = jax.jit(modpo.select, static_argnames=("main", "noisy"))


def test_pairs_are_ordered_by_the_objective_asked_for():
    for main in (0, 1):
        pair = draw(jax.random.key(0), lists(64), main=main)
        assert pair.scores.shape == (64, 2, 2)
        assert (pair.scores[:, 0, main] > pair.scores[:, 1, main]).all()
        assert len(np.unique(np.asarray(pair.scores[:, :, main]), axis=0)) == 3
    assert pair.weight.all()


def test_noisy_pairs_are_ordered_as_bradley_terry_has_it():
    """Two-sided binomial per pair over 6,000 prompts, p above 1e-3; and it is no coin."""
    pair = draw(jax.random.key(4), lists(6000), main=1, noisy=True)
    lead = np.asarray(pair.scores[:, 0, 1] - pair.scores[:, 1, 1])
    for gap in (0.5, 1.5, 2.0):
        right, wrong = int((lead == gap).sum()), int((lead == -gap).sum())
        assert right + wrong > 1800
        p = 1 / (1 + np.exp(-gap))
        assert scipy.stats.binomtest(right, right + wrong, p).pvalue > 1e-3
        assert scipy.stats.binomtest(right, right + wrong, 0.5).pvalue < 1e-3


def test_noise_is_independent_of_which_pair_was_drawn():
    """Among the pairs of one gap the swap goes with neither response; chi-square, p above 1e-3."""
    _, batch = loss_inputs(
        np.zeros((6000, 3)), scores=np.tile([[0, 0], [1, 0], [2, 0]], (6000, 1, 1))
    )
    pair = np.asarray(draw(jax.random.key(1), batch, noisy=True).scores[..., 0])
    one = pair[np.abs(pair[:, 0] - pair[:, 1]) == 1]
    high, right = one.max(axis=1) == 2, one[:, 0] > one[:, 1]
    table = [[(h & r).sum() for r in (right, ~right)] for h in (high, ~high)]
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_a_list_that_ties_on_the_objective_is_voided():
    scores = np.array([[[1.0, 2.0], [1.0, 3.0]], [[1.0, 2.0], [0.0, 3.0]]])
    _, batch = loss_inputs(np.zeros((2, 2)), scores=scores)
    np.testing.assert_array_equal(draw(jax.random.key(0), batch).weight, [0.0, 1.0])
    np.testing.assert_array_equal(draw(jax.random.key(0), batch, main=1).weight, [1.0, 1.0])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "wanted 3 weights, one per objective, found None"),
        ({"preference": (0.5, 0.5)}, "wanted 3 weights"),
        ({"preference": (0.5, -0.5, 1.0)}, "wanted weights >= 0"),
        ({"preference": (0.0, 0.0, 0.0)}, "not all 0"),
        ({"preference": (0.5, float("nan"), 1.0)}, "wanted weights >= 0"),
        ({"preference": (0.0, 0.5, 0.5)}, "positive weight, .* found objective 0"),
        ({"preference": (0.2, 0.3, 0.5), "main": 3}, r"objective in \[0, 3\), found 3"),
    ],
)
def test_bad_preferences_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        modpo.loss(*loss_inputs(**rows()), **keywords)


def test_data_without_several_objectives_are_refused():
    case = rows()
    case["scores"] = case["scores"][..., 0]
    with pytest.raises(ValueError, match=r"\[B, K, M\], found one per response"):
        modpo.loss(*loss_inputs(**case), preference=(0.5, 0.5))
    with pytest.raises(ValueError, match="found none per response"):
        modpo.select(jax.random.key(0), loss_inputs(np.zeros((2, 2)))[1])
    with pytest.raises(ValueError, match=r"objective in \[0, 2\), found -1"):
        modpo.select(jax.random.key(0), lists(2), main=-1)


def test_an_absent_response_has_no_margin():
    case = rows()
    case["length"][:, 1] = 0
    low, high = dict(case), dict(case)
    high["scores"] = case["scores"] + 100 * np.array([[[0.0], [1.0]]])
    ask = functools.partial(modpo.loss, preference=(0.2, 0.3, 0.5))
    np.testing.assert_array_equal(ask(*loss_inputs(**low))[0], ask(*loss_inputs(**high))[0])
    assert jnp.isfinite(ask(*loss_inputs(**high))[0]).all()
