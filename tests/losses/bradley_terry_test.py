"""The metrics of a reward model; which pair a select keeps or draws, and which it voids."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from alignjax.losses import bradley_terry
from alignjax.testing import loss_inputs


def test_metrics_of_a_reward_model():
    _, batch = loss_inputs(np.zeros((1, 3)), scores=[[1.0, 3.0, 2.0]])
    _, metrics = bradley_terry.reward_loss(jnp.array([[0.5, 1.0, 4.0]]), batch)
    wanted = {"chosen": 1.0, "rejected": 2.25, "margins": -1.25, "accuracies": 0.5}
    assert {k.removeprefix("rewards/"): float(v[0]) for k, v in metrics.items()} == wanted


SCORES = [
    [0.5, 2.0, 9.0, 2.0, np.nan, -1.0],  # 9 is absent
    [1.0, 1.0, 0.0, 1.0, np.inf, 0.0],
    [3.0, 3.0, 9.0, 3.0, np.nan, 3.0],  # all that take part tie
    [np.nan, np.nan, 1.0, np.nan, np.nan, 5.0],  # only one takes part
]


def lists(repeat=1):
    scores = np.repeat(np.array(SCORES), repeat, axis=0)
    length = np.tile([1, 1, 0, 1, 1, 1], (len(scores), 1))
    return loss_inputs(np.zeros(scores.shape), scores=scores, length=length)[1]


def test_select_keeps_the_best_and_the_worst():
    pair = bradley_terry.select(jax.random.key(0), lists())
    np.testing.assert_array_equal(pair.scores[:2], [[2.0, -1.0], [1.0, 0.0]])
    np.testing.assert_array_equal(pair.weight, [1.0, 1.0, 0.0, 0.0])
    assert pair.drawn_from is None
    # All that a response carries goes with it: the response of score 10 j has the tokens j.
    _, batch = loss_inputs(np.zeros((1, 4)), scores=[[20.0, 0.0, 30.0, 10.0]])
    batch = batch.replace(response=jnp.array([[[2], [0], [3], [1]]]))
    np.testing.assert_array_equal(
        bradley_terry.select(jax.random.key(0), batch).response, [[[3], [0]]]
    )


def test_random_pairs_are_ordered_and_equally_likely():
    """Chi-square over 4,000 prompts a row, p above 1e-3; ties, absent and unscored never appear."""
    n = 4_000
    pair = jax.jit(bradley_terry.select_random)(jax.random.key(3), lists(n))
    drawn = [tuple(x) for x in np.asarray(pair.scores[:n])]
    # Row 0 holds 0.5, 2 (twice) and -1: five ordered pairs of different scores.
    wanted = {(0.5, -1.0): 1, (2.0, 0.5): 2, (2.0, -1.0): 2}
    counts = [drawn.count(x) for x in wanted]
    assert sum(counts) == n
    shares = np.array(list(wanted.values())) / 5
    assert scipy.stats.chisquare(counts, n * shares).pvalue > 1e-3
    assert scipy.stats.chisquare(counts, n * np.full(3, 1 / 3)).pvalue < 1e-3
    np.testing.assert_array_equal(
        pair.weight.reshape(4, n).T, np.tile([1.0, 1.0, 0.0, 0.0], (n, 1))
    )
    np.testing.assert_array_equal(pair.scores[n : 2 * n], np.tile([1.0, 0.0], (n, 1)))
