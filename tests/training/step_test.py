"""The training step: exact averages, accumulation, schedules, draws, steps that are not finite."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from alignjax.config import FollowConfig
from alignjax.losses import bco, bradley_terry, dpo, hps, kto
from alignjax.runtime.checkpoint import tree_digest
from alignjax.testing import loss_inputs
from alignjax.training import step as step_module
from alignjax.training.microbatches import AUTO, Rooms, weighted_sums
from alignjax.training.schedules import resolve
from alignjax.training.step import Update, init_state, score, train_step
from alignjax.types import Logps, RunSchedule, Schedule
from tests import tiny

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01))
SGD = optax.sgd(1.0)
LOSS = functools.partial(dpo.loss, beta=0.5)
B, K, WIDTH = 8, 2, 3


def apply(params, batch):
    """A linear scorer: ``[B, K]`` from the response ids, so that a step compiles in no time."""
    x = batch.response.astype(jnp.float32)
    return jnp.tanh(x @ params["w"]) @ params["v"] - params["b"]


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(WIDTH, 4)) / 8, rng.normal(size=4)
    return {"w": jnp.asarray(w, jnp.float32), "v": jnp.asarray(v, jnp.float32), "b": jnp.ones(())}


def make_batch(weight=None, k=K, seed=0):
    rng = np.random.default_rng(seed)
    _, batch = loss_inputs(np.zeros((B, k)), scores=rng.normal(size=(B, k)))
    response = jnp.asarray(rng.integers(0, 9, (B, k, WIDTH)), jnp.int32)
    weight = rng.integers(1, 5, B) / 2 if weight is None else weight
    ids = jnp.arange(B, dtype=jnp.int32) * 3 + 1
    return batch.replace(response=response, weight=jnp.asarray(weight, jnp.float32), prompt_id=ids)


def make_state(seed=0, key=7):
    return init_state(make_params(seed), OPTIMIZER, jax.random.key(key))


@functools.cache
def make_step(loss=LOSS, jit=True, **keywords):
    update = Update(**{**dict(apply=apply, optimizer=OPTIMIZER, loss=loss), **keywords})
    run = functools.partial(train_step, update=update)
    return jax.jit(run) if jit else run


def in_parts(parts, k=K):
    """Rooms for so many parts of equal rows; "full": for as many rows as fit in a stream."""
    row = 1 + k * WIDTH
    if parts == "full":
        return Rooms(sizes=(row, 2 * row))
    return Rooms(given=row * B // parts, padded=True)


def sgd_gradient(batch, ref_params, rooms=AUTO):
    """The gradient itself, and the scalars: a step of plain descent at rate 1, unclipped."""
    state = init_state(make_params(), SGD, jax.random.key(7))
    new, scalars = make_step(optimizer=SGD, rooms=rooms)(state, ref_params, batch)
    return jax.tree.map(jnp.subtract, state.params, new.params), scalars


def take(batch, rows):
    return jax.tree.map(lambda x: x[rows], batch)


class AverageTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_weighted_sums(self):
        loss = jnp.array([1.0, 2.0, jnp.nan, jnp.inf], jnp.bfloat16)
        weight = jnp.array([0.5, 2.0, 0.0, 0.0])
        total, metrics = self.variant(weighted_sums)(loss, {"x": -loss}, weight)
        chex.assert_type([total, metrics["x"]], jnp.float32)
        chex.assert_trees_all_close((total, metrics["x"]), (4.5, -4.5))

    @chex.variants(with_jit=True, without_jit=True)
    def test_loss_and_gradient_are_weighted_means(self):
        batch, params, ref = make_batch(), make_params(), make_params(1)

        def mean(params):
            logps = Logps(
                policy=apply(params, batch), reference=apply(ref, batch), length=jnp.ones((B, K))
            )
            losses, _ = dpo.loss(logps, batch, beta=0.5)
            return jnp.average(losses, weights=batch.weight)

        run = self.variant(make_step(optimizer=SGD, jit=False))

        new, scalars = run(init_state(params, SGD, jax.random.key(0)), ref, batch)
        wanted, grads = jax.value_and_grad(mean)(params)
        np.testing.assert_allclose(scalars["loss"], wanted, rtol=1e-6)
        np.testing.assert_allclose(scalars["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        chex.assert_trees_all_close(
            new.params, jax.tree.map(jnp.subtract, params, grads), atol=1e-6
        )
        assert set(scalars) >= {"loss", "grad_norm", "num_tokens", "weight", "skipped"}
        chex.assert_shape(list(scalars.values()), ())


def test_rows_of_weight_zero_change_nothing_bit_for_bit():
    weight = np.array([1, 0, 2, 0, 1, 3, 0, 1])
    batch = make_batch(weight)
    other = make_batch(weight, seed=5)
    mixed = jax.tree.map(
        lambda x, y: jnp.where((weight > 0).reshape(-1, *[1] * (x.ndim - 1)), x, y), batch, other
    )
    step = make_step()
    wanted = step(make_state(), make_params(1), batch)
    chex.assert_trees_all_equal(step(make_state(), make_params(1), mixed), wanted)
    counting = [
        step(make_state(), make_params(1), x.replace(weight=jnp.ones(B))) for x in (batch, mixed)
    ]
    with pytest.raises(AssertionError):  # the rows did change, and would count
        chex.assert_trees_all_equal(*counting)


def test_a_batch_without_any_weight_has_loss_zero_and_no_gradient():
    grads, scalars = sgd_gradient(make_batch(np.zeros(B)), make_params(1))
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))
    assert float(scalars["loss"]) == float(scalars["num_tokens"]) == 0.0


UNEVEN = [4.0, 0.5, 0.5, 0.5, 3.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("parts", [2, 4, 8, "full"])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    batch, ref = make_batch(UNEVEN), make_params(1)
    grads, scalars = sgd_gradient(batch, ref)
    chex.assert_trees_all_close(
        sgd_gradient(batch, ref, in_parts(parts)), (grads, scalars), rtol=2e-6, atol=1e-6
    )
    parts = 2 if parts == "full" else parts
    # The mean of the micro-batches' means, which the step must not be, differs:
    means = [sgd_gradient(take(batch, slice(i, None, parts)), ref)[0] for i in range(parts)]
    mean = jax.tree.map(lambda *x: sum(x) / parts, *means)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(mean, grads, rtol=1e-2, atol=1e-3)


def test_accumulated_gradients_of_bfloat16_parameters_add_up_in_float32():
    """Micro-batch gradients 256, 1, 1, 1, ...: in bfloat16 256 + 1 is 256."""

    def linear(logps, batch):
        return logps.policy[:, 0], {}

    def row_apply(params, batch):
        return (params * batch.scores[:, 0])[:, None].astype(jnp.float32)

    sizes = jnp.array([256.0] + [1.0] * 7)
    batch = make_batch(np.ones(B), k=1).replace(scores=sizes[:, None])
    state = init_state(jnp.zeros((), jnp.bfloat16), SGD, jax.random.key(0))
    _, scalars = make_step(linear, rooms=in_parts(8, k=1), apply=row_apply, optimizer=SGD)(
        state, None, batch
    )
    assert float(scalars["grad_norm"]) == float(sizes.mean())


def labelled(weight=UNEVEN, k=1):
    labels = np.arange(B * k).reshape(B, k) % 3 == 0
    return make_batch(weight, k=k).replace(desirable=jnp.asarray(labels))


def reads_both(logps, batch):
    """A loss in which both averages count."""
    shift = 0.3 * batch.baseline + 0.7 * batch.running_baseline
    return jax.nn.softplus(logps.log_ratio.sum(axis=1) - shift), {}


def first(logps, batch):
    return logps.log_ratio[:, 0] + 0.01 * batch.prompt_id


KTO = dict(loss=kto.loss, select=kto.select, baseline=kto.baseline)
BCO = dict(
    loss=functools.partial(bco.loss, desirable_fraction=0.3),
    baseline=functools.partial(bco.baseline, desirable_fraction=0.3),
)


def after(steps, rooms=AUTO, jit=True, **keywords):
    """The state and the scalars after some steps of plain descent on other batches each."""
    state = init_state(make_params(), SGD, jax.random.key(7))
    step = make_step(optimizer=SGD, rooms=rooms, jit=jit, **keywords)
    step = step if jit else jax.jit(step)
    for seed in range(steps):
        batch = labelled().replace(prompt_id=jnp.arange(B, dtype=jnp.int32) * 3 + seed)
        state, scalars = step(state, make_params(1), batch)
    return dataclasses.replace(state, key=None), scalars


def test_the_baseline_is_the_mean_over_the_rows_that_count_and_has_no_gradient():
    batch, ref, params = labelled(), make_params(1), make_params()
    seen = make_step(lambda logps, b: (logps.policy[:, 0], {"seen": b.baseline}), baseline=first)
    _, scalars = seen(make_state(), ref, batch)
    logps = score(params, ref, batch, apply=apply)
    wanted = np.average(np.asarray(first(logps, batch), np.float64), weights=UNEVEN)
    for name in ("baseline", "running_baseline", "seen"):
        np.testing.assert_allclose(scalars[name], wanted, rtol=1e-5)
    fixed = batch.replace(baseline=jnp.full(B, wanted), running_baseline=jnp.full(B, wanted))
    run = functools.partial(make_step, reads_both, optimizer=SGD)
    state = init_state(params, SGD, jax.random.key(7))
    chex.assert_trees_all_close(
        run(baseline=first)(state, ref, batch)[0].params,
        run()(state, ref, fixed)[0].params,
        rtol=1e-5,
    )


@pytest.mark.parametrize("parts", [2, 8, "full"])
@pytest.mark.parametrize(
    "keywords", [dict(loss=reads_both, baseline=first), KTO, BCO], ids=["both", "kto", "bco"]
)
def test_the_baseline_of_micro_batches_is_that_of_the_whole_batch(keywords, parts):
    whole, accumulated = after(2, **keywords), after(2, in_parts(parts, k=1), **keywords)
    chex.assert_trees_all_close(accumulated, whole, rtol=2e-5, atol=2e-6)


def test_a_baseline_of_every_micro_batch_alone_would_show(monkeypatch):
    whole = after(2, loss=reads_both, baseline=first)
    monkeypatch.setattr(step_module, "mean_over_parts", lambda *_: None)
    alone = after(2, in_parts(2, k=1), jit=False, loss=reads_both, baseline=first)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(alone, whole, rtol=1e-3, atol=1e-4)


def test_the_running_baseline_is_the_mean_over_all_rows_so_far():
    """Over steps of different weight, too; one without any, and a skipped one, change nothing."""
    rng = np.random.default_rng(0)
    levels, weights = rng.normal(size=5), [UNEVEN, np.ones(B), np.zeros(B), UNEVEN, np.ones(B)]
    levels[4] = np.nan

    def level(logps, batch):
        return batch.scores[:, 0] + 0 * logps.policy[:, 0]

    step = make_step(lambda logps, b: (logps.policy[:, 0], {}), baseline=level)
    state, total, count = make_state(), 0.0, 0.0
    for value, weight in zip(levels, weights, strict=True):
        batch = make_batch(weight, k=1).replace(scores=jnp.full((B, 1), value))
        state, scalars = step(state, None, batch)
        if np.isfinite(value):
            total, count = total + value * np.sum(weight), count + np.sum(weight)
        assert int(scalars["skipped"]) == (not np.isfinite(value))
        np.testing.assert_allclose(state.baseline, total / count, rtol=1e-5)
        np.testing.assert_allclose(state.baseline_weight, count)


def test_a_run_without_a_baseline_keeps_none():
    state, scalars = make_step()(make_state(), make_params(1), make_batch())
    assert "baseline" not in scalars
    assert float(state.baseline) == float(state.baseline_weight) == 0


def test_schedules_are_resolved_at_the_step():
    seen = []

    def loss(logps, batch, *, beta, shift=0.0):
        seen.append((callable(beta), callable(shift)))
        return beta * logps.policy[:, 0] + shift, {"beta": jnp.full(B, beta)}

    schedule = Schedule(optax.linear_schedule(0.0, 1.0, 10))
    step = make_step(
        functools.partial(loss, beta=schedule, shift=Schedule(lambda step: step * 2.0))
    )
    state, found = make_state(), []
    for _ in range(4):
        state, scalars = step(state, None, make_batch())
        found.append(float(scalars["beta"]))
    np.testing.assert_allclose(found, [0.0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert seen == [(False, False)]  # and one trace serves all steps
    plain = functools.partial(loss, beta=0.5)
    assert resolve(plain, jnp.zeros(()), 1).keywords == {"beta": 0.5}
    assert resolve(dpo.loss, jnp.zeros(()), 1) is dpo.loss


def test_schedules_of_the_run_are_as_long_as_it_is():
    def loss(logps, batch, *, beta):
        return beta * logps.policy[:, 0], {"beta": jnp.full(B, beta)}

    rising = functools.partial(
        loss, beta=RunSchedule(functools.partial(optax.linear_schedule, 0, 1))
    )
    for steps in (4, 10):
        state, found = make_state(), []
        for _ in range(3):
            state, scalars = make_step(rising, steps=steps)(state, None, make_batch())
            found.append(float(scalars["beta"]))
        np.testing.assert_allclose(found, np.arange(3) / steps, rtol=1e-6)
    with pytest.raises(AssertionError, match=r"needs Update\.steps"):
        make_step(rising)(make_state(), None, make_batch())


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_select_says_is_averaged_by_the_weights(parts):
    def first(key, batch):
        pair = bradley_terry.select(key, batch)
        return dataclasses.replace(pair, select_metrics={"best": pair.scores[:, 0]})

    batch = make_batch(UNEVEN, k=4)
    step = make_step(dpo.loss, select=first, rooms=in_parts(parts))
    _, scalars = step(make_state(), make_params(1), batch)
    wanted = np.average(np.max(batch.scores, axis=1), weights=UNEVEN)
    np.testing.assert_allclose(scalars["best"], wanted, rtol=1e-5)


def test_a_bound_function_is_given_as_it_is_with_its_schedules_resolved():
    def shifted(logps, *, shift: float):
        return logps.log_ratio + shift

    def nested(step):
        shift = functools.partial(shifted, shift=Schedule(lambda step: 2.0 * step))
        loss = functools.partial(dpo.loss, beta=Schedule(lambda step: step / 4), implicit=shift)
        return resolve(loss, step, 1)

    found = nested(jnp.float32(3.0))
    assert found.keywords["beta"] == 0.75
    assert found.keywords["implicit"].func is shifted
    assert found.keywords["implicit"].keywords == {"shift": 6.0}
    plain = functools.partial(dpo.loss, implicit=dpo.implicit)
    assert resolve(plain, jnp.zeros(()), 1).keywords == {"implicit": dpo.implicit}
    _, metrics = jax.jit(lambda step, *case: nested(step)(*case))(
        jnp.float32(3.0), *loss_inputs([[-1.0, -2.0]], [[-2.0, -2.0]])
    )
    assert float(metrics["rewards/chosen"][0]) == pytest.approx(0.75 * 7.0)


def numbers(logps, batch):
    """A loss that tells which response was drawn: the first id of each row's rejected one."""
    first = batch.response[:, 1, 0].astype(jnp.float32)
    return logps.policy[:, 0], {f"{i}": first * (jnp.arange(B) == i) * B for i in range(B)}


