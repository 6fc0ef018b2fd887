"""Where the game of Adversarial Preference Optimization leads, in a world of a few responses.

One prompt, V responses, so that expectations are sums over all draws and every optimum has a
closed form. Rewards are free numbers and the policy a softmax of free logits.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.losses import apo, dpo
from alignjax.testing import loss_inputs
from alignjax.training import game
from alignjax.training.step import Update, init_state, reward_scores
from alignjax.types import GameState

V = 4
GOLD = np.array([0.4, 0.3, 0.2, 0.1])
THETA = np.array([0.15, 0.25, 0.2, 0.4])
ALL_PAIRS = np.array(list(itertools.product(range(V), repeat=2)))


def centred(x):
    return x - np.mean(x)


def close(x, wanted):
    """What is learned by descent, to where the descent stops."""
    np.testing.assert_allclose(x, wanted, rtol=1e-6, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def descend(value, start, *args):
    """2,000 steps of gradient descent at rate 2: each of the problems below is flat by then."""

    def body(x, _):
        return x - 2.0 * jax.grad(value)(x, *args), None

    return jax.lax.scan(body, start, length=2000)[0]


def adversarial(reward, gold, theta, *, loss=apo.reward_loss):
    """The expected reward loss of y ~ gold against an independent y' ~ theta."""
    scores = reward[ALL_PAIRS]
    _, batch = loss_inputs(scores, adversarial=np.ones(len(ALL_PAIRS)))
    weight = gold[ALL_PAIRS[:, 0]] * theta[ALL_PAIRS[:, 1]]
    return jnp.sum(weight * loss(scores, batch, sample_weight=1.0)[0])


def policy_value(logits, reward, reference, beta, *, k=2, drawn_from=None, loss=apo.loss):
    """The expected policy loss over all ways to draw k samples, on-policy unless said."""
    logps = jax.nn.log_softmax(logits)
    draws = np.array(list(itertools.product(range(len(reward)), repeat=k)))
    source = logps if drawn_from is None else jnp.log(drawn_from)
    probability = jax.lax.stop_gradient(jnp.exp(source[draws].sum(axis=1)))
    case = loss_inputs(logps[draws], jnp.log(reference)[draws], scores=reward[draws])
    return jnp.sum(probability * loss(*case, beta=beta)[0])


def best_reward(gold, theta):
    return np.asarray(descend(adversarial, jnp.zeros(V), jnp.asarray(gold), jnp.asarray(theta)))


def best_policy(reward, reference, beta):
    case = jnp.log(reference), jnp.asarray(reward), jnp.asarray(reference), beta
    return np.asarray(jax.nn.softmax(descend(policy_value, *case)))


def tilted(reference, reward, beta):
    weight = reference * np.exp(reward / beta)
    return weight / weight.sum()


# The reward model


def test_the_reward_model_learns_the_log_ratio_of_golden_and_sampled():
    close(centred(best_reward(GOLD, THETA)), centred(np.log(GOLD / THETA)))


def test_at_the_golden_distribution_there_is_nothing_to_learn():
    np.testing.assert_allclose(best_reward(GOLD, GOLD), 0.0, atol=1e-12)
    assert np.abs(best_reward(GOLD, THETA)).max() > 0.1


def test_the_difference_form_alone_falls_without_end():
    direction = np.log(GOLD / THETA)
    value = jax.jit(functools.partial(adversarial, loss=apo.reward_loss_diff))
    falls = [float(value(jnp.asarray(t * direction), GOLD, THETA)) for t in (1.0, 1e3, 1e6)]
    slope = -((GOLD - THETA) @ direction)
    np.testing.assert_allclose(falls, slope * np.array([1.0, 1e3, 1e6]), rtol=1e-9)
    assert slope < 0
    ranked = adversarial(jnp.asarray(1e3 * direction), GOLD, THETA)
    assert ranked > 0  # the ranking form is bounded by 0


