"""What the RDRO paper states of its loss and of DDRO's, as programs on enumerable responses.

The responses are few enough to write p+ and p- down, so expectations are exact sums. Total
variation against the sample size is another file's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from alignjax.losses import ddro, rdro, sft
from alignjax.testing import loss_inputs

N = 7  # responses


def truth(seed=0):
    """``[N]`` p+ and p-."""
    return np.random.default_rng(seed).dirichlet(np.ones(N), 2)


def softplus(x):
    return np.logaddexp(0, x)


def terms(loss, ratio, **keywords):
    """Unweighted losses of each log-ratio as a desirable and as an undesirable response."""
    ratio = jnp.asarray(ratio)[:, None]
    policy = jnp.concatenate([ratio, ratio])
    labels = np.arange(len(policy))[:, None] < len(ratio)
    logps, batch = loss_inputs(policy, jnp.zeros_like(policy), desirable=labels)
    keywords = {"desirable_fraction": 0.5, "reduction": "batch_mean", **keywords}
    return loss(logps, batch, **keywords)[0].reshape(2, -1)


def population(loss, ratio, plus, minus, f, **keywords):
    """The expected loss of a random labelled response: f of them from p+, the rest from p-."""
    good, bad = terms(loss, ratio, desirable_fraction=f, **keywords)
    return f * (plus * good).sum() + (1 - f) * (minus * bad).sum()


def minimiser(objective, start=None):
    """``[N]`` where a smooth function is smallest: down to there, then to a gradient of zero."""
    value = jax.jit(jax.value_and_grad(objective))
    hessian = jax.jit(jax.hessian(objective))
    start = np.zeros(N) if start is None else start
    found = scipy.optimize.minimize(value, start, jac=True, hess=hessian, method="trust-exact")
    for _ in range(8):
        found.x = found.x - np.linalg.solve(hessian(found.x), value(found.x)[1])
    assert np.abs(value(found.x)[1]).max() < 1e-12
    assert np.linalg.eigvalsh(hessian(found.x)).min() > 0
    return found.x


# The optimum, by reduction


def tabular(plus, minus, alpha, f, reduction):
    """The policy that minimises the population loss among all policies, by its logits."""
    log_reference = np.log(alpha * plus + (1 - alpha) * minus)

    def objective(logits):
        ratio = jax.nn.log_softmax(logits) - log_reference
        # The logits' common shift changes nothing; hold it, so that the minimum is one point.
        held = 0.5 * logits.mean() ** 2
        value = population(rdro.loss, ratio, plus, minus, f, alpha=alpha, reduction=reduction)
        return value + held

    logits = minimiser(objective, log_reference - log_reference.mean())
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
def test_class_means_are_minimised_by_p_plus(alpha):
    """Whatever the labelled fraction f of the data: here f differs from alpha, too."""
    plus, minus = truth()
    for f in (alpha, 0.3):
        found = tabular(plus, minus, alpha, f, "class_mean")
        np.testing.assert_allclose(found, plus, atol=2e-8)


@pytest.mark.parametrize(("alpha", "least"), [(0.2, 0.3), (0.39, 0.05)])
def test_a_mean_over_the_mixed_batch_has_another_minimiser(alpha, least):
    plus, minus = truth()
    found = tabular(plus, minus, alpha, alpha, "batch_mean")
    assert 0.5 * np.abs(found - plus).sum() > least
    balanced = tabular(plus, minus, alpha, 0.5, "batch_mean")
    np.testing.assert_allclose(balanced, plus, atol=2e-8)


@pytest.mark.parametrize(("alpha", "f"), [(0.2, 0.2), (0.39, 0.39), (0.5, 0.2)])
def test_the_other_minimiser_is_the_one_that_the_docstring_states(alpha, f):
    """Pointwise, over ratios that need not belong to a policy."""
    plus, minus = truth()
    found = minimiser(
        lambda ratio: population(
            rdro.loss, ratio, plus, minus, f, alpha=alpha, reduction="batch_mean"
        )
    )
    wanted = f * plus / (f * alpha * plus + (1 - f) * (1 - alpha) * minus)
    np.testing.assert_allclose(np.exp(found), wanted, rtol=1e-7)
    exact = plus / (alpha * plus + (1 - alpha) * minus)
    assert np.abs(np.log(wanted / exact)).max() > 0.1
    found = minimiser(
        lambda ratio: population(
            rdro.loss, ratio, plus, minus, f, alpha=alpha, reduction="class_mean"
        )
    )
    np.testing.assert_allclose(np.exp(found), exact, rtol=1e-7)


def test_supervised_fine_tuning_on_all_responses_fits_the_mixture():
    """The reference that the theory assumes: `sft.loss` without `sft.select` reads no label."""
    plus, minus = truth()
    mixture = 0.3 * plus + 0.7 * minus

    def objective(logits):
        logps, batch = loss_inputs(jax.nn.log_softmax(logits)[:, None])
        return (mixture * sft.loss(logps, batch)[0]).sum() + 0.5 * logits.mean() ** 2

    found = np.asarray(jax.nn.softmax(minimiser(objective)))
    np.testing.assert_allclose(found, mixture, atol=1e-9)


# Eq. 15 and 17, the Bregman divergence


def bregman(target, model):
    """Bregman divergence of f(t) = t log t - (1 + t) log(1 + t)."""

    def f(t):
        return t * np.log(t) - (1 + t) * np.log1p(t)

    return f(target) - f(model) - (np.log(model) - np.log1p(model)) * (target - model)


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
def test_eq_15_is_eq_17_and_the_excess_risk_is_the_divergence(alpha):
    plus, minus = truth()
    reference = alpha * plus + (1 - alpha) * minus
    rng = np.random.default_rng(1)

    def eq_17(ratio):
        good, bad = terms(rdro.loss, ratio, alpha=alpha)
        return float((plus * good).sum() + (minus * bad).sum())

    best = np.log(plus / reference)
    for _ in range(5):
        ratio = rng.normal(0, 2, N)
        eq_15 = (reference * softplus(ratio)).sum() + (plus * softplus(-ratio)).sum()
        np.testing.assert_allclose(eq_17(ratio), eq_15, rtol=1e-12)
        divergence = (reference * bregman(np.exp(best), np.exp(ratio))).sum()
        np.testing.assert_allclose(eq_17(ratio) - eq_17(best), divergence, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.5, 0.8])
def test_the_distance_is_bounded_by_the_excess_risk(alpha):
    """Lemma B.2; and DDRO's bound, without the least probability by whose square it is divided."""
    plus, minus = truth()
    reference = alpha * plus + (1 - alpha) * minus
    rng = np.random.default_rng(2)
    for spread in (0.01, 0.5, 3.0):
        g = minus / plus * np.exp(rng.normal(0, spread, N))
        policy = reference / (alpha + (1 - alpha) * g)
        largest = max(g.max(), (minus / plus).max())
        curvature = 1 / (largest * (1 + largest))
        risk = (plus * bregman(minus / plus, g)).sum()
        distance = (plus * (policy - plus) ** 2).sum()
        ratio, target = policy / reference, plus / reference  # at most 1 / alpha
        excess = (reference * bregman(target, ratio)).sum()
        assert 0 < distance <= 2 * (1 + alpha) / alpha**3 * excess
        bound = 2 * (1 - alpha) ** 2 / (alpha**2 * curvature) * risk
        assert distance <= bound