@functools.cache
def drawing_step(gamma):
    return make_step(numbers, select=functools.partial(hps.select, gamma=gamma))


def draws(key, steps, batch, gamma):
    """The rejected responses that a select drew at each step, ``[steps, B]``; see `numbered`."""
    state, out = make_state(key=key), []
    for _ in range(steps):
        state, scalars = drawing_step(gamma)(state, None, batch)
        out.append([round(float(scalars[f"{i}"])) for i in range(B)])
    return np.array(out)


def numbered(k=6):
    """Response j of every row consists of the id j."""
    batch = make_batch(np.ones(B), k=k)
    ids = jnp.broadcast_to(jnp.arange(k)[None, :, None], batch.response.shape)
    return batch.replace(response=ids.astype(jnp.int32))


def test_draws_depend_on_the_step_and_the_key_not_on_the_batch_slot():
    batch = numbered()
    found = draws(7, 4, batch, 0.0)
    assert len({tuple(row) for row in found}) == 4  # each step draws anew
    np.testing.assert_array_equal(found, draws(7, 4, batch, 0.0))
    assert (found != draws(8, 4, batch, 0.0)).any()
    order = np.random.default_rng(0).permutation(B)
    np.testing.assert_array_equal(found[:, order], draws(7, 4, take(batch, order), 0.0))


