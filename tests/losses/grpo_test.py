"""GRPO: its gradient by hand, as other estimators, and what it learns from a rule that checks."""

from functools import partial
from types import SimpleNamespace

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


def clipped(row, beta=0.3, clip=0.2):
    """One row of `grpo.loss_clipped`, in NumPy."""
    value = row.scores - beta * (row.drawn_logps - row.reference)
    ahead = value - (value.sum() - value) / (len(value) - 1)
    rho = np.exp(row.policy - row.drawn_logps)
    held = np.clip(rho, 1 - clip, 1 + clip) * ahead
    return -np.minimum(rho * ahead, held).mean(), {
        "scores": row.scores.mean(),
        "kl": (row.drawn_logps - row.reference).mean(),
        "clipped": (held < rho * ahead).mean(),
    }


def test_clipped_ratios_by_hand():
    case = golden.rows(4)
    case["drawn_logps"] = case["policy"] + np.random.default_rng(1).uniform(-0.4, 0.4, (8, 4))
    shares = [clipped(SimpleNamespace(**{k: x[i] for k, x in case.items()}))[1]["clipped"]
              for i in range(8)]  # fmt: skip
    assert 0 < np.mean(shares) < 1
    golden.check(partial(grpo.loss_clipped, beta=0.3), clipped, case)


def test_on_samples_of_the_policy_as_it_is_clipping_is_policy_gradient():
    case = golden.rows(5)
    case["length"][2, 1] = 0
    case["scores"][3, 0] = np.nan
    now = [None, case["policy"]]
    wanted = checks.compiled(partial(apo.loss, beta=0.2))(*loss_inputs(**case))
    for drawn in now:
        loss = checks.compiled(partial(grpo.loss_clipped, beta=0.2))
        found = loss(*loss_inputs(**case, drawn_logps=drawn))
        np.testing.assert_allclose(found.gradient, wanted.gradient, rtol=1e-4, atol=1e-6)


def test_ratios_beyond_all_numbers_give_numbers():
    case = golden.rows(3, drawn_logps=np.full((8, 3), -500.0))
    found = checks.compiled(grpo.loss_clipped)(*loss_inputs(**case))
    assert np.isfinite(found.losses).all()
    assert np.isfinite(found.gradient).all()


@pytest.mark.parametrize("baseline", [False, True])
def test_advantages_over_the_batch_by_hand(baseline):
    case = golden.rows(4)
    case["length"][2, 1] = 0
    case["scores"][3, 0] = np.nan
    loss = partial(grpo.loss_batch, beta=0.3, baseline=baseline)
    logps, batch = loss_inputs(**case)
    found = checks.compiled(loss)(logps, batch.replace(weight=(jnp.arange(8) < 6).astype(float)))
    there = (case["length"] > 0) & np.isfinite(case["scores"])
    value = np.where(there, case["scores"] - 0.3 * (case["policy"] - case["reference"]), np.nan)
    ahead = value - np.nanmean(value, axis=1, keepdims=True) if baseline else value
    ahead = (ahead - np.nanmean(ahead[:6])) / (np.nanstd(ahead[:6]) + grpo.EPSILON)
    wanted = -np.where(there, ahead, 0) / there.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.losses, -np.nanmean(value, axis=1), rtol=1e-5, atol=1e-6)
    # The last two rows only fill the batch: they change no mean, and the loss is that of 6.
    np.testing.assert_allclose(found.gradient[:6] * 6, wanted[:6], rtol=1e-4, atol=1e-6)


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

    none = partial(grpo.loss, scale="none", length="sum")
    for loss in (grpo.loss, none, grpo.loss_batch, partial(grpo.loss_batch, baseline=True)):
        found = [float(rate(seed, loss)) for seed in range(3)]
        assert min(found) > 0.9, found  # 1/9 before


def test_more_updates_on_the_same_samples_learn_more():
    """Three answers of which one is right; 12 times 8 samples, on each 1 or 4 updates."""

    def step(logits, key, updates):
        answer = jax.random.categorical(key, logits, shape=(1, 8))
        logps, batch = loss_inputs(
            jnp.zeros((1, 8)), jnp.zeros((1, 8)), scores=(answer == 0).astype(float)
        )
        drawn = jax.nn.log_softmax(logits)[answer]
        batch = batch.replace(drawn_logps=drawn)

        def objective(logits):
            policy = jax.nn.log_softmax(logits)[answer]
            return grpo.loss_clipped(logps.replace(policy=policy), batch, beta=0.0)[0].sum()

        for _ in range(updates):
            logits -= 0.5 * jax.grad(objective)(logits)
        return logits

    def right(updates, seed):
        logits = jnp.zeros(3)
        for key in jax.random.split(jax.random.key(seed), 12):
            logits = taken(logits, key, updates)
        return float(jax.nn.softmax(logits)[0])

    taken = jax.jit(step, static_argnums=2)
    for seed in range(3):
        assert right(4, seed) > right(1, seed) + 0.05 > 0.5