@pytest.mark.parametrize(("pair_weight", "bounded"), [(1.0, True), (0.5, True), (0.3, False)])
def test_human_pairs_bound_the_difference_form_where_they_weigh_enough(pair_weight, bounded):
    """Two responses, golden with probabilities (q, 1 - q) more or less often, human win rate 0.6.

    In x = r_0 - r_1 the loss is -d x + w [0.6 sp(-x) + 0.4 sp(x)]: least at sigma(x) = 0.6 + d / w
    if that is below 1, else unbounded.
    """
    d, rate = 0.15, 0.6
    gold, theta = np.array([0.7, 0.3]), np.array([0.7 - d, 0.3 + d])
    pairs = np.array(list(itertools.product(range(2), repeat=2)))

    @jax.jit
    def value(x):
        reward = jnp.array([x, 0.0])
        scores = reward[np.concatenate([pairs, [[0, 1], [1, 0]]])]
        _, batch = loss_inputs(scores, adversarial=np.arange(6) < 4)
        losses = apo.reward_loss_diff(scores, batch, pair_weight=pair_weight, sample_weight=1.0)[0]
        weight = np.append(gold[pairs[:, 0]] * theta[pairs[:, 1]], [rate, 1 - rate])
        return jnp.sum(weight * losses)

    x = jnp.linspace(-60.0, 60.0, 241)
    values = jax.vmap(value)(x)
    target = rate + d / pair_weight
    assert (target < 1) == bounded
    if bounded:
        best = jnp.log(target / (1 - target))
        np.testing.assert_allclose(jax.grad(value)(best), 0.0, atol=1e-12)
        assert (values >= value(best)).all()
    else:
        assert (np.diff(values) < 0).all()


# The policy


def game_value(logits, reward, reference, beta):
    """E[r] - beta KL, exactly."""
    logps = jax.nn.log_softmax(logits)
    return jnp.exp(logps) @ (reward - beta * (logps - jnp.log(reference)))


@pytest.mark.parametrize("k", [2, 3])
def test_the_policy_gradient_is_unbiased(k):
    """Over all V^k draws its mean is the gradient of E[r] - beta KL, and its loss that value."""
    reward, logits = jnp.array([1.0, -0.5, 2.0, 0.3]), jnp.log(THETA) + jnp.arange(4.0) / 3
    case = reward, jnp.asarray(GOLD), 0.4
    value, gradient = jax.value_and_grad(game_value)(logits, *case)
    found = jax.value_and_grad(functools.partial(policy_value, k=k))
    np.testing.assert_allclose(found(logits, *case)[0], -value, rtol=1e-9)
    np.testing.assert_allclose(found(logits, *case)[1], -gradient, rtol=1e-9)

    def own_baseline(logps, batch, *, beta):  # the mean over all k, the sample itself included
        losses, metrics = apo.loss(logps, batch, beta=beta)
        return losses * (k - 1) / k, metrics

    own = jax.grad(functools.partial(policy_value, k=k, loss=own_baseline))(logits, *case)
    np.testing.assert_allclose(own, -gradient * (k - 1) / k, rtol=1e-9)
    # Samples of another policy: not the gradient of anything here, as the docstring says.
    old = jax.grad(functools.partial(policy_value, k=k, drawn_from=jnp.asarray(THETA)))
    assert np.abs(np.asarray(old(logits, *case) + gradient)).max() > 1e-2


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_policy_becomes_the_reference_tilted_by_the_reward(beta):
    reward = np.array([1.0, -0.5, 0.4, 0.3])
    close(best_policy(reward, THETA, beta), tilted(THETA, reward, beta))


@pytest.mark.parametrize("w", [(1.0, 0.0), (0.3, 0.7)])
def test_a_preferences_policy_is_tilted_by_the_weighted_rewards(w):
    """MORLHF's optimum; it is also the product of the single objectives' policies to the w_k."""
    rewards, beta = np.array([[1.0, -0.5, 0.4, 0.3], [0.0, 0.8, -0.2, 0.1]]), 0.5
    found = best_policy(np.array(w) @ rewards, THETA, beta)
    close(found, tilted(THETA, w[0] * rewards[0] + w[1] * rewards[1], beta))
    each = np.array([best_policy(r, THETA, beta) for r in rewards])
    product = np.exp(np.array(w) @ np.log(each))
    close(found, product / product.sum())