def test_gamma_may_be_a_schedule():
    batch = numbered()
    hardest = draws(7, 3, batch, 1e3)
    found = draws(7, 3, batch, Schedule(lambda step: jnp.where(step < 2, 1e3, -1e3)))
    np.testing.assert_array_equal(found[:2], hardest[:2])
    assert (found[2] != hardest[2]).all()


@jax.custom_vjp
def spoil(x, amount):
    """x, with ``amount`` added to its gradient only."""
    del amount
    return x


spoil.defvjp(lambda x, amount: (x, amount), lambda amount, g: (g + amount, jnp.zeros_like(amount)))


def poisoned(where, bad):
    """A step that is not finite at step 2: the loss, or the gradient of one parameter only."""

    def amount(batch):
        return jnp.where(batch.prompt_id[0] == 2, bad, 0.0)

    def loss(logps, batch):
        return logps.policy[:, 0] + (amount(batch) if where == "loss" else 0.0), {}

    def bad_apply(params, batch):
        if where == "leaf":
            params = {**params, "b": spoil(params["b"], amount(batch))}
        return apply(params, batch)

    step = make_step(loss, apply=bad_apply)
    return lambda state, seed: step(
        state, None, make_batch(np.ones(B), seed=seed).replace(prompt_id=jnp.full(B, seed))
    )


