"""Hypervolume against random points, and at its edges."""

import numpy as np
import pytest

from alignjax.evaluation import pareto


@pytest.mark.parametrize("objectives", [2, 3])
def test_hypervolume_is_the_share_of_random_points_that_are_dominated(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.normal(size=(12, objectives))
    low, high = np.full(objectives, -1.5), np.full(objectives, 2.0)
    found = pareto.hypervolume(points, low=low, high=high)
    throws = rng.uniform(low, high, (20_000, objectives))
    share = (points[None] >= throws[:, None]).all(axis=2).any(axis=1).mean()
    # Five standard errors of a share of 20,000 throws.
    assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / 20_000)


def test_hypervolume_at_the_edges():
    box = dict(low=np.zeros(2), high=np.ones(2))
    assert pareto.hypervolume(np.array([[-1.0, 5.0]]), **box) == 0  # below low in one objective
    assert pareto.hypervolume(np.array([[3.0, 5.0]]), **box) == 1  # beyond the ideal point
    assert pareto.hypervolume(np.array([[0.5, 0.5], [0.4, 0.4]]), **box) == pytest.approx(0.25)


def test_hypervolume_needs_a_box_with_an_inside():
    with pytest.raises(ValueError, match="objective 1: wanted a range with high > low"):
        pareto.hypervolume(np.ones((2, 2)), low=np.array([0, 1]), high=np.array([2, 1]))
