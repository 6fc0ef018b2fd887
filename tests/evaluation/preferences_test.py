"""Estimates against brute force and by simulation; preferences on tables made by hand."""

import math

import numpy as np
import pytest

from alignjax.evaluation import preferences, statistics
from alignjax.evaluation.statistics import Interval, mean_over_prompts
from alignjax.sampling.generate import Sample

NAN = float("nan")


def by_brute_force(values, prompts):
    """The ratio estimator over clusters: sums per prompt, one prompt at a time."""
    rows = [(v, p) for v, p in zip(values, prompts, strict=True) if not math.isnan(v)]
    mean = sum(v for v, _ in rows) / len(rows)
    names = {p for _, p in rows}
    total = sum(sum(v - mean for v, p in rows if p == name) ** 2 for name in names)
    error = math.sqrt(total * len(names) / (len(names) - 1)) / len(rows)
    return mean, 1.959964 * error, len(names)


@pytest.mark.parametrize("seed", range(4))
def test_means_and_intervals(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=30)
    values[rng.integers(0, 30, 4)] = np.nan
    prompts = [f"p{i}" for i in rng.integers(0, 8, 30)]
    found = mean_over_prompts(values, prompts)
    assert (found.mean, found.half_width, found.count) == pytest.approx(
        by_brute_force(values, prompts)
    )


def test_rows_of_their_own_prompts_give_the_usual_interval():
    values = np.random.default_rng(0).normal(size=50)
    found = mean_over_prompts(values, range(50))
    assert found.half_width == pytest.approx(1.959964 * values.std(ddof=1) / math.sqrt(50))


def test_repeating_rows_of_a_prompt_does_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=20)
    once = mean_over_prompts(values, range(20))
    thrice = mean_over_prompts(np.repeat(values, 3), np.repeat(np.arange(20), 3).tolist())
    assert thrice.half_width == pytest.approx(once.half_width)


@pytest.mark.parametrize(
    "prompts", [[("a", "b"), ("a", "c"), ("a", "b")], ["x", "x\0", "x"], [1, 2, 1]]
)
def test_prompts_may_be_anything_hashable(prompts):
    assert mean_over_prompts(np.array([1.0, 2.0, 3.0]), prompts).count == 2


def test_nothing_to_say_and_one_prompt_have_no_interval():
    nothing = mean_over_prompts(np.array([NAN, NAN]), ["a", "b"])
    assert math.isnan(nothing.mean)
    assert nothing.count == 0
    one = mean_over_prompts(np.array([1.0, 2.0]), ["a", "a"])
    assert (one.mean, one.count) == (1.5, 1)
    assert math.isnan(one.half_width)
    assert str(Interval(0.12345, 0.2, 3)) == "0.123 ± 0.200"