def test_dpo_has_that_optimum_with_sampled_labels_and_none_with_hard_ones():
    """Labels drawn from sigma(r_i - r_j), enumerated, against the larger reward always winning."""
    reward, beta = np.array([1.0, -0.5, 0.4, 0.3]), 0.7
    pairs = np.array(list(itertools.permutations(range(V), 2)))
    lead = reward[pairs[:, 0]] - reward[pairs[:, 1]]

    def value(logits, weight):
        policy = jax.nn.log_softmax(logits)[pairs]
        case = loss_inputs(policy, np.log(THETA)[pairs])
        return jnp.sum(weight * dpo.loss(*case, beta=beta)[0]) / len(pairs)

    sampled, hard = 1 / (1 + np.exp(-lead)), (lead > 0) * 1.0
    wanted = tilted(THETA, reward, beta)
    start = jnp.log(THETA)
    close(jax.nn.softmax(descend(value, start, jnp.asarray(sampled))), wanted)
    assert np.abs(jax.grad(value)(jnp.log(wanted), hard)).max() > 1e-2
    order = jnp.asarray(np.argsort(np.argsort(reward)), float)
    falls = [float(value(start + t * order, hard)) for t in (0.0, 10.0, 100.0, 1000.0)]
    assert (np.diff(falls) < 0).all()
    assert falls[-1] < 1e-12


# The game


@pytest.mark.parametrize("beta", [0.5, 0.75, 1.0, 2.0])
def test_a_round_leaves_one_minus_one_over_beta_of_the_distance(beta):
    """Reward model, then policy, each to its optimum, the old policy the reference.

    The distance is log p_gold / p_theta. So beta = 1 arrives in one round, a larger beta gets part
    of the way, a smaller one overshoots, and at 0.5 the next round would lead back.
    """
    after = best_policy(best_reward(GOLD, THETA), THETA, beta)
    distance = centred(np.log(GOLD / THETA))
    close(centred(np.log(GOLD / after)), (1 - 1 / beta) * distance)
    if beta == 1.0:
        close(after, GOLD)
    if beta == 0.5:
        close(best_policy(best_reward(GOLD, after), after, beta), THETA)


def test_the_golden_policy_is_a_fixed_point():
    for beta in (0.5, 2.0):
        after = best_policy(best_reward(GOLD, GOLD), GOLD, beta)
        np.testing.assert_allclose(after, GOLD, rtol=1e-9)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_alternating_against_a_fixed_reference_settles_between_it_and_the_golden_one(beta):
    """Step by step, both of `game`'s steps, each on all of its draws: p_gold is not the end.

    The reward model's optimum is log p_gold / pi and the policy's pi_ref exp(r / beta), so the pair
    of both has log pi = (beta log pi_ref + log p_gold) / (1 + beta) up to a constant.
    """
    optimizer = optax.sgd(1.0)
    pairs = jnp.asarray(ALL_PAIRS)

    def reward_apply(params, batch):
        return params[batch.response[..., 0]]

    def policy_apply(params, batch):
        return reward_apply(jax.nn.log_softmax(params), batch)

    _, batch = loss_inputs(np.zeros(pairs.shape), adversarial=np.ones(len(pairs)))
    batch = batch.replace(response=pairs[..., None])
    reference = jnp.log(THETA)

    def turns(state, _):
        theta = jax.nn.softmax(state.policy.params)
        first, second = (
            batch.replace(weight=x[pairs[:, 0]] * theta[pairs[:, 1]])
            for x in (jnp.asarray(GOLD), theta)
        )
        ranking = functools.partial(apo.reward_loss, sample_weight=1.0)
        update = Update(
            apply=reward_apply, optimizer=optimizer, loss=ranking, forward=reward_scores
        )
        state, _ = game.reward_step(state, None, first, update)
        ascent = functools.partial(apo.loss, beta=beta)
        state, _ = game.policy_step(
            state,
            reference,
            second,
            Update(apply=policy_apply, optimizer=optimizer, loss=ascent),
            reward=update,
        )
        return state, None

    policy, reward = (
        init_state(x, optimizer, jax.random.key(0)) for x in (reference, jnp.zeros(V))
    )
    state = GameState(policy=policy, reward=reward)
    state = jax.jit(lambda state: jax.lax.scan(turns, state, length=3000)[0])(state)
    found = np.asarray(jax.nn.softmax(state.policy.params))
    wanted = THETA ** (beta / (1 + beta)) * GOLD ** (1 / (1 + beta))
    # The step adds up in float32, some 1e-7 a gradient, over curvatures down to 0.05.
    np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-5)
