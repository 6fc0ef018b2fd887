"""Curation: geometry against the formulas, and the claim that it finds the inside of a front."""

import logging
import time

import numpy as np
import pytest

from alignjax.data.records import DataReport
from alignjax.losses import paretohqd
from alignjax.world import sources as world

ELEVEN = [(i / 10, 1 - i / 10) for i in range(11)]


def convex_front(count):
    """Points of r2 = (1 - sqrt r1)^2, which bends towards the origin."""
    first = np.linspace(0, 1, count) ** 2
    return np.stack([first, (1 - np.sqrt(first)) ** 2], axis=1)


def test_on_a_non_concave_front_directions_find_the_inside_and_scalarisation_the_ends():
    front = convex_front(201)
    scalarised = set(paretohqd.curate_linear(front, preferences=ELEVEN, size=1)[:, 0].tolist())
    assert scalarised == {0, 200}
    found = paretohqd.curate(front, preferences=ELEVEN, size=1)[:, 0].tolist()
    assert len(set(found)) == 11
    assert found[0] == 0
    assert found[-1] == 200
    # Asking for more of the first objective gives more of it.
    assert (np.diff(front[found, 0]) > 0).all()


def test_distance_is_that_to_the_line_through_ideal_and_compromise_point():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 3)) * [1.0, 10.0, 0.1]
    weights = np.array([0.2, 0.5, 0.3])
    found = paretohqd.distances(scores, [tuple(weights)])[0]
    high, low = scores.max(0), scores.min(0)
    span = high - low
    compromise = low + weights * span
    for row, distance in zip(scores, found, strict=True):
        # The nearest point of the line, by a search along it, in units of the ranges.
        steps = np.linspace(-0.5, 3, 200_001)[:, None]
        line = (high - row) / span + steps * (compromise - high) / span
        assert distance == pytest.approx(np.linalg.norm(line, axis=1).min(), abs=1e-5)


def test_units_of_an_objective_do_not_matter():
    scores = np.random.default_rng(1).normal(size=(500, 3))
    ask = dict(preferences=[(0.3, 0.3, 0.4)], size=20)
    first = paretohqd.curate(scores, **ask)
    np.testing.assert_array_equal(first, paretohqd.curate(scores * [2, 64, 0.5] + 8, **ask))


def test_only_the_best_layers_are_chosen_from():
    scores = np.random.default_rng(2).normal(size=(2000, 2))
    layer = paretohqd.layers(scores)
    chosen = paretohqd.curate(scores, preferences=[(0.5, 0.5)], size=10)[0]
    depth = int(np.searchsorted(np.cumsum(np.bincount(layer)), 100)) + 1
    assert layer[chosen].max() < depth
    nearest = np.argsort(paretohqd.distances(scores, [(0.5, 0.5)])[0])[:10]
    assert layer[nearest].max() >= depth  # without the layers it would choose others
    first = paretohqd.curate(scores, preferences=[(0.5, 0.5)], size=3, depth=1)[0]
    assert (layer[first] == 0).all()


def test_ties_in_distance_go_to_the_lonelier_response():
    #  Rows 1 and 2 mirror each other about the diagonal; the neighbours of row 2 are closer.
    scores = np.array([[0, 1], [0.4, 0.8], [0.8, 0.4], [0.75, 0.45], [1, 0]])
    distance = paretohqd.distances(scores, [(0.5, 0.5)])[0]
    assert distance[1] == pytest.approx(distance[2])
    order = list(paretohqd.curate(scores, preferences=[(1, 1)], size=5, depth=1)[0])
    assert order.index(1) < order.index(2)


def test_ten_thousand_rows_and_eleven_preferences_take_seconds():
    scores = np.random.default_rng(3).normal(size=(10_000, 3))
    weights = np.random.default_rng(4).dirichlet(np.ones(3), 11)
    since = time.process_time()
    found = paretohqd.curate(scores, preferences=weights, size=100)
    assert found.shape == (11, 100)
    assert time.process_time() - since < 5