def coverage(estimator, clusters=60, runs=600):
    """Share of runs whose interval holds the truth, 0; a prompt's 1 to 9 rows are alike."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(runs):
        sizes = rng.integers(1, 10, clusters)
        shared = np.repeat(rng.normal(size=clusters), sizes)
        prompts = np.repeat(np.arange(clusters), sizes)
        found = estimator(shared + 0.5 * rng.normal(size=len(shared)), prompts.tolist())
        held += abs(found.mean) <= found.half_width
    return held / runs


def test_intervals_hold_the_truth_as_often_as_they_say():
    """600 runs at 95%: a standard error of 0.9%; 60 prompts cost the normal quantile about 1%."""
    assert 0.92 < coverage(mean_over_prompts) < 0.98
    rows_as_prompts = coverage(lambda values, _: mean_over_prompts(values, range(len(values))))
    assert rows_as_prompts < 0.85  # what would happen without clusters


def test_pairs():
    policy = np.array([[-1.0, -4.0], [-3.0, -2.0], [-2.0, -2.0]])
    reference = np.array([[-2.0, -3.0], [-2.0, -2.0], [-1.0, -1.0]])
    found = preferences.reward_metrics(0.5 * (policy - reference), np.ones((3, 2), int), None)
    assert found["rewards/chosen"].tolist() == [0.5, -0.5, -0.5]
    assert found["rewards/rejected"].tolist() == [-0.5, 0.0, -0.5]
    assert found["rewards/margins"].tolist() == [1.0, -0.5, 0.0]
    assert found["rewards/accuracies"].tolist() == [1.0, 0.0, 0.0]  # a tie is wrong


def test_lists_with_absent_responses_ties_and_nothing_to_compare():
    reward = 2 * np.array(
        [[-1.0, -2.0, -3.0], [-3.0, -1.0, 99.0], [-1.0, -2.0, -3.0], [-1.0, 0, 0]]
    )
    length = np.array([[4, 4, 4], [4, 4, 0], [4, 4, 4], [4, 0, 0]])
    scores = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, NAN], [1.0, 1.0, 0.0], [5.0, NAN, NAN]])
    found = preferences.reward_metrics(reward, length, scores)
    # Row 0: pairs 1>2 right, 1>0 wrong, 2>0 wrong. Row 1: 0>1 wrong. Row 2: 0>2, 1>2 right; the
    # tie says nothing. Row 3: one response.
    np.testing.assert_allclose(found["rewards/accuracies"], [1 / 3, 0.0, 1.0, NAN])
    np.testing.assert_allclose(found["rewards/margins"], [-2.0, -4.0, 4.0, NAN])
    np.testing.assert_allclose(found["rewards/chosen"], [-4.0, -6.0, -2.0, NAN])
    np.testing.assert_allclose(found["rewards/rejected"], [-2.0, -2.0, -6.0, NAN])


def test_the_best_of_a_list_has_to_be_alone_on_top():
    rows = [  # rewards, scores, is the best alone on top, is it tied
        ([3.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.0], 1, 0),
        ([3.0, 1.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0], 0, 1),
        ([2.0, 1.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0], 0, 0),
        ([5.0, 5.0, 0.0, 9.0], [7.0, 7.0, 1.0, NAN], 1, 0),  # two best; the last is not there
        ([5.0, 5.0, 5.0, 9.0], [7.0, 7.0, 1.0, NAN], 0, 1),
        ([5.0, 1.0, 0.0, 0.0], [2.0, 1.0, NAN, NAN], NAN, NAN),  # a pair
        ([5.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], NAN, NAN),
        ([5.0, 1.0, 0.0, 0.0], [NAN, NAN, NAN, NAN], NAN, NAN),
    ]
    reward, scores, alone, tied = (np.array(column) for column in zip(*rows, strict=True))
    length = (~np.isnan(scores)).astype(int)
    length[-1] = 4  # several objectives: no one order
    found = preferences.reward_metrics(reward, length, scores)
    np.testing.assert_array_equal(found[preferences.BEST], alone)
    np.testing.assert_array_equal(found[preferences.TIES], tied)
    pairs = preferences.reward_metrics(reward[:, :2], length[:, :2], scores[:, :2])
    assert not {preferences.BEST, preferences.TIES} & set(pairs)


def test_a_share_of_lists_has_a_bootstrap_interval_over_prompts():
    values = np.array([1.0, 0.0, 1.0, 1.0, NAN, 0.0])
    prompts = ["a", "a", "b", "c", "c", "d"]
    found = preferences.over_prompts(preferences.BEST, values, prompts)
    by_prompt = [[1.0, 0.0], [1.0], [1.0], [0.0]]
    means = [
        np.mean([x for i in drawn for x in by_prompt[i]])
        for drawn in np.random.default_rng(0).integers(0, 4, (statistics.DRAWS, 4))
    ]
    assert (found.mean, found.count) == (0.6, 4)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]))
    assert found.as_dict() == {"mean": 0.6, "low": found.low, "high": found.high, "count": 4}
    assert preferences.over_prompts("rewards/margins", values, prompts).ends is None
    assert preferences.over_prompts(preferences.TIES, values * NAN, prompts).count == 0


def test_single_responses_and_equal_scores_say_nothing():
    one = preferences.reward_metrics(np.array([[-1.0]]), np.ones((1, 1), int), None)
    ones = np.ones((1, 2))
    tied = preferences.reward_metrics(np.array([[-1.0, -2.0]]), ones.astype(int), ones)
    for found in (one, tied):
        assert all(np.isnan(values).all() for values in found.values())


@pytest.mark.parametrize("seed", range(3))
def test_margins_equal_the_loops(seed):
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(size=(2, 9, 4))
    length = rng.integers(0, 30, (9, 4)) * rng.integers(0, 2, (9, 4))
    length[:, 0] += 1
    scores = rng.integers(0, 3, (9, 4)).astype(float)
    scores[0] = NAN  # several objectives: no one order
    found = preferences.margins(policy, reference, length, scores)
    said = 0
    for i in range(9):
        there = [j for j in range(4) if length[i, j]]
        best = max(there, key=lambda j: (scores[i, j], -j))
        worst = min(there, key=lambda j: (scores[i, j], j))
        if not scores[i, best] > scores[i, worst]:
            assert all(np.isnan(x[i]) for x in found.values())
            continue
        said += 1
        winner, loser = (policy[i, j] - reference[i, j] for j in (best, worst))
        assert found["RM_DPO"][i] == pytest.approx(winner - loser)
        longer = length[i, best] - length[i, worst]
        assert found["RM_R-DPO"][i] == pytest.approx(winner - loser - 0.01 * longer)
        assert found["winner_log_ratio"][i] == pytest.approx(winner)
    assert 2 < said < 9


def test_margins_of_pairs_are_those_of_chosen_and_rejected():
    found = preferences.margins(
        np.array([[-1.0, -9.0]]), np.array([[-2.0, -4.0]]), np.array([[30, 10]]), None
    )
    assert found["RM_DPO"].tolist() == [6.0]
    assert found["RM_R-DPO"].tolist() == [pytest.approx(5.8)]
    assert found["winner_log_ratio"].tolist() == [1.0]


def test_the_best_of_the_first_so_many():
    scores = np.array([[1.0, 3.0, 3.0, 9.0], [2.0, 1.0, 0.0, -1.0]])
    assert preferences.best_of(scores).tolist() == [3, 0]
    assert preferences.best_of(scores, 3).tolist() == [1, 0]
    assert preferences.best_of(scores, 1).tolist() == [0, 0]


def sample(prompt, response, *, kl=0.0, length=1):
    return Sample(prompt, response, length, True, -1.0, -1.0, kl)


SAMPLES = [
    sample("a", "yes", kl=1.0, length=3),
    sample("a", "no", kl=0.5, length=5),
    sample("b", "yes", kl=0.0, length=7),
]


def test_kl_is_the_mean_over_samples_with_prompts_as_clusters():
    found = preferences.kl_to_reference(SAMPLES)
    assert found.mean == pytest.approx((1.0 + 0.5 + 0.0) / 3)
    assert found.half_width == pytest.approx(by_brute_force([1.0, 0.5, 0.0], "aab")[1])
    assert found.count == 2
    assert preferences.tokens(SAMPLES).mean == pytest.approx(5.0)


def test_labelled_responses_are_ranked_over_all_rows():
    ratio = np.array([[1.0, 0.0], [-2.0, 3.0], [0.5, 9.0], [-1.0, 0.5]])
    desirable = np.array([[1, 0], [0, 0], [1, 1], [0, 0]], bool)
    length = np.array([[1, 1], [1, 1], [1, 0], [1, 1]])
    reference = np.full((4, 2), -7.0)
    found = preferences.label_metrics(ratio + reference, reference, desirable, length)
    nan = np.nan
    np.testing.assert_allclose(found["log_ratio/desirable"], [1.0, nan, 0.5, nan])
    np.testing.assert_allclose(found["log_ratio/undesirable"], [0.0, 0.5, nan, -0.25])
    # Undesirable: 0, -2, 3, -1, 0.5. Below 1: four of five; below 0.5, a tie being wrong: three.
    np.testing.assert_allclose(found["labels/accuracies"], [0.8, nan, 0.6, nan])
    alone = preferences.label_metrics(ratio, None, np.ones((4, 2), bool), length)
    assert np.isnan(alone["labels/accuracies"]).all()
