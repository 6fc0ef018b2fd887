"""LoRA: against the dense network in float64, in a step with every kind of objective, sharded."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from alignjax.errors import UserError
from alignjax.losses import bradley_terry, dpo, kto, plackett_luce, sft
from alignjax.models import lora, reward_head
from alignjax.models.config import LoraConfig, check_adapters
from alignjax.models.logps import response_logps
from alignjax.runtime import sharding
from alignjax.runtime.checkpoint import tree_digest
from alignjax.training import microbatches, step
from alignjax.training.microbatches import Rooms
from alignjax.training.step import (
    Update,
    init_state,
    reward_scores,
    score,
    stacked_step,
    train_step,
    with_adapters,
)
from tests import tiny
from tests.oracles import jaxprs

MODEL = tiny.model(qkv_bias=True)
CONFIG = LoraConfig(rank=3, alpha=7.5)
OPTIMIZER = optax.adam(0.01)
ROOMS = Rooms(given=1, padded=True)  # a row at a time


def adapters(config=CONFIG, seed=None):
    """Fresh ones, or with a seed ones whose B is random too."""
    fresh = lora.init(config, tiny.params(MODEL), jax.random.key(1))
    if seed is None:
        return fresh
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape).astype(np.float32), fresh)


def rows(k=2, b=4, seed=0, **fields):
    batch = tiny.ragged(k, b=b, seed=seed)
    length = np.maximum(batch.response_length, 1)
    return batch.replace(response_length=length, **fields)


def step_of(loss, apply=response_logps, forward=score, live=True, config=CONFIG, **keywords):
    model = keywords.pop("model", MODEL)
    forward = functools.partial(with_adapters, forward=forward, config=config, live=live)
    apply = functools.partial(apply, config=model)
    update = Update(apply=apply, optimizer=OPTIMIZER, loss=loss, forward=forward, **keywords)
    return functools.partial(train_step, update=update)


# --- the function and its gradient


def test_values_and_gradients_are_those_of_the_dense_network():
    batch, new = tiny.ragged(), adapters(seed=2)
    with tiny.float64(MODEL) as exact:
        base, new = jax.tree.map(lambda x: np.asarray(x, np.float64), (tiny.params(MODEL), new))

        def value(params):
            return jnp.sum(jnp.sin(response_logps(params, batch, config=exact)))

        @jax.jit
        def both(base, new):
            thin = jax.value_and_grad(lambda x: value(lora.join(base, x, CONFIG)))(new)
            return thin, jax.value_and_grad(value)(lora.merge(base, new, CONFIG)), value(base)

        (ours, found), (dense, wide), untouched = both(base, new)
    np.testing.assert_allclose(ours, dense, rtol=1e-9)
    assert abs(float(ours) - float(untouched)) > 0.1
    for name, own in new["layers"].items():
        gradient = 2.5 * np.asarray(wide["layers"][name]["kernel"])
        a, b = (x.swapaxes(1, 2) for x in (own["lora_a"], own["lora_b"]))
        wanted = {"lora_a": gradient @ b, "lora_b": a @ gradient}
        for leaf, x in wanted.items():
            scale = np.abs(x).max()
            np.testing.assert_allclose(found["layers"][name][leaf], x, atol=1e-9 * scale)


def test_merged_weights_are_summed_in_float32_and_kept_in_the_base_s_dtype():
    base, new = tiny.params(MODEL), adapters(seed=3)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), base)
    assert {x.dtype for x in jax.tree.leaves(lora.merge(half, new, CONFIG))} == {
        jnp.dtype("bfloat16")
    }
    wanted = lora.merge(jax.tree.map(lambda x: x.astype(np.float32), half), new, CONFIG)
    found = lora.merge(half, new, CONFIG)["layers"]["up"]["kernel"]
    np.testing.assert_array_equal(found, wanted["layers"]["up"]["kernel"].astype(jnp.bfloat16))


def test_only_the_targets_get_adapters():
    config = LoraConfig(rank=2, targets=("v", "q"))
    assert sorted(adapters(config)["layers"]) == ["q", "v"]
    joined = lora.join(tiny.params(MODEL), adapters(config), config)["layers"]
    assert "lora_a" in joined["q"]
    assert "lora_a" not in joined["k"]


def test_dropout_keeps_the_mean_and_depends_on_the_row_alone():
    config = LoraConfig(rank=2, dropout=0.25, targets=("q", "up"))
    base, new, key = tiny.params(MODEL), adapters(config), jax.random.key(0)

    def keys(*numbers):
        joined = lora.join(base, new, config, key=key, rows=jnp.array(numbers))["layers"]
        return [jax.random.key_data(joined[n]["lora_keys"]) for n in config.targets]

    (q, up), (other, _) = keys(3, 8), keys(8, 5)
    np.testing.assert_array_equal(q[:, 1], other[:, 0])
    assert len(np.unique(np.concatenate([q, up]).reshape(-1, 2), axis=0)) == 8  # layer, row, name
    leaves = {
        "lora_a": jnp.eye(400),
        "lora_b": jnp.eye(400),
        "lora_keys": jax.random.split(key, 2),
        "lora_dropout": jnp.float32(0.25),
    }
    row = jnp.broadcast_to(jnp.arange(2)[:, None], (2, 50))
    number = jnp.broadcast_to(jnp.arange(50), (2, 50))
    found = np.asarray(lora.low_rank(jnp.ones((2, 50, 400)), leaves, row, number))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
    # 40,000 draws: the share's standard error is 0.0022; five of them.
    assert abs((found == 0).mean() - 0.25) < 5 * 0.0022
    assert (found[0] != found[1]).any()
    assert "lora_keys" not in lora.join(base, new, config)["layers"]["q"]  # without a key: none


# --- the step


def kernels_written(jaxpr, shapes):
    """Matrix products in a program whose result has the shape of a kernel."""
    products = (x for x in jaxprs.equations(jaxpr) if x.primitive.name == "dot_general")
    return sum(x.outvars[0].aval.shape in shapes for x in products)


def test_no_gradient_of_a_targeted_kernel_is_formed():
    base, batch = tiny.params(MODEL), rows()
    shapes = {x["kernel"].shape[1:] for x in base["layers"].values() if "kernel" in x}
    shapes |= {shape[::-1] for shape in shapes}
    loss = functools.partial(dpo.loss, beta=0.1)
    state = init_state(adapters(), OPTIMIZER, jax.random.key(0))
    ours = jax.make_jaxpr(step_of(loss))(state, base, batch)
    assert kernels_written(ours.jaxpr, shapes) == 0
    apply = functools.partial(response_logps, config=MODEL)
    whole = functools.partial(
        train_step, update=Update(apply=apply, optimizer=OPTIMIZER, loss=loss)
    )
    dense = jax.make_jaxpr(whole)(init_state(base, OPTIMIZER, jax.random.key(0)), base, batch)
    assert kernels_written(dense.jaxpr, shapes) >= 7


def cases():
    scores = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    desirable = np.array([[True], [False], [True], [False]])
    table = np.full((4, 3), -20, np.float32)
    return {
        "pairs, reference live": (functools.partial(dpo.loss, beta=0.1), rows(), {}),
        "lists, reference cached": (
            functools.partial(plackett_luce.loss, beta=0.1),
            rows(3, scores=scores, ref_logps=table),
            dict(live=False),
        ),
        "labels, with a baseline": (
            functools.partial(kto.loss, beta=0.1),
            rows(1, desirable=desirable),
            dict(select=kto.select, baseline=kto.baseline, rooms=ROOMS),
        ),
        "a reward model": (
            bradley_terry.reward_loss,
            rows(3, scores=scores),
            dict(apply=reward_head.response_scores, forward=reward_scores, live=False),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_adapters_learn_with_every_kind_of_objective(name):
    loss, batch, keywords = cases()[name]
    base, new = jax.device_put(tiny.params(MODEL)), adapters()
    if name == "a reward model":
        new["reward"] = {"kernel": jnp.zeros((MODEL.width, 1))}
    digest = tree_digest(base)
    run = jax.jit(step_of(loss, **keywords), donate_argnums=0)
    state, losses = init_state(new, OPTIMIZER, jax.random.key(0)), []
    for _ in range(4):
        state, scalars = run(state, base, batch)
        losses.append(float(scalars["loss"]))
        if name == "pairs, reference live" and len(losses) == 1:
            assert scalars["rewards/chosen"] == scalars["rewards/rejected"] == 0  # bit for bit
    assert losses[-1] < losses[0]
    assert tree_digest(base) == digest
    moved = jax.tree.map(lambda x: float(jnp.abs(x).max()), state.params["layers"])
    assert all(x["lora_b"] > 0 for x in moved.values())


@pytest.mark.long
def test_a_step_with_dropout_is_the_same_on_a_mesh_in_parts_and_recomputed():
    config = LoraConfig(rank=4, dropout=0.5)
    loss = functools.partial(dpo.loss, beta=0.5)
    base = tiny.params(MODEL)
    fresh = init_state(adapters(config, seed=4), OPTIMIZER, jax.random.key(5))
    batch = rows(b=8)
    alone, wanted = jax.jit(step_of(loss, config=config))(fresh, base, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    place = jax.tree.map(jax.device_put, (fresh, base), sharding.shard_tree((fresh, base), mesh))
    assert place[0].params["layers"]["o"]["lora_a"].sharding.spec == P(None, "tensor")
    remat = tiny.model(qkv_bias=True, remat="full")
    parted = jax.jit(step_of(loss, config=config, rooms=ROOMS, model=remat))
    found, scalars = parted(*place, sharding.put_rows(batch, mesh))
    np.testing.assert_allclose(scalars["loss"], wanted["loss"], rtol=1e-5)
    # Adam's first step is the sign of the gradient times 0.01: compared by its moments instead.
    chex.assert_trees_all_close(
        jax.device_get(found.opt_state[0].mu), jax.device_get(alone.opt_state[0].mu), atol=1e-5
    )
    renumbered = batch.replace(prompt_id=batch.prompt_id + 1)
    other = parted(*place, sharding.put_rows(renumbered, mesh))[1]
    assert abs(other["loss"] - scalars["loss"]) > 1e-3


# --- several networks side by side


@pytest.mark.long
def test_adapters_side_by_side_learn_what_each_learns_alone():
    """Three sets with dropout on rows of their own; in step 1 one of them has to skip."""
    config, count = LoraConfig(rank=2, dropout=0.3), 3
    keys = [jax.random.fold_in(jax.random.key(9), p) for p in range(count)]

    def start(p, key):
        return init_state(wide(adapters(config, seed=p)), OPTIMIZER, key)

    def wide(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)

    def stacked(trees):
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    def mixed(batches):  # row i is network i % 3's
        return jax.tree.map(lambda *x: np.stack(x, 1).reshape(-1, *x[0].shape[1:]), *batches)

    with tiny.float64(MODEL, step, microbatches) as exact:
        run = step_of(sft.loss, config=config, live=False, model=exact)
        alone, together = jax.jit(run), jax.jit(functools.partial(stacked_step, **run.keywords))
        base = wide(tiny.params(MODEL))
        states = [start(p, key) for p, key in enumerate(keys)]
        stack = stacked(states)
        for number in range(3):
            batches = [rows(1, seed=3 * number + p) for p in range(count)]
            if number == 1:
                batches[2] = batches[2].replace(weight=np.full(4, np.inf, np.float32))
            stack, told = together(stack, base, mixed(batches))
            pairs = [alone(s, base, x) for s, x in zip(states, batches, strict=True)]
            states, each = zip(*pairs, strict=True)
            assert told["skipped"] == (number == 1)
            if number != 1:
                mean = np.mean([x["loss"] for x in each])
                np.testing.assert_allclose(told["loss"], mean, rtol=1e-9)
            assert told["num_tokens"] == sum(x["num_tokens"] for x in each)
        assert stack.skipped.tolist() == [0, 0, 1]
        for p in range(count):
            found = jax.tree.map(lambda x, p=p: x[p], stack)
            chex.assert_trees_all_close(found.params, states[p].params, rtol=1e-9, atol=1e-12)
        # With equal starts and rows, equal keys draw alike, and only they.
        stack = stacked([start(0, keys[0]), start(0, keys[0]), start(0, keys[1])])
        stack, _ = together(stack, base, mixed([rows(1)] * 3))
        moved = stack.opt_state[0].mu["layers"]["q"]["lora_a"]
        np.testing.assert_array_equal(moved[0], moved[1])
        assert np.abs(moved[0] - moved[2]).max() > 1e-3


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(targets=("q_proj",)), r"lora\.targets: .*found 'q_proj' \(did you mean 'q'\?\)"),
        (dict(targets=("gat",)), r"lora\.targets: .*found 'gat' \(did you mean 'gate'\?\)"),
        (dict(targets=()), r"lora\.targets: wanted some of q, k"),
        (dict(targets=("q", "q")), r"lora\.targets: wanted each name once"),
        (dict(rank=0), r"lora\.rank: wanted a number in \[1, .*\], found 0"),
        (dict(alpha=0.0), r"lora\.alpha: wanted a positive number"),
        (dict(dropout=1.0), r"lora\.dropout: wanted a number in \[0, 1\)"),
    ],
)
def test_what_makes_no_adapters_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        LoraConfig(**changes)


def test_a_rank_above_a_kernel_s_smaller_dimension_is_refused():
    check_adapters(LoraConfig(rank=16), MODEL)
    with pytest.raises(UserError, match=r"lora\.rank: wanted 16 at most, .*of k, found 17"):
        check_adapters(LoraConfig(rank=17), MODEL)
    check_adapters(LoraConfig(rank=32, targets=("q", "down")), MODEL)
