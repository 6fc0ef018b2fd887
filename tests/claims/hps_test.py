"""What the HPS paper states, as programs: Eq. 6-10, the draw, the curvature and the limits.

"Enumerated" tests go over every negative that could be drawn and weigh it by q: they are exact.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from alignjax.losses import dpo, hps, plackett_luce
from alignjax.testing import loss_inputs

N = 6  # negatives per list
B = 12


def lists(seed=0, *, comonotone=False):
    """Rewards [B, N + 1] (nats, beta is 1) and scores, in no order; best and q by NumPy."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(0, 1.5, (B, N + 1))
    scores = reward * 0.7 + 2.0 if comonotone else rng.normal(0, 1, (B, N + 1))
    return reward, scores


def q_of(scores, gamma):
    """``[B, N + 1]`` Eq. 9, 0 for the best response."""
    weight = np.exp(gamma * (scores - scores.max(axis=1, keepdims=True)))
    weight[np.arange(len(scores)), scores.argmax(axis=1)] = 0.0
    return weight / weight.sum(axis=1, keepdims=True)


def full(reward, scores, gamma):
    """Eq. 8 with its expectation, over rewards instead of log-probabilities."""
    case = loss_inputs(reward - 20, np.full(reward.shape, -20.0), scores=scores)
    return np.asarray(hps.loss_full(*case, beta=1.0, gamma=gamma)[0])


def enumerated(loss, reward, scores):
    """``[B, N + 1]`` the loss of each pair (best, i); what q gives weight 0 is to be ignored."""
    out = []
    for i in range(N + 1):
        pair = np.stack([_best(reward, scores), reward[:, i]], axis=1)
        out.append(loss(*loss_inputs(pair, np.zeros_like(pair), drawn_from=np.full(B, N)))[0])
    return np.stack(out, axis=1)


def _best(reward, scores):
    return reward[np.arange(len(reward)), scores.argmax(axis=1)]


def one_draw(*case):
    return hps.loss(*case, beta=1.0)


def published(*case):
    return hps.loss_published(*case, beta=1.0, label_smoothing=0.0)


# Eq. 6 to 10


def test_gamma_0_is_top_1_plackett_luce():
    reward, scores = lists()
    case = loss_inputs(reward, np.zeros_like(reward), scores=scores)
    expected = plackett_luce.loss_top1(*case, beta=1.0)[0]
    np.testing.assert_allclose(full(reward, scores, 0.0), expected, rtol=1e-12)
    assert not np.allclose(full(reward, scores, 0.1), expected, rtol=1e-6)


@pytest.mark.parametrize(("gamma", "pick"), [(1e4, np.argmax), (-1e4, np.argmin)])
def test_gamma_to_infinity_leaves_the_hardest_and_to_minus_infinity_the_easiest(gamma, pick):
    reward, scores = lists()
    ranked = np.where(scores == scores.max(axis=1, keepdims=True), -np.sign(gamma) * np.inf, scores)
    remaining = reward[np.arange(B), pick(ranked, axis=1)]
    expected = np.logaddexp(0, np.log(N) + remaining - _best(reward, scores))
    np.testing.assert_allclose(full(reward, scores, gamma), expected, rtol=1e-9)

    _, batch = loss_inputs(reward, scores=scores)
    drawn = hps.select(jax.random.key(0), batch, gamma=gamma).scores[:, 1]
    np.testing.assert_array_equal(drawn, scores[np.arange(B), pick(ranked, axis=1)])


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 2.0])
def test_one_draw_is_unbiased_for_the_inner_expectation(gamma):
    """Enumerated: E_s[N exp(r_s)] = N E_q[exp(r)]; expm1 of a loss is that over exp(r_1)."""
    reward, scores = lists()
    inner = np.expm1(enumerated(one_draw, reward, scores))
    expected = (q_of(scores, gamma) * inner).sum(axis=1)
    np.testing.assert_allclose(expected, np.expm1(full(reward, scores, gamma)), rtol=1e-10)


@pytest.mark.parametrize("gamma", [-1.0, 0.0, 1.0])
def test_sampled_draws_agree_with_the_inner_expectation(gamma):
    """The same through select: the mean over 40,000 prompts within 4 standard errors."""
    n = 40_000
    reward, scores = (x[:1] for x in lists())
    _, batch = loss_inputs(np.repeat(reward, n, 0), scores=np.repeat(scores, n, 0))
    drawn = np.asarray(hps.select(jax.random.key(3), batch, gamma=gamma).scores[:, 1])
    index = np.argmax(drawn[:, None] == scores, axis=1)
    inner = N * np.exp(reward[0, index])
    expected = np.expm1(full(reward, scores, gamma)) * np.exp(_best(reward, scores))
    error = inner.std() / np.sqrt(n)
    assert abs(inner.mean() - expected[0]) < 4 * error
    other = np.expm1(full(reward, scores, gamma + 0.5)) * np.exp(_best(reward, scores))
    assert abs(inner.mean() - other[0]) > 4 * error  # and it can tell gammas apart


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 2.0])
def test_mean_loss_of_one_draw_is_at_most_the_full_loss(gamma):
    """Jensen: the loss is concave in the inner expectation."""
    reward, scores = lists()
    mean = (q_of(scores, gamma) * enumerated(one_draw, reward, scores)).sum(axis=1)
    assert (mean < full(reward, scores, gamma)).all()