@pytest.mark.parametrize(
    ("where", "bad"), [("loss", np.nan), ("loss", np.inf), ("leaf", np.nan), ("leaf", -np.inf)]
)
def test_a_step_that_is_not_finite_changes_no_bit(where, bad):
    step = poisoned(where, bad)
    state, skipped = make_state(), []
    states = [state]
    for seed in range(4):
        state, scalars = step(state, seed)
        skipped.append(int(scalars["skipped"]))
        states.append(state)
    assert skipped == [0, 0, 1, 0]
    before, after, last = states[2], states[3], states[4]
    chex.assert_trees_all_equal((before.params, before.opt_state), (after.params, after.opt_state))
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4]
    assert [int(s.skipped) for s in states] == [0, 0, 0, 1, 1]
    chex.assert_tree_all_finite((last.params, last.opt_state))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(last.params, after.params)


@pytest.mark.slow
def test_multiplying_by_zero_instead_of_selecting_would_write_nan(monkeypatch):
    where = jnp.where

    def multiply(condition, new, old):
        if getattr(condition, "shape", None) != () or not hasattr(new, "dtype"):
            return where(condition, new, old)
        return condition * new + (1 - condition) * old

    class Mutant:
        def __getattr__(self, name):
            return multiply if name == "where" else getattr(jnp, name)

    step = poisoned("leaf", np.nan)
    with jax.disable_jit():  # XLA would turn the multiplication back into a selection
        kept, _ = step(make_state(), 2)
        monkeypatch.setattr(step_module, "jnp", Mutant())
        state, _ = step(make_state(), 2)
    assert np.isfinite(kept.params["b"])
    assert np.isnan(state.params["b"])


