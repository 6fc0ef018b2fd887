"""Sorting and crowding against the definitions, point by point."""

import time

import numpy as np
import pytest

from alignjax.losses import paretohqd


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
    np.testing.assert_array_equal(paretohqd.layers(points), layers_by_definition(points))


def test_a_hundred_thousand_points_are_sorted_in_seconds():
    points = np.random.default_rng(0).normal(size=(100_000, 3))
    since = time.process_time()
    layer = paretohqd.layers(points)
    assert time.process_time() - since < 10
    assert layer.min() == 0
    assert layer.max() > 50


def test_crowding_by_hand():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 2.0], [4.0, 0.0]])
    #  (3 - 0) / 4 + (4 - 2) / 4   and   (4 - 1) / 4 + (3 - 0) / 4
    np.testing.assert_allclose(paretohqd.crowding(points), [np.inf, 1.25, 1.5, np.inf])


def test_crowding_leaves_out_a_constant_objective():
    points = np.array([[0.0, 7.0], [1.0, 7.0], [4.0, 7.0]])
    np.testing.assert_allclose(paretohqd.crowding(points), [np.inf, 1.0, np.inf])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros(3), r"found \(3,\)"),
        (np.zeros((0, 2)), r"found \(0, 2\)"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), "row 1, and 0 more"),
    ],
)
def test_what_is_no_table_of_points_is_refused(points, message):
    for function in (paretohqd.layers, paretohqd.crowding):
        with pytest.raises(ValueError, match=message):
            function(points)
