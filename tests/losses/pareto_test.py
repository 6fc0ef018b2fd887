"""Sorting, crowding and volumes against the definitions, point by point."""

import time

import numpy as np
import pytest

from alignjax.losses import pareto


def dominates(a, b):
    return (a >= b).all() and (a > b).any()


def layers_by_definition(points):
    layer = np.full(len(points), -1)
    for depth in range(len(points)):
        left = np.flatnonzero(layer < 0)
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        layer[front] = depth
    return layer


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
def test_layers_are_those_of_the_definition(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 6, (60, objectives)).astype(float)  # many ties and equal points
    np.testing.assert_array_equal(pareto.layers(points), layers_by_definition(points))


def test_a_hundred_thousand_points_are_sorted_in_seconds():
    points = np.random.default_rng(0).normal(size=(100_000, 3))
    since = time.process_time()
    layer = pareto.layers(points)
    assert time.process_time() - since < 10
    assert layer.min() == 0
    assert layer.max() > 50


def test_crowding_by_hand():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 2.0], [4.0, 0.0]])
    #  (3 - 0) / 4 + (4 - 2) / 4   and   (4 - 1) / 4 + (3 - 0) / 4
    np.testing.assert_allclose(pareto.crowding(points), [np.inf, 1.25, 1.5, np.inf])


def test_crowding_leaves_out_a_constant_objective():
    points = np.array([[0.0, 7.0], [1.0, 7.0], [4.0, 7.0]])
    np.testing.assert_allclose(pareto.crowding(points), [np.inf, 1.0, np.inf])


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


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), r"found \(3,\)"),
        (np.zeros((0, 2)), r"found \(0, 2\)"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "row 1, and 0 more"),
    ],
)
def test_what_is_no_table_of_points_is_refused(points, message):
    for function in (pareto.layers, pareto.crowding):
        with pytest.raises(ValueError, match=message):
            function(points)
