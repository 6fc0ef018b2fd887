"""What a preference asks for, against the formulas; what the online stage asks for and keeps."""

import numpy as np
import pytest

from alignjax.losses import rewards_in_context as ric
from alignjax.losses import sft
from tests.losses import checks

LOW, HIGH = np.array([-2.0, -1.0, 0.5]), np.array([1.0, 3.0, 0.75])


def published(preference, low, high, method):
    """The three maps, objective by objective, the top weight by itself in the second one."""
    w = np.array(preference) / sum(preference)
    target = np.zeros(len(w))
    for i in range(len(w)):
        span = high[i] - low[i]
        if method == "l2":
            target[i] = low[i] + w[i] / np.sqrt((w**2).sum()) * span
        elif method == "linear":
            target[i] = low[i] + w[i] * span
        else:
            top = i == w.argmax()
            target[i] = high[i] if top else low[i] + min(len(w) * w[i], 1) * span
    return target


@pytest.mark.parametrize("method", [ric.l2, ric.linf, ric.linear])
def test_maps_are_the_formulas(method):
    rng = np.random.default_rng(0)
    for w in [*rng.dirichlet(np.ones(3), 50), (1, 0, 0), (2, 2, 2), (0, 1, 1)]:
        found = method(tuple(w), low=LOW, high=HIGH)
        np.testing.assert_allclose(found, published(w, LOW, HIGH, method.__name__), rtol=1e-12)
        assert (found >= LOW - 1e-12).all()
        assert (found <= HIGH + 1e-12).all()
        np.testing.assert_allclose(method(tuple(3 * x for x in w), low=LOW, high=HIGH), found)
    np.testing.assert_allclose(method((0, 1, 0), low=LOW, high=HIGH), [-2.0, 3.0, 0.5])


@pytest.mark.parametrize("method", [ric.l2, ric.linf, ric.linear])
def test_asking_for_more_of_an_objective_gives_a_larger_target_and_no_larger_other(method):
    asked = np.linspace(0.05, 0.95, 19)
    found = np.array([method((w, (1 - w) / 3, (1 - w) * 2 / 3), low=LOW, high=HIGH) for w in asked])
    steps = np.diff(found, axis=0)
    if method is ric.linf:  # from 1/M on it is at the top
        below = asked[:-1] < 1 / 3 - 0.05
        assert (steps[below, 0] > 0).all()
        assert (steps[:, 0] >= 0).all()
    else:
        assert (steps[:, 0] > 0).all()
    assert (steps[:, 1:] <= 1e-12).all()
    assert (found[0, 1:] > found[-1, 1:]).all()


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ((0.5, 0.5), "wanted 3 weights"),
        ((0.5, -0.5, 1.0), "weights >= 0"),
        ((0.0, 0.0, 0.0), "not all 0"),
        ((0.5, float("nan"), 0.5), "weights >= 0"),
    ],
)
def test_bad_preferences_are_refused(preference, message):
    for method in (ric.l2, ric.linf, ric.linear):
        with pytest.raises(ValueError, match=message):
            method(preference, low=LOW, high=HIGH)


def test_scores_are_told_with_one_decimal():
    assert (
        ric.score_text((0.05, -0.04, 12.36)) == "<rm1_score> 0.0 <rm2_score> 0.0 <rm3_score> 12.4"
    )
    assert ric.score_text(np.array([-1.25, 3.0])) == "<rm1_score> -1.2 <rm2_score> 3.0"


def test_limits():
    scores = np.random.default_rng(1).uniform(-1, 1, (100, 2)) * [1, 5]
    low, high = ric.data_limits(scores)
    assert [low[0], high[1]] == [scores[:, 0].min(), scores[:, 1].max()]
    low, high = ric.normal_limits(scores)
    # The expected largest of 50,000 is 4.2; below 3.5 or above 6 once in 10^4 at the most.
    assert ((high > 3.5) & (high < 6) & (low < -3.5) & (low > -6)).all()
    assert low[0] != low[1]
    np.testing.assert_array_equal(ric.normal_limits(scores)[0], low)


def test_online_targets_are_high_but_for_one_objective():
    rng = np.random.default_rng(2)
    found = ric.online_targets(rng, 9000, low=LOW, high=HIGH)
    assert found.shape == (9000, 3)
    free = found != HIGH
    assert (free.sum(axis=1) == 1).all()
    # Each objective is the low one as often, to five standard deviations of a count.
    assert (np.abs(free.sum(axis=0) - 3000) < 5 * np.sqrt(9000 * 2 / 9)).all()
    assert ((found >= LOW) & (found <= HIGH)).all()
    # The lowest of three uniform places is at 1/4 in the mean; a single one would be at 1/2.
    place = ((found - LOW) / (HIGH - LOW))[free]
    assert place.mean() == pytest.approx(1 / 4, abs=0.02)


def test_what_is_good_at_something_is_kept():
    scores = np.array(
        [[0, 9], [1, 8], [2, 7], [3, 0], [4, 1], [5, 2], [6, 3], [7, 4], [8, 5], [9, 6]]
    )
    kept = ric.keep(scores, quantile=0.7)
    thresholds = np.quantile(scores, 0.7, axis=0)
    wanted = [any(row[i] >= thresholds[i] for i in range(2)) for row in scores]
    np.testing.assert_array_equal(kept, wanted)
    assert 3 < kept.sum() < 10
    assert ric.keep(scores, quantile=0.0).all()
    np.testing.assert_array_equal(np.flatnonzero(ric.keep(scores, quantile=1.0)), [0, 9])
    assert ric.keep(np.ones((4, 2))).all()  # of equals all are as good as the best


def test_the_loss_imitates():
    case = checks.make(1)
    checks.chex.assert_trees_all_equal(ric.loss(*case), sft.loss(*case))