def test_a_constant_objective_is_dropped_with_a_line(caplog):
    scores = np.random.default_rng(5).normal(size=(300, 3))
    scores[:, 1] = 4.0
    logger = logging.getLogger("alignjax")
    logger.addHandler(caplog.handler)
    try:
        with_it = paretohqd.curate(scores, preferences=[(0.25, 0.5, 0.25)] * 2, size=9, depth=3)
    finally:
        logger.removeHandler(caplog.handler)
    assert "objective 1 has one value, 4.0, in all 300 rows: dropped" in caplog.text
    without = paretohqd.curate(scores[:, [0, 2]], preferences=[(0.5, 0.5)] * 2, size=9, depth=3)
    np.testing.assert_array_equal(with_it, without)


def test_with_one_objective_left_the_best_are_chosen():
    scores = np.stack([np.zeros(50), np.random.default_rng(6).permutation(50)], axis=1)
    for curate in (paretohqd.curate, paretohqd.curate_linear):
        (chosen,) = curate(scores, preferences=[(0.5, 0.5)], size=3)
        assert list(scores[chosen, 1]) == [49, 48, 47]


def test_linear_scalarisation_takes_the_largest_sums_in_units_of_the_ranges():
    scores = np.random.default_rng(7).normal(size=(200, 3)) * [1.0, 50.0, 0.1]
    asked = [(0.2, 0.5, 0.3), (0.0, 0.0, 1.0)]
    low, high = scores.min(0), scores.max(0)
    found = paretohqd.curate_linear(scores, preferences=asked, size=5)
    for rows, weights in zip(found, asked, strict=True):
        sums = sum(weights[m] * (scores[:, m] - low[m]) / (high[m] - low[m]) for m in range(3))
        np.testing.assert_array_equal(rows, np.argsort(-sums)[:5])


@pytest.mark.parametrize(
    ("preference", "message"),
    [
        ((0.5, -0.5), "wanted weights >= 0"),
        ((0.0, 0.0), "not all 0"),
        ((0.5, float("nan")), "wanted weights >= 0"),
        ((1.0,), "wanted 2 weights, one per objective"),
    ],
)
def test_bad_preferences_are_refused(preference, message):
    for curate in (paretohqd.curate, paretohqd.curate_linear):
        with pytest.raises(ValueError, match=message):
            curate(convex_front(20), preferences=[(0.5, 0.5), preference], size=1)


def test_too_few_rows_are_refused_with_their_number_and_preference():
    with pytest.raises(
        ValueError, match=r"wanted 30 .* preference \(1, 1\), found 20 in the data,"
    ):
        paretohqd.curate(convex_front(20), preferences=[(1, 1)], size=30)
    with pytest.raises(ValueError, match="found 20 in the first 1 layers"):
        paretohqd.curate(convex_front(20), preferences=[(1, 1)], size=30, depth=1)
    with pytest.raises(
        ValueError, match=r"wanted 30 .* preference \(1, 1\), found 20 in the data$"
    ):
        paretohqd.curate_linear(convex_front(20), preferences=[(1, 1)], size=30)
    with pytest.raises(ValueError, match="at least 2 objectives, found 1"):
        paretohqd.curate(np.ones((5, 1)), preferences=[(1,)], size=1)
    with pytest.raises(ValueError, match="wanted at least one, found none"):
        paretohqd.curate(convex_front(20), preferences=[], size=1)


def test_prompts_without_a_conflict_fill_the_best_layers():
    """The world's helpful and harmless scores: only risky prompts make them be at odds."""
    names = ("helpful", "harmless")
    rows = list(world.lists(DataReport(), size=6000, seed=0, responses=4, objectives=names))
    scores = np.array([x for row in rows for x in row.scores])
    domain = np.repeat([row.domain for row in rows], 4)
    found = paretohqd.curate(scores, [(i / 4, 1 - i / 4) for i in range(5)], 100)
    inner = {tuple(own) for own in found[1:4]}
    assert len(inner) == 1
    assert set(domain[list(inner.pop())]) == {"benign"}
