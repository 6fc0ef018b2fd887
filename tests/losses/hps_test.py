"""Ties in the loss; what select keeps, draws and refuses; the curriculum."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import hps
from alignjax.testing import loss_inputs
from tests.losses import checks


def lists(k=5, b=16, seed=0):
    rng = np.random.default_rng(seed)
    policy, reference = rng.uniform(-30, 0, (2, b, k))
    return policy, reference, rng.normal(size=(b, k))


def test_full_expectation_leaves_out_ties_with_the_best_and_absent_responses():
    policy, reference, scores = lists(k=5)
    scores[:, 3] = scores[:, 4] = scores[:, :3].max(axis=1)  # tied; 4 is absent besides
    length = np.ones((16, 5), int)
    length[:, 4] = 0
    losses, metrics = hps.loss_full(*loss_inputs(policy, reference, scores=scores, length=length))
    short = hps.loss_full(*loss_inputs(policy[:, :3], reference[:, :3], scores=scores[:, :3]))
    np.testing.assert_allclose(losses, short[0], rtol=1e-5)
    np.testing.assert_array_equal(metrics["negatives"], 2.0)


def test_select_keeps_the_best_and_one_drawn_negative_with_all_they_carry():
    _, batch = checks.make(4)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(4), (checks.B, 1)), axis=1)
    best = np.argmax(order == 0, axis=1)

    def moved(x):
        return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)

    fields = ("response", "response_length", "scores", "desirable", "ref_logps")
    batch = batch.replace(ref_logps=batch.scores * 3 - 10, drawn_from=None)
    batch = batch.replace(**{f: moved(getattr(batch, f)) for f in fields})

    pair = jax.jit(hps.select)(jax.random.key(1), batch, gamma=1.0)

    drawn = np.argmax(np.asarray(batch.scores) == np.asarray(pair.scores)[:, 1:], axis=1)
    assert (drawn != best).all()
    assert len(set(drawn)) > 1
    for field in fields:
        taken = np.stack(
            [np.asarray(getattr(batch, field))[np.arange(checks.B), i] for i in (best, drawn)], 1
        )
        np.testing.assert_array_equal(getattr(pair, field), taken, err_msg=field)
    np.testing.assert_array_equal(pair.drawn_from, 3)
    np.testing.assert_array_equal(pair.weight, batch.weight)
    np.testing.assert_array_equal(pair.prompt_id, batch.prompt_id)


def test_what_is_no_negative_is_never_drawn():
    """Absent, tied with the best, not finite: drawn by none of 500 prompts; N is right."""
    scores = np.tile([0.5, 2.0, 9.0, 2.0, np.nan, -1.0], (500, 1))
    length = np.tile([1, 1, 0, 1, 1, 1], (500, 1))
    _, batch = loss_inputs(np.zeros((500, 6)), scores=scores, length=length)
    pair = hps.select(jax.random.key(0), batch, gamma=0.0)
    assert set(np.unique(pair.scores[:, 1])) == {0.5, -1.0}
    np.testing.assert_array_equal(pair.scores[:, 0], 2.0)
    np.testing.assert_array_equal(pair.drawn_from, 2)


def test_a_prompt_without_a_negative_gets_weight_0():
    scores = np.array([[1.0, 1.0, 1.0], [3.0, 1.0, 2.0], [1.0, 5.0, 5.0], [5.0, 5.0, np.nan]])
    length = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    logps, batch = loss_inputs(np.zeros((4, 3)), np.zeros((4, 3)), scores=scores, length=length)
    pair = hps.select(jax.random.key(0), batch, gamma=2.0)
    np.testing.assert_array_equal(pair.weight, [0.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(pair.drawn_from, [0, 2, 0, 0])
    logps = logps.replace(
        policy=logps.policy[:, :2], reference=logps.reference[:, :2], length=pair.response_length
    )
    result = checks.compiled(hps.loss)(logps, pair)
    chex.assert_tree_all_finite(result)
    np.testing.assert_allclose(result.mean, np.log(3), rtol=1e-6)  # the second prompt alone


def test_errors_say_what_to_change():
    single = loss_inputs(np.zeros((2, 1)), np.zeros((2, 1)), scores=np.zeros((2, 1)))
    pairs = loss_inputs(np.zeros((2, 2)), np.zeros((2, 2)))
    many = loss_inputs(np.zeros((2, 3)), np.zeros((2, 3)), scores=np.zeros((2, 3, 2)))
    for (_, batch), message in ((single, "at least 2"), (pairs, "`scores`"), (many, "M]")):
        with pytest.raises(ValueError, match=message):
            hps.select(jax.random.key(0), batch, gamma=0.0)
    with pytest.raises(ValueError, match="at least 1 step, found 0"):
        hps.curriculum().over(0)
    with pytest.raises(ValueError, match="plateaus >= 2 or None, found 1"):
        hps.curriculum(plateaus=1)
    with pytest.raises(ValueError, match=r"score_sd: wanted .* > 0, found 0\.0"):
        hps.loss_full(*loss_inputs([[0, 0]], [[0, 0]], scores=[[1, 0]]), score_sd=0.0)


def schedule(steps, **settings):
    """Gamma at every step of a run, and once more after it."""
    return jax.vmap(hps.curriculum(**settings).over(steps))(jnp.arange(steps + 1))


@pytest.mark.parametrize("steps", [5, 7, 30, 83, 1000])
def test_curriculum_has_the_published_plateaus_over_the_whole_run(steps):
    """-5, -3, -1, 1, 3, each for a fifth of the steps, however many those are."""
    wanted = [-5 + 2 * (step * 5 // steps) for step in range(steps)]
    np.testing.assert_allclose(schedule(steps), [*wanted, 3.0], rtol=1e-6)


def test_curriculum_ends_at_stop_in_the_last_step():
    np.testing.assert_allclose(schedule(5, stop=5.0)[:5], [-5, -2.5, 0, 2.5, 5], rtol=1e-6)
    linear = schedule(100, start=-2.0, stop=4.0, plateaus=None)
    np.testing.assert_allclose(linear, [*np.linspace(-2, 4, 100), 4.0], rtol=1e-5, atol=1e-6)


def test_hardness_metrics_are_those_of_q():
    """Q by hand: (1/2, 1/4, 1/4); one of two; none; uniform with a tie for the hardest."""
    scores = np.array(
        [
            [9.0, 2 * np.log(2.0), 0.0, 0.0],
            [9.0, 1.0, 1.0, 9.0],
            [9.0, 9.0, 9.0, 9.0],
            [9.0, 0.0, 0.0, -2e9],
        ]
    )
    _, batch = loss_inputs(np.zeros((4, 4)), scores=scores)
    found = hps.select(jax.random.key(0), batch, gamma=1.0, score_sd=2.0).select_metrics
    np.testing.assert_allclose(found["negatives/effective"], [2**1.5, 2, 0, 2], rtol=1e-6)
    np.testing.assert_allclose(found["negatives/p_hardest"], [0.5, 1, 0, 1], rtol=1e-6)
    even = hps.select(jax.random.key(0), batch, gamma=0.0).select_metrics
    np.testing.assert_allclose(even["negatives/effective"], [3, 2, 0, 3], rtol=1e-6)
    np.testing.assert_allclose(even["negatives/p_hardest"], [1 / 3, 1, 0, 2 / 3], rtol=1e-6)
    case = loss_inputs(np.zeros((4, 4)), np.zeros((4, 4)), scores=scores)
    full = hps.loss_full(*case, gamma=1.0, score_sd=2.0)[1]
    assert {name: full[name].tolist() for name in found} == {
        name: x.tolist() for name, x in found.items()
    }


def test_the_published_unit_of_gamma_is_the_score():
    """score_sd=1 is Eq. 9 on raw scores, bit for bit."""
    policy, reference, scores = lists()
    case = loss_inputs(policy, reference, scores=scores)
    for loss in (hps.loss_full, hps.loss_two_valid):
        raw = loss(*case, gamma=1.3)[0]
        np.testing.assert_array_equal(loss(*case, gamma=1.3, score_sd=1.0)[0], raw)
        assert (np.abs(loss(*case, gamma=1.3, score_sd=0.1)[0] - raw) > 1e-6).any()
