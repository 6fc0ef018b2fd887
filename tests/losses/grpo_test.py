"""GRPO: its gradient by hand, as other estimators, and what it learns from a rule that checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import apo, grpo
from alignjax.testing import loss_inputs
from tests.losses import checks, golden


@pytest.mark.parametrize(
    ("scale", "length"), [("std", "response"), ("none", "sum"), ("loo", "sum"), ("std", "group")]
)
def test_the_gradient_is_the_advantage_per_length(scale, length):
    case = golden.rows(4, b=3)
    loss = partial(grpo.loss, beta=0.3, scale=scale, length=length)
    result = checks.compiled(loss)(*loss_inputs(**case))
    value = case["scores"] - 0.3 * (case["policy"] - case["reference"])
    advantage = value - value.mean(axis=1, keepdims=True)
    if scale == "std":
        advantage /= value.std(axis=1, ddof=1, keepdims=True) + grpo.EPSILON
    if scale == "loo":
        others = (value.sum(axis=1, keepdims=True) - value) / 3
        advantage = value - others
    per = {"response": case["length"], "sum": 1, "group": case["length"].mean(1, keepdims=True)}
    wanted = -advantage / per[length] / 4
    np.testing.assert_allclose(result.gradient * 3, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.losses, -value.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_leaving_one_out_is_policy_gradient():
    case = golden.rows(5)
    case["length"][2, 1] = 0
    case["scores"][3, 0] = np.nan
    loo = partial(grpo.loss, beta=0.2, scale="loo", length="sum")
    found, wanted = (
        checks.compiled(loss)(*loss_inputs(**case)) for loss in (loo, partial(apo.loss, beta=0.2))
    )
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-5)
    np.testing.assert_allclose(found.gradient, wanted.gradient, rtol=1e-4, atol=1e-6)


def test_a_group_of_equal_scores_teaches_nothing():
    case = golden.rows(4, scores=np.ones((8, 4)), reference=None)
    result = checks.compiled(grpo.loss)(*loss_inputs(**case))
    np.testing.assert_array_equal(result.gradient, 0.0)


@pytest.mark.parametrize("word", [dict(scale="sd"), dict(length="token")])
def test_another_word_is_refused(word):
    with pytest.raises(ValueError, match=next(iter(word))):
        grpo.loss(*loss_inputs(**golden.rows(2)), **word)


def test_sums_are_learnt_from_a_rule_that_checks_them():
    """25 sums as prompts, 9 answers each; the reward is 1 for the right one. Three seeds."""
    sums = np.add.outer(np.arange(5), np.arange(5)).reshape(-1)
    samples = 8

    def step(logits, key, loss):
        def objective(logits):
            log_p = jax.nn.log_softmax(logits)
            answer = jax.random.categorical(key, logits[:, None, :], shape=(len(sums), samples))
            right = (answer == sums[:, None]).astype(float)
            logps, batch = loss_inputs(jnp.zeros((len(sums), samples)), scores=right)
            policy = jnp.take_along_axis(log_p, answer, axis=1)
            return loss(logps.replace(policy=policy), batch)[0].sum()

        return logits - 1.0 * jax.grad(objective)(logits), None

    @partial(jax.jit, static_argnums=1)
    def rate(seed, loss):
        keys = jax.random.split(jax.random.key(seed), 80)
        start = jnp.zeros((len(sums), 9))
        logits, _ = jax.lax.scan(partial(step, loss=loss), start, keys)
        return jax.nn.softmax(logits)[jnp.arange(len(sums)), sums].mean()

    for loss in (grpo.loss, partial(grpo.loss, scale="none", length="sum")):
        found = [float(rate(seed, loss)) for seed in range(3)]
        assert min(found) > 0.9, found  # 1/9 before