# The gradient's coefficients


def slopes(loss, ratio, **keywords):
    """dl/dT of a desirable and of an undesirable response, ``[2, n]``."""
    return np.asarray(
        jax.jacrev(lambda x: terms(loss, x, **keywords))(jnp.asarray(ratio)).diagonal(
            axis1=1, axis2=2
        )
    )


@pytest.mark.parametrize("alpha", [0.2, 0.39, 0.8])
def test_gradient_coefficients_are_bounded_and_change_sign_once(alpha):
    ratio = np.linspace(-30, 30, 121)
    good, bad = slopes(rdro.loss, ratio, alpha=alpha)
    assert (good > -1).all()
    assert (good < alpha).all()
    assert (bad > 0).all()
    assert (bad < 1 - alpha).all()
    edge = np.log(1 / alpha)
    at, below, above = slopes(rdro.loss, [edge, edge - 1e-3, edge + 1e-3], alpha=alpha)[0]
    assert abs(at) < 1e-12
    assert below < 0 < above
    assert np.array_equal(np.sign(good), np.sign(ratio - edge))


def test_ddros_gradient_is_unbounded_where_rdros_is_not():
    """An undesirable response whose ratio tends to 1/alpha: disjoint supports ask for that."""
    alpha = 0.4
    ratio = np.log(1 / alpha) - np.array([1e-1, 1e-3, 1e-5])
    plain = slopes(ddro.loss, ratio, alpha=alpha)[1]
    np.testing.assert_allclose(plain[1:] / plain[:-1], 100, rtol=0.2)
    assert plain[-1] > 1e4
    assert np.abs(slopes(ddro.loss_log_sigmoid, ratio, alpha=alpha)).max() < 2 / (1 - alpha)
    assert np.abs(slopes(rdro.loss, ratio, alpha=alpha)).max() < 1


