"""What is said of a front, against plain formulas."""

import numpy as np
import pytest
import scipy.stats

from alignjax.evaluation import fronts, pareto

RNG = np.random.default_rng(0)
UNIT = {"low": np.zeros(2), "high": np.ones(2)}


@pytest.mark.parametrize(
    ("response", "collapsed"),
    [
        ("", True),
        ("abcd", True),  # 4 tokens
        ("abcde", False),
        ("aaaaa", True),  # 1 of its 2 phrases stood before
        ("abcabcab", False),  # 2 of 5
        ("abcabca", False),  # 1 of 4
        ("abcabcabc", True),  # 3 of 6
        ("abcdefgabcd", False),
    ],
)
def test_what_has_collapsed(response, collapsed):
    assert fronts.is_collapsed(response) is collapsed


def test_repetition_counts_phrases_that_stood_before():
    ids = RNG.integers(0, 3, 60).tolist()
    seen, again = set(), 0
    for i in range(57):
        phrase = tuple(ids[i : i + 4])
        again += phrase in seen
        seen.add(phrase)
    assert 0 < again < 57
    assert fronts.repetition(ids) == pytest.approx(again / 57, rel=1e-12)
    assert fronts.repetition(ids[:3]) == 0.0


def test_points_are_means_with_intervals_over_prompts():
    scores = RNG.normal(size=(2, 50, 3))
    found = fronts.points(scores)
    for i in range(2):
        for j in range(3):
            assert found[i][j].mean == pytest.approx(scores[i, :, j].mean(), rel=1e-9)
            error = scores[i, :, j].std(ddof=1) / np.sqrt(50)
            assert found[i][j].half_width == pytest.approx(1.959964 * error, rel=1e-6)


def test_the_box_holds_the_points_of_all_fronts():
    scores = [RNG.normal(size=(p, 10, 2)) for p in (2, 4)]
    low, high = fronts.box(scores)
    means = np.concatenate([x.mean(axis=1) for x in scores])
    np.testing.assert_array_equal(low, means.min(axis=0))
    np.testing.assert_array_equal(high, means.max(axis=0))


def test_a_volume_is_that_of_the_means_and_its_interval_covers():
    """Of 200 fronts of 60 prompts around known points, about 95% of the intervals hold the truth.

    One point: with several the value is biased upwards, as the docstring says.
    """
    rng = np.random.default_rng(1)
    truth, covered = np.array([0.6, 0.5]), 0
    for i in range(200):
        scores = truth + 0.2 * rng.normal(size=(1, 60, 2))
        found = fronts.hypervolume(scores, **UNIT, seed=i, draws=200)
        assert found.mean == pareto.hypervolume(scores.mean(axis=1), **UNIT)
        assert found.low <= found.mean <= found.high
        covered += found.low <= 0.3 <= found.high
    # A binomial of 200 with 0.95 is below 178 or above 199 once in a thousand.
    assert 178 <= covered <= 199


def test_prompts_are_drawn_alike_for_every_preference():
    """Two preferences whose scores add up to 1 in every prompt: the sum of means has no spread."""
    one = RNG.uniform(size=(1, 30, 1))
    scores = np.concatenate([one, 1 - one], axis=0)
    scores = np.concatenate([scores, np.ones_like(scores)], axis=2)
    found = fronts.hypervolume(scores, **UNIT)
    means = scores.mean(axis=1)[:, 0]
    assert found.mean == pytest.approx(means.max())
    # The larger of m and 1 - m is never under a half; drawn apart, both could be.
    assert found.low >= 0.5


def test_faithfulness_is_spearmans_correlation_by_objective():
    preferences = RNG.dirichlet(np.ones(3), size=9)
    means = preferences + 0.3 * RNG.normal(size=(9, 3))
    found = fronts.faithfulness(preferences, means)
    wanted = [scipy.stats.spearmanr(preferences[:, m], means[:, m]).statistic for m in range(3)]
    np.testing.assert_allclose(found.correlation, wanted, rtol=1e-9)
    assert found.mean == pytest.approx(np.mean(wanted))
    assert found.pairs == 3 * 9 * 8 // 2
    assert 0 < found.violations < found.pairs


def test_ties_share_their_ranks_and_count_for_no_pair():
    preferences = np.array([[1, 0], [0.5, 0.5], [0.5, 0.5], [0, 1]])
    means = np.array([[3, 0], [1, 1], [2, 1], [2, 2.0]])
    found = fronts.faithfulness(preferences, means)
    wanted = [scipy.stats.spearmanr(preferences[:, m], means[:, m]).statistic for m in range(2)]
    np.testing.assert_allclose(found.correlation, wanted, rtol=1e-9)
    assert (found.violations, found.pairs) == (
        1,
        10,
    )  # the second got less than the last


def test_a_front_that_listens_to_nobody_is_faithful_to_nobody():
    preferences = np.array([[1, 0], [0.5, 0.5], [0, 1]])
    assert fronts.faithfulness(preferences, np.full((3, 2), 0.7)).correlation == (0.0, 0.0)
    assert fronts.faithfulness(preferences, preferences).correlation == (1.0, 1.0)
    assert fronts.faithfulness(preferences, -preferences).correlation == (-1.0, -1.0)
