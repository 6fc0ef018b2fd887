"""Calibration against loops over hand-made numbers, and the temperature against a fine grid."""

import math

import numpy as np
import pytest

from alignjax.evaluation import calibration

# Preferred minus other; -0.9 was ordered wrongly. Two fall into one bin.
MARGIN = np.array([0.05, 0.1, -0.9, 2.0, 3.5, 2.1])


def both_orders(margin, temperature=1.0):
    """(p, y) of every comparison."""
    sigma = [1 / (1 + math.exp(-m / temperature)) for m in margin]
    return [(p, 1) for p in sigma] + [(1 - p, 0) for p in sigma]


def by_loops(groups, total):
    gaps = [abs(sum(p for p, _ in g) - sum(y for _, y in g)) for g in groups if g]
    return sum(gaps) / total, max(
        gap / len(g) for gap, g in zip(gaps, [g for g in groups if g], strict=True)
    )


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_ece_and_mce_by_loops(temperature):
    said = both_orders(MARGIN, temperature)
    groups = [[x for x in said if int(x[0] * 10) == b] for b in range(10)]
    ece, mce = by_loops(groups, len(said))
    found = calibration.measure(MARGIN, temperature=temperature)
    np.testing.assert_allclose([found["ece"], found["mce"]], [ece, mce], rtol=1e-12)
    nll = np.mean([math.log(1 + math.exp(-m / temperature)) for m in MARGIN])
    np.testing.assert_allclose(found["nll"], nll, rtol=1e-12)


def test_by_hand():
    """Four pairs at p = 0.75, three of them right: perfect. All right: 1/4 off, in both orders."""
    margin = math.log(3) * np.array([1.0, 1.0, 1.0, -1.0])
    assert calibration.measure(margin)["ece"] == pytest.approx(0, abs=1e-15)
    sure = calibration.measure(np.abs(margin))
    assert sure["ece"] == pytest.approx(0.25)
    assert sure["mce"] == pytest.approx(0.25)
    assert sure["ace"] == pytest.approx(0.25)


def test_adaptive_bins_hold_equally_many():
    margin = np.random.default_rng(0).normal(0.3, 0.2, 200)  # all p near one half
    equal = calibration.bins(margin, adaptive=True)
    assert set(equal.count) == {40}
    assert (calibration.bins(margin).count > 0).sum() < 6
    said = sorted(both_orders(margin))
    groups = [said[i : i + 40] for i in range(0, 400, 40)]
    found = calibration.measure(margin)["ace"]
    np.testing.assert_allclose(found, by_loops(groups, 400)[0], rtol=1e-12)
    # Ties are one bin: no order among equals can change the number.
    assert (calibration.bins(np.zeros(30), adaptive=True).count > 0).sum() == 1


def test_a_calibrated_model_has_only_what_chance_makes():
    rng = np.random.default_rng(1)
    margin = rng.normal(0, 2, 500)
    right = rng.random(500) < 1 / (1 + np.exp(-margin))
    outcome = np.where(right, margin, -margin)
    floor = calibration.ece_if_calibrated(outcome)
    assert 0.01 < floor < 0.06
    # 100 draws of the floor's ECE have a standard deviation of about 0.3 of it.
    assert calibration.measure(outcome)["ece"] < 2 * floor
    assert calibration.measure(5 * outcome)["ece"] > 3 * floor  # overconfident


def test_pairs_are_those_of_different_score_that_exist():
    reward = np.array([[1.0, 4.0, 2.0], [5.0, 3.0, 0.0]])
    better = np.array([[2.0, 2.0, 7.0], [1.0, 0.0, np.nan]])
    found = calibration.pairs(reward, better)
    assert sorted(zip(found.row, found.margin, strict=True)) == [(0, -2.0), (0, 1.0), (1, 2.0)]
    assert calibration.pairs(reward, better).of_rows(np.array([False, True])).margin == [2.0]


def test_the_temperature_is_the_best_of_a_fine_grid():
    rng = np.random.default_rng(2)
    margin = rng.normal(1.5, 3.0, 300)
    grid = np.exp(np.linspace(-3, 3, 6001))
    losses = [calibration.measure(margin, temperature=t)["nll"] for t in grid[::10]]
    best = grid[::10][int(np.argmin(losses))]
    found = calibration.fit_temperature(margin)
    assert found == pytest.approx(best, rel=0.01)  # the grid's spacing
    assert calibration.measure(margin, temperature=found)["nll"] <= min(losses)
    assert calibration.measure(margin, temperature=found)["nll"] < losses[300] - 1e-3  # T = 1
    # An overconfident copy needs a temperature as much higher.
    assert calibration.fit_temperature(7 * margin) == pytest.approx(7 * found, rel=1e-9)


def test_temperatures_without_an_optimum_end_at_the_bounds():
    low, high = calibration.TEMPERATURES
    assert calibration.fit_temperature(np.array([1.0, 2.0])) == pytest.approx(low)
    assert calibration.fit_temperature(np.array([-1.0, -2.0])) == pytest.approx(high)
    assert calibration.fit_temperature(np.zeros(0)) == 1.0
    assert all(math.isnan(x) for x in calibration.measure(np.zeros(0)).values())


def test_huge_margins_are_finite():
    found = calibration.measure(np.array([1e4, -1e4]))
    assert found["nll"] == pytest.approx(5e3)
    assert found["ece"] == pytest.approx(0.5)