def test_eq_10_as_printed_loses_the_factor_n():
    """Its loss is the published one; on average it has the inner expectation without N."""
    reward, scores = lists()
    pair = enumerated(published, reward, scores)
    for gamma in (-1.0, 0.0, 3.0):
        inner = (q_of(scores, gamma) * np.expm1(pair)).sum(axis=1)
        np.testing.assert_allclose(inner * N, np.expm1(full(reward, scores, gamma)), rtol=1e-10)
    # With gamma = 0 that is softplus(log mean exp(r_i) - r_1), not top-1 Plackett-Luce.
    uniform = q_of(scores, 0.0)
    printed = np.log1p((uniform * np.exp(reward)).sum(axis=1) / np.exp(_best(reward, scores)))
    np.testing.assert_allclose(
        np.log1p((uniform * np.expm1(pair)).sum(axis=1)), printed, rtol=1e-10
    )
    assert (printed < full(reward, scores, 0.0)).all()


def test_one_draw_differs_from_the_published_form_by_log_n():
    reward, scores = lists()
    ratio = np.expm1(enumerated(one_draw, reward, scores)) / np.expm1(
        enumerated(published, reward, scores)
    )
    np.testing.assert_allclose(ratio, N, rtol=1e-9)


def test_gradient_weighs_negatives_by_hardness_and_reward():
    """dl/dr_1 = -(1 - P_1) and dl/dr_i = N q_i exp(r_i) / (exp(r_1) + N E_q[exp(r)])."""
    reward, scores = lists()
    gamma = 0.8
    logps, batch = loss_inputs(reward, np.zeros_like(reward), scores=scores)
    gradient = jax.grad(
        lambda p: hps.loss_full(logps.replace(policy=p), batch, beta=1.0, gamma=gamma)[0].sum()
    )(logps.policy)
    hard = N * q_of(scores, gamma) * np.exp(reward)
    total = np.exp(_best(reward, scores)) + hard.sum(axis=1)
    expected = hard / total[:, None]
    expected[np.arange(B), scores.argmax(axis=1)] = -(hard.sum(axis=1) / total)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


@pytest.mark.parametrize("loss", [one_draw, published], ids=["one_draw", "published"])
def test_what_depends_on_the_prompt_alone_cancels(loss):
    reward, scores = lists()
    shift = np.linspace(-3, 3, B)[:, None]
    np.testing.assert_allclose(
        full(reward + shift, scores, 1.0), full(reward, scores, 1.0), rtol=1e-10
    )
    np.testing.assert_allclose(
        enumerated(loss, reward + shift, scores), enumerated(loss, reward, scores), rtol=1e-10
    )


# Theorems


def test_loss_grows_with_gamma_where_scores_rank_like_rewards():
    gammas = np.linspace(-5, 5, 21)
    losses = np.stack([full(*lists(comonotone=True), gamma) for gamma in gammas])
    assert (np.diff(losses, axis=0) > 0).all()
    unrelated = np.stack([full(*lists(), gamma) for gamma in gammas])
    assert (np.diff(unrelated, axis=0) < 0).any()  # the premise is needed