# DDRO's optima


def ddro_optimum(loss, plus, minus, alpha, f=0.5, reduction="class_mean"):
    """``[N]`` the g = p-/p+ that minimises pointwise, over a fine grid of log-ratios."""
    edge = -np.log(alpha + (1 - alpha) * ddro.CLAMP)
    ratio = edge - np.concatenate([np.geomspace(1e-9, 1, 20001), np.linspace(1, 12, 200001)])
    good, bad = (
        np.asarray(x)
        for x in terms(loss, ratio, alpha=alpha, desirable_fraction=f, reduction=reduction)
    )
    g = (np.exp(-ratio) - alpha) / (1 - alpha)
    weighed = f * plus[:, None] * good + (1 - f) * minus[:, None] * bad
    return g[np.argmin(weighed, axis=1)]


def test_ddro_fits_p_minus_over_p_plus():
    plus, minus = truth(1)
    found = ddro_optimum(ddro.loss, plus, minus, 0.3, f=0.2)
    np.testing.assert_allclose(found, minus / plus, rtol=1e-3)
    mixed = ddro_optimum(ddro.loss, plus, minus, 0.3, f=0.2, reduction="batch_mean")
    np.testing.assert_allclose(mixed, 4 * minus / plus, rtol=1e-3)  # (1 - f) / f


def test_with_the_transform_it_fits_another_ratio():
    """(2 g* - 1) / (2 - g*) within (1/2, 2): right at g* = 1 alone; beyond, 0 or infinity."""
    target = np.array([0.3, 0.55, 0.8, 1.0, 1.3, 1.8, 2.5])
    found = ddro_optimum(ddro.loss_log_sigmoid, np.ones(7), target, 0.3)
    inside = slice(1, 6)
    wanted = (2 * target[inside] - 1) / (2 - target[inside])
    np.testing.assert_allclose(found[inside], wanted, rtol=1e-3)
    assert found[0] < 1e-5
    assert found[-1] > 1e4
    assert np.abs(found - target)[3] < 1e-3
    assert (np.abs(found - target)[[0, 1, 2, 4, 5, 6]] > 0.05).all()


def test_the_values_at_the_start_are_those_of_the_papers_figures():
    """Where policy equals reference; a sum of class means, or the mean over a mixed batch."""
    start = functools.partial(population, ratio=np.zeros(N), plus=truth()[0], minus=truth()[1])
    value = start(rdro.loss, f=0.39, alpha=0.39, reduction="class_mean")
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-12)
    value = start(ddro.loss_log_sigmoid, f=0.39, alpha=0.39, reduction="batch_mean")
    np.testing.assert_allclose(value, np.log(2 / 3), rtol=1e-12)
    value = start(rdro.loss, f=0.387, alpha=0.39, reduction="batch_mean")
    assert 0.62 < value < 0.64  # Fig. 4 starts near 0.63