def test_the_reference_gets_no_gradient_and_is_not_touched():
    batch, ref = make_batch(), make_params(1)
    digest = tree_digest(ref)

    def total(params, ref_params):
        logps = step_module.score(params, ref_params, batch, apply=apply)
        return dpo.loss(logps, batch, beta=0.5)[0].sum()

    policy, reference = jax.grad(total, argnums=(0, 1))(make_params(), ref)
    assert float(optax.tree.norm(policy)) > 0.0
    assert float(optax.tree.norm(reference)) == 0.0
    step, state = jax.jit(make_step(jit=False), donate_argnums=0), make_state()
    for seed in range(3):
        state, _ = step(state, ref, make_batch(seed=seed))
    assert tree_digest(ref) == digest


def steps_with(follow, count, *, bad=()):
    """The states of so many donating steps, whose reference follows, and their losses."""
    update = Update(apply=apply, optimizer=OPTIMIZER, loss=LOSS, follow=follow)
    step = jax.jit(functools.partial(train_step, update=update), donate_argnums=0)
    state = init_state(make_params(), OPTIMIZER, jax.random.key(7), follows=True)
    kept, losses = [jax.tree.map(np.array, (state.params, state.reference))], []
    for seed in range(count):
        batch = make_batch(seed=seed)
        if seed in bad:
            batch = batch.replace(weight=batch.weight.at[0].set(jnp.inf))
        state, scalars = step(state, None, batch)
        kept.append(jax.tree.map(np.array, (state.params, state.reference)))
        losses.append(scalars["loss"])
    return kept, losses


