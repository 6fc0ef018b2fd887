"""Where pair and list losses have their minimum, over all rewards that a policy could have.

The rewards of the responses are free here, which is a policy that may choose each of its
probabilities: one gradient step further or a random move away, the loss is larger.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import bradley_terry, dpo, exo, ipo, nca, sppo
from alignjax.testing import loss_inputs

BETA = 0.25
SCORES = np.array([0.3, -1.0, 2.0, 0.7])


@functools.partial(jax.jit, static_argnums=0)
def at(loss, ratio, scores=None):
    """The loss at these log-ratios ``[..., K]``."""
    ratio = jnp.asarray(ratio, float)
    flat = ratio.reshape(-1, ratio.shape[-1])
    rows = None if scores is None else jnp.broadcast_to(scores, flat.shape)
    return loss(*loss_inputs(flat, jnp.zeros(flat.shape), scores=rows))[0].reshape(ratio.shape[:-1])


def is_minimum(loss, ratio, scores=None):
    """No gradient there, and 200 moves of three sizes all lead up."""
    gradient = jax.jit(jax.grad(lambda x: at(loss, x, scores)))(jnp.asarray(ratio, float))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-9)
    rng = np.random.default_rng(0)
    moves = rng.normal(size=(3, 200, len(ratio))) * np.array([0.01, 0.3, 5.0])[:, None, None]
    moves -= moves.mean(axis=-1, keepdims=True)  # what a prompt's responses share may cancel
    assert (at(loss, ratio + moves, scores) > at(loss, ratio, scores)).all()


def softmax(x):
    e = np.exp(x)
    return e / e.sum()


def bound(loss, **keywords):
    return functools.partial(loss, beta=BETA, **keywords)


def test_ipo_stops_at_a_finite_gap():
    gap = 1 / (2 * BETA)
    is_minimum(bound(ipo.loss), np.array([gap, 0.0]))
    # and DPO does not: it falls as far as it is followed
    far = np.array([[1.0, 0.0], [10.0, 0.0], [100.0, 0.0]])
    assert (np.diff(at(bound(dpo.loss), far)) < 0).all()
    assert (np.diff(at(bound(ipo.loss), far[1:])) > 0).all()


@pytest.mark.parametrize("p", [0.6, 0.9, 1.0])
def test_ipo_under_noisy_labels_is_linear_in_the_preference(p):
    """With the chosen response right with probability p the gap is (2 p - 1) / (2 beta)."""

    def expected(logps, batch):
        swapped = logps.replace(policy=logps.policy[:, ::-1], reference=logps.reference[:, ::-1])
        right, wrong = (ipo.loss(x, batch, beta=BETA)[0] for x in (logps, swapped))
        return p * right + (1 - p) * wrong, {}

    is_minimum(expected, np.array([(2 * p - 1) / (2 * BETA), 0.0]))


def test_ipo_spaces_a_list_evenly():
    rank = np.argsort(np.argsort(SCORES))
    is_minimum(bound(ipo.loss_list), rank / (4 * BETA), SCORES)


def test_exo_divides_the_probability_as_the_label_says():
    e = 0.05
    is_minimum(bound(exo.loss, label_smoothing=e), np.array([np.log((1 - e) / e) / BETA, 0.0]))
    is_minimum(bound(exo.loss_list, beta_r=0.5), SCORES / 0.5 / BETA, SCORES)


def test_info_nca_and_exo_share_their_optimum_but_not_their_compromise():
    """Reverse and forward divergence: with one reward too few, one seeks a mode, one covers."""
    is_minimum(bound(nca.loss_info, alpha=0.5), SCORES / 0.5 / BETA, SCORES)
    # Two good responses that the policy cannot both favour: rewards (t, -t, 0, 0).
    scores = np.array([4.0, 3.9, -4.0, -4.0])
    t = np.linspace(-40, 40, 4001)[:, None] * np.array([1.0, -1.0, 0.0, 0.0])
    seeks, covers = (at(bound(f), t, scores).argmin() for f in (exo.loss_list, nca.loss_info))
    assert t[seeks, 0] > 8.0
    assert abs(t[covers, 0]) < 1.0


def test_nca_has_an_optimum_for_each_response_by_itself():
    """r_i = log(K w_i), so that what depends on the prompt alone does not cancel."""
    optimum = np.log(4 * softmax(SCORES / 0.5)) / BETA
    is_minimum(bound(nca.loss_list, alpha=0.5), optimum, SCORES)
    assert at(bound(nca.loss_list, alpha=0.5), optimum + 1, SCORES) > at(
        bound(nca.loss_list, alpha=0.5), optimum, SCORES
    )
    info = bound(nca.loss_info, alpha=0.5)
    np.testing.assert_allclose(at(info, optimum + 1, SCORES), at(info, optimum, SCORES))


def test_nca_holds_the_chosen_response_above_the_reference():
    """The minimum of a pair over the chosen one's reward is log 2; DPO has none and no level."""
    chosen = np.stack([np.linspace(-9, 9, 3601), np.full(3601, -5.0)], axis=1)
    best = BETA * chosen[at(bound(nca.loss), chosen).argmin(), 0]
    assert best == pytest.approx(np.log(2), abs=0.01)
    fallen = np.array([[0.0, -8.0], [-20.0, -28.0]])  # the same gap, lower and lower
    assert np.ptp(at(bound(dpo.loss), fallen)) < 1e-12
    assert np.diff(at(bound(nca.loss), fallen)) > 1.0


def test_sppo_reaches_the_win_rates():
    is_minimum(bound(sppo.loss), np.array([1, -1]) / (2 * BETA))
    wins = 1 / (1 + np.exp(-(SCORES[:, None] - SCORES)))
    is_minimum(bound(sppo.loss_list), (wins.mean(axis=1) - 0.5) / BETA, SCORES)


def test_bradley_terry_recovers_the_rewards_of_those_who_compare():
    """Comparisons answered by a Bradley-Terry judge are fitted best by the judge's own rewards."""
    truth = np.array([0.0, 0.4, 1.1, -0.7])
    pairs = [(w, j) for w in range(4) for j in range(4) if w != j]
    wins = np.array([1 / (1 + np.exp(truth[j] - truth[w])) for w, j in pairs])
    labels = np.full((len(pairs), 4), np.nan)  # one comparison a row
    for row, (w, j) in zip(labels, pairs, strict=True):
        row[[w, j]] = 1.0, 0.0

    def expected(logps, batch):
        n = len(logps.policy)
        _, labelled = loss_inputs(np.zeros((n * 12, 4)), scores=np.tile(labels, (n, 1)))
        model = jnp.repeat(logps.policy, 12, axis=0)
        losses, _ = bradley_terry.reward_loss(model, labelled)
        return (losses.reshape(n, 12) * wins).sum(axis=1), {}

    is_minimum(expected, truth)