def test_the_limit_is_the_worst_case_over_q_where_scores_rank_like_rewards():
    """Theorem 2: no distribution over the negatives gives a larger Eq. 8 than gamma -> inf."""

    def worst(reward, scores):
        best = np.arange(N + 1) == scores.argmax(axis=1)[:, None]
        hardest = np.where(best, -np.inf, reward).max(axis=1)
        return np.logaddexp(0, np.log(N) + hardest - _best(reward, scores))

    case = lists(comonotone=True)
    np.testing.assert_allclose(full(*case, 1e4), worst(*case), rtol=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(50):  # any scores below the best are some q
        q = np.where(case[1] < case[1].max(axis=1, keepdims=True), rng.normal(-9, 3, (B, N + 1)), 9)
        assert (full(case[0], q, rng.uniform(-3, 3)) <= worst(*case) + 1e-12).all()
    other = lists()
    assert (full(*other, 1e4) < worst(*other) - 1e-3).any()  # the premise is needed


def test_minimiser_of_the_limit_has_the_largest_margin_over_the_hardest_negative():
    """Theorem 3, over a bounded family of rewards: r = A t for unit vectors t."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(5, 3))  # response 0 is the best
    angles = rng.normal(size=(4000, 3))
    family = (angles / np.linalg.norm(angles, axis=1, keepdims=True)) @ features.T
    margin = family[:, 0] - family[:, 1:].max(axis=1)
    hardest = np.where(np.arange(5) == 0, 99.0, family)  # r_est ranks like r_theta
    case = loss_inputs(family, np.zeros_like(family), scores=hardest)
    losses = np.asarray(hps.loss_full(*case, beta=1.0, gamma=1e5)[0])
    assert losses.argmin() == margin.argmax()
    mild = np.asarray(hps.loss_full(*case, beta=1.0, gamma=-1.0)[0])
    assert mild.argmin() != margin.argmax()  # other gammas look at other negatives


def test_curvature_has_the_stated_floor():
    """zeta(N) = 1 / (2 + exp(2a + log N) + exp(-2a)) bounds the second derivative for |r| <= a."""
    a = 1.0
    rng = np.random.default_rng(0)
    reward = np.concatenate([rng.uniform(-a, a, (200, 2)), [[-a, a], [a, -a]]])
    n = np.asarray([1, 2, 15, 99])

    def curvature(pair, n):
        def value(r_s):
            case = loss_inputs(jnp.stack([pair[0], r_s])[None], [[0, 0]], drawn_from=n[None])
            return hps.loss(*case, beta=1.0)[0][0]

        return jax.hessian(value)(pair[1])

    over_pairs = jax.vmap(jax.vmap(curvature, (0, None)), (None, 0))
    values = np.asarray(over_pairs(jnp.asarray(reward), jnp.asarray(n)))
    floor = 1 / (2 + np.exp(2 * a + np.log(n)) + np.exp(-2 * a))
    assert (values.min(axis=1) >= floor * (1 - 1e-12)).all()  # equal for N = 1
    np.testing.assert_allclose(values.min(axis=1), floor, rtol=0.1)  # and the floor is tight
    assert (values.min(axis=1)[1:] < floor[0]).all()  # N counts: the floor of pairs fails


# The draw


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 1.0])
def test_draws_have_the_frequencies_of_eq_9(gamma):
    """Chi-square over 40,000 prompts with the same list."""
    n = 40_000
    scores = lists()[1][:1]
    _, batch = loss_inputs(np.zeros((n, N + 1)), scores=np.repeat(scores, n, 0))
    drawn = np.asarray(hps.select(jax.random.key(5), batch, gamma=gamma).scores[:, 1])
    counts = (drawn[:, None] == scores).sum(axis=0)

    def p_value(gamma):
        q = q_of(scores, gamma)[0]
        assert counts[q == 0].sum() == 0
        return scipy.stats.chisquare(counts[q > 0], n * q[q > 0]).pvalue

    assert p_value(gamma) > 1e-3
    assert p_value(gamma + 0.1) < 1e-3  # and it can tell gammas apart


def step_cost(k, loss, select=None):
    """Floating-point operations of one compiled gradient over lists of k responses of 32 tokens."""
    rng = np.random.default_rng(0)
    logps, batch = loss_inputs(np.zeros((4, k)), np.zeros((4, k)), scores=rng.normal(size=(4, k)))
    batch = batch.replace(
        response=jnp.zeros((4, k, 32), jnp.int32),
        ref_logps=logps.reference,
        response_length=jnp.full((4, k), 32, jnp.int32),
    )

    def objective(params, batch):
        if select is not None:
            batch = select(jax.random.key(0), batch, gamma=1.0)
        hidden = jnp.tanh(params["embed"][batch.response] @ params["mlp"])
        token = jax.nn.log_softmax(hidden @ params["embed"].T)
        policy = jnp.take_along_axis(token, batch.response[..., None], axis=-1).sum(axis=(2, 3))
        case = logps.replace(policy=policy, reference=batch.ref_logps, length=batch.response_length)
        return loss(case, batch)[0].mean()

    params = {"embed": jnp.ones((128, 64)), "mlp": jnp.ones((64, 64))}
    return jax.jit(jax.grad(objective)).lower(params, batch).compile().cost_analysis()["flops"]


def test_sixteen_responses_cost_what_two_cost():
    """The negative is drawn before the forward pass: within 5% of a step on pairs."""
    pairs = step_cost(2, dpo.loss)
    assert step_cost(16, hps.loss, hps.select) < 1.05 * pairs
    assert step_cost(16, plackett_luce.loss_top1) > 5 * pairs  # what scoring all of them costs