def test_a_reference_that_follows_is_the_mean_that_numpy_computes():
    follow = FollowConfig(every=2, alpha=0.6)
    kept, losses = steps_with(follow, 5, bad=(2,))
    wanted = kept[0][0]
    for done, (policy, reference) in enumerate(kept):
        if done and done % 2 == 0:  # step 3, which was skipped, counts
            wanted = jax.tree.map(lambda p, r: 0.6 * p + 0.4 * r, policy, wanted)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), reference, wanted)
    assert not tiny.same_bits(kept[3][0], kept[1][0])
    assert tiny.same_bits(kept[3][0], kept[2][0])  # skipped
    # What a step compares with is the reference as the step before left it.
    fixed = init_state(kept[3][0], OPTIMIZER, jax.random.key(7))
    _, scalars = make_step()(fixed, kept[3][1], make_batch(seed=3))
    np.testing.assert_allclose(losses[3], scalars["loss"], rtol=1e-6)


def test_after_a_hard_update_policy_and_reference_are_equal():
    kept, losses = steps_with(FollowConfig(every=3, alpha=1.0), 4)
    assert tiny.same_bits(*kept[3])
    assert not tiny.same_bits(*kept[2])
    np.testing.assert_allclose([losses[0], losses[3]], math.log(2), rtol=1e-6)
    assert abs(losses[2] - math.log(2)) > 1e-3


def test_a_donated_state_may_be_stepped_again_and_again():
    plain, donating = make_step(), jax.jit(make_step(jit=False), donate_argnums=0)
    wanted, state = make_state(), make_state()
    for seed in range(3):
        old = state
        wanted, _ = plain(wanted, None, make_batch(seed=seed).replace(ref_logps=jnp.ones((B, K))))
        state, _ = donating(state, None, make_batch(seed=seed).replace(ref_logps=jnp.ones((B, K))))
        assert old.params["w"].is_deleted()
        assert not state.params["w"].is_deleted()
    chex.assert_trees_all_equal(
        dataclasses.replace(state, key=None), dataclasses.replace(wanted, key=None)
    )


def test_cached_log_probabilities_replace_the_reference():
    batch, ref = make_batch(), make_params(1)
    cached = batch.replace(ref_logps=apply(ref, batch))
    live, from_cache = (sgd_gradient(b, r) for b, r in ((batch, ref), (cached, None)))
    chex.assert_trees_all_close(live, from_cache, rtol=1e-6)
    chex.assert_trees_all_equal(sgd_gradient(cached, make_params(2)), from_cache)


def test_useful_tokens_count_a_prompt_once_and_fillers_never():
    batch = make_batch([1.0, 0.0] * 4).replace(
        prompt_length=jnp.full(B, 5), response_length=jnp.full((B, K), 3)
    )
    _, scalars = make_step()(make_state(), make_params(1), batch)
    assert int(scalars["num_tokens"]) == 4 * (5 + 2 * 3)
    assert float(scalars["weight"]) == 4.0


class ScoreTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(True, False)
    def test_score(self, with_reference):
        batch, params = make_batch(), make_params()
        ref = make_params(1) if with_reference else None
        logps = self.variant(functools.partial(score, apply=apply))(params, ref, batch)
        policy, reference = logps.policy, logps.reference
        np.testing.assert_allclose(policy, apply(params, batch), rtol=1e-6)
        if with_reference:
            np.testing.assert_allclose(reference, apply(ref, batch), rtol=1e-6)
        else:
            assert reference is None


def test_a_reward_models_loss_sees_scores_and_no_reference():
    def margin(scores, batch):
        return jax.nn.softplus(scores[:, 1] - scores[:, 0]), {"margin": scores[:, 0] - scores[:, 1]}

    batch, params = make_batch(), make_params()
    state = init_state(params, SGD, jax.random.key(7))
    step = make_step(margin, optimizer=SGD, forward=step_module.reward_scores, rooms=in_parts(2))
    new, scalars = step(state, None, batch)

    def mean(params):
        return jnp.average(margin(apply(params, batch), batch)[0], weights=batch.weight)

    wanted, grads = jax.value_and_grad(mean)(params)
    np.testing.assert_allclose(scalars["loss"], wanted, rtol=1e-6)
    chex.assert_trees_all_close(new.params, jax.tree.map(jnp.subtract, params, grads), atol=1e-6)
