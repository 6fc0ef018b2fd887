"""Rules, placement, and the step on meshes of 8 devices against a single one."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from alignjax.errors import UserError
from alignjax.losses import dpo, kto
from alignjax.models import lora, reward_head
from alignjax.models.config import LoraConfig
from alignjax.models.logps import response_logps
from alignjax.models.transformer import init_params
from alignjax.runtime import sharding
from alignjax.runtime.sharding import make_mesh, path_name, put_rows, shard_tree
from alignjax.stages import pretrained
from alignjax.training.microbatches import AUTO, Rooms
from alignjax.training.step import Update, init_state, train_step
from tests import tiny

FULL = tiny.model(tied_embeddings=False, qkv_bias=True, qk_norm=True)


def shapes_of(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def unnamed_matrices(params):
    """Parameters with two axes beside that of the layers which only the last rule matches."""
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        matrix = leaf.ndim - name.startswith("layers/") >= 2
        if matrix and not any(re.search(pattern, name) for pattern, _ in sharding.RULES[:-1]):
            out.append(name)
    return out


def test_every_row_is_read_by_the_processes_that_hold_it():
    """[data, fsdp, tensor] of processes: whose rows are whose, for 8 parts of 3 rows or fewer."""
    four_by_two = np.arange(8).reshape(2, 2, 2) // 2  # a host has both halves of a row's heads
    across = np.arange(4).reshape(1, 2, 2)  # one device a process: two share their rows
    torn = np.array([0, 1, 0, 1, 1, 0, 1, 0]).reshape(4, 2, 1)  # not contiguous
    for holders, wanted in (
        (four_by_two, [[0], [1], [2], [3]]),
        (across, [[0], [0], [1], [1]]),
        (torn, [[0, 2, 5, 7], [1, 3, 4, 6]]),
        (np.zeros((2, 2, 2), int), [[0, 1, 2, 3]]),
    ):
        found = [sharding.shards_of(holders, i).tolist() for i in range(len(wanted))]
        assert found == wanted
        assert sorted({part for own in found for part in own}) == list(
            range(holders.shape[0] * holders.shape[1])
        )


def test_one_process_reads_all_rows():
    np.testing.assert_array_equal(sharding.own_rows(make_mesh(2, 2, 2), 12), np.arange(12))


def test_every_matrix_has_a_rule_of_its_own():
    assert unnamed_matrices(shapes_of(FULL)) == []
    grown = shapes_of(FULL)
    grown["layers"]["router"] = {"kernel": jnp.zeros((2, 32, 8))}
    assert unnamed_matrices(grown) == ["layers/router/kernel"]


def test_every_rule_is_used():
    reward_model = jax.eval_shape(lambda: reward_head.init_params(FULL, jax.random.key(0)))
    adapters = lora.init(LoraConfig(rank=2), shapes_of(FULL), jax.random.key(0))
    coded = pretrained.quantize_params(tiny.params(FULL), "int8", make_mesh(1, 1, 1))
    trees = (shapes_of(FULL), reward_model, adapters, coded)
    assert unnamed_matrices(adapters) == []
    names = [path_name(p) for tree in trees for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert unnamed_matrices(reward_model) == []
    for i, (pattern, _) in enumerate(sharding.RULES):
        earlier = [p for p, _ in sharding.RULES[:i]]
        assert any(
            re.search(pattern, name) and not any(re.search(p, name) for p in earlier)
            for name in names
        ), pattern


def test_optimizer_moments_follow_their_parameters():
    optimizer = optax.adamw(0.1)
    shapes = jax.eval_shape(
        lambda: init_state(init_params(FULL, jax.random.key(0)), optimizer, jax.random.key(1))
    )
    found = shard_tree(shapes, make_mesh(2, 2, 2))
    wanted = jax.tree.map(lambda s: s.spec, found.params)
    adam = found.opt_state[0]
    assert jax.tree.map(lambda s: s.spec, adam.mu) == wanted
    assert jax.tree.map(lambda s: s.spec, adam.nu) == wanted
    assert wanted["layers"]["q"]["kernel"] == P(None, "fsdp", "tensor")
    assert wanted["layers"]["down"]["kernel"] == P(None, "tensor", "fsdp")
    assert wanted["head"] == P("tensor", "fsdp")
    assert wanted["layers"]["q_norm"]["scale"] == adam.count.spec == found.key.spec == P()


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (
            (1, 3, 1),
            {},
            r"mesh.fsdp=3 does not divide 32, a dimension of embed/embedding \(64, 32\)",
        ),
        (
            (1, 1, 5),
            dict(vocab_size=65, mlp_width=50),
            r"mesh.tensor=5 does not divide 32, .* layers/k/bias",
        ),
        ((1, 1, 8), dict(vocab_size=63), r"mesh.tensor=8 does not divide 63, .* embed/embedding"),
        ((1, 1, 4), dict(mlp_width=50), r"mesh.tensor=4 does not divide 50, .* layers/down/kernel"),
    ],
)
def test_a_dimension_that_does_not_divide_is_refused(mesh, changes, message):
    config = tiny.model(**{**dict(qkv_bias=True, kv_heads=4), **changes})
    with pytest.raises(UserError, match=f"^{message}"):
        shard_tree(shapes_of(config), make_mesh(*mesh))


def test_too_few_devices_are_refused():
    with pytest.raises(UserError, match=r"data=3 x fsdp=3 x tensor=1 needs 9 devices, found 8"):
        make_mesh(3, 3, 1)
    assert make_mesh(1, 2, 1).size == 2  # fewer than there are will do


def test_rows_go_to_their_devices_and_nowhere_else():
    batch, mesh = tiny.ragged(2, b=8), make_mesh(2, 2, 2)
    placed = put_rows(batch, mesh)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, placed), batch)
    assert placed.scores is None
    for shard in placed.response.addressable_shards:
        assert shard.data.shape == (2, *batch.response.shape[1:])
    starts = {s.index[0].start or 0 for s in placed.weight.addressable_shards}
    assert starts == {0, 2, 4, 6}
    with pytest.raises(ValueError, match="partitioned 4 times"):
        put_rows(tiny.ragged(2, b=6), mesh)


# Cross-path: the same two steps, computed in other ways.

CONFIG = tiny.model(kv_heads=4, qkv_bias=True, tied_embeddings=False, logits_chunk=3)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, eps=1e-3))
ONE_ROW = Rooms(given=1, padded=True)  # of a place at a time
WEIGHT = np.array([1, 1, 0, 2, 1, 0.5, 1, 3], np.float32)


def batches():
    return [tiny.ragged(2, b=8, seed=seed).replace(weight=WEIGHT) for seed in (0, 1)]


def two_steps(mesh_shape, rooms=AUTO, live=True, **changes):
    """Parameters and scalars after two steps from the same start."""
    config = tiny.model(**{**vars_of(CONFIG), **changes})
    mesh = make_mesh(*mesh_shape)
    apply = functools.partial(response_logps, config=config)
    start = tiny.params(CONFIG)
    reference = tiny.params(CONFIG, seed=1)
    ref_logps = jax.jit(lambda b: apply(reference, b))

    def init(params):
        return init_state(params, OPTIMIZER, jax.random.key(0))

    layout = shard_tree(jax.eval_shape(init, start), mesh)
    state = jax.jit(init, out_shardings=layout)(start)
    ref_params = jax.device_put(reference, layout.params) if live else None
    step = jax.jit(
        functools.partial(
            train_step,
            update=Update(
                apply=apply,
                optimizer=OPTIMIZER,
                loss=functools.partial(dpo.loss, beta=0.5),
                rooms=rooms,
            ),
        ),
        donate_argnums=0,
        out_shardings=(layout, None),
        compiler_options=tiny.FAST,
    )
    out = []
    for batch in batches():
        if not live:
            batch = batch.replace(ref_logps=np.asarray(ref_logps(batch)))
        state, scalars = step(state, ref_params, put_rows(batch, mesh))
        out.append(scalars)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim)
    return jax.device_get((state.params, out))


@pytest.mark.parametrize("rooms", [AUTO, ONE_ROW], ids=["whole", "parts"])
def test_a_baseline_is_of_the_batch_over_all_devices(rooms):
    """KTO's partner of a row may lie on another device, and its mean is over all of them."""

    def kto_step(mesh):
        step = functools.partial(
            train_step,
            update=Update(
                apply=lambda params, b: params * b.response.sum(axis=-1) / 64,
                optimizer=optax.sgd(1.0),
                loss=functools.partial(kto.loss, beta=1.0),
                select=kto.select,
                baseline=kto.baseline,
                rooms=rooms,
            ),
        )
        state = init_state(jnp.float32(1.0), optax.sgd(1.0), jax.random.key(0))
        batch = tiny.ragged(1, b=16).replace(
            weight=np.arange(16, dtype=np.float32) % 3, desirable=np.arange(16)[:, None] % 2 == 0
        )
        state, scalars = jax.jit(step)(state, jnp.float32(0.2), put_rows(batch, mesh))
        return jax.device_get((state.params, state.baseline, scalars))

    single, sharded = kto_step(make_mesh(1, 1, 1)), kto_step(make_mesh(4, 2, 1))
    assert_same_steps(sharded, single)
    assert abs(single[1]) > 0.1


def vars_of(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.fixture(scope="module")
def single():
    return two_steps((1, 1, 1))


def assert_same_steps(found, wanted):
    """Sums in another order differ in the last bits of float32; Adam's eps keeps them small."""
    chex.assert_trees_all_close(found, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 4, 2), (8, 1, 1)])
def test_steps_on_any_mesh_equal_those_on_one_device(single, shape):
    assert_same_steps(two_steps(shape), single)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((2, 2, 2), dict(live=False, rooms=ONE_ROW)),
        ((1, 1, 1), dict(live=False, rooms=ONE_ROW, logits_chunk=64, remat="full")),
    ],
    ids=["on a mesh", "recomputed in one chunk"],
)
def test_accumulated_steps_with_a_cached_reference_are_the_same(single, shape, way):
    assert_same_steps(two_steps(shape, **way), single)
