"""Quantised bases: codes and levels in NumPy float64, stated errors, what steps keep and train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from alignjax.config import OptimConfig
from alignjax.errors import UserError
from alignjax.losses import dpo
from alignjax.models import lora, quantized
from alignjax.models.config import LoraConfig, check_adapters
from alignjax.models.logps import response_logps
from alignjax.runtime import sharding
from alignjax.runtime.checkpoint import tree_digest
from alignjax.stages import pretrained
from alignjax.training import optim
from alignjax.training.step import Update, init_state, score, train_step, with_adapters
from tests import tiny
from tests.oracles import jaxprs

# Blocks of 64 inputs, and of 32 where 32 or 96 come in; biases.
MODEL = tiny.model(width=64, mlp_width=96, qkv_bias=True)
BLOCKS = {"o": 32, "down": 32}
MESH = functools.cache(lambda: sharding.make_mesh(1, 1, 1))


@functools.cache
def base(kind=""):
    params = jax.tree.map(jnp.asarray, tiny.params(MODEL))
    return pretrained.quantize_params(params, kind, MESH())


def kernels(kind):
    layers = base()["layers"]
    for name, leaves in base(kind)["layers"].items():
        if "kernel" in leaves:
            yield name, np.asarray(layers[name]["kernel"], np.float64), leaves["kernel"]


def nf4_levels():
    """Appendix E: quantiles of the normal distribution, 8 up and 7 down, with 0; the largest is 1.

    The offset is the mean of 1 - 1/32 and 1 - 1/30.
    """
    offset = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    up = scipy.stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    down = -scipy.stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([up, [0.0], down]))
    return levels / levels.max()


def test_int8_is_the_nearest_of_256_steps_of_each_output():
    for _, kernel, found in kernels("int8"):
        scale = np.abs(kernel).max(1, keepdims=True) / 127.5
        wanted = np.clip(np.round(kernel / scale), -128, 127)
        np.testing.assert_allclose(found["scale"], scale, rtol=1e-6)
        assert found["codes"].dtype == jnp.int8
        # float32 division decides ties otherwise than float64, and only those
        differ = np.asarray(found["codes"]) != wanted
        assert np.abs(np.abs(kernel / scale)[differ] % 1 - 0.5).max(initial=0) < 1e-4
        error = np.abs(np.asarray(quantized.decode(found)) - kernel)
        # half a step, and the float32 rounding of 127 steps
        assert (error <= scale * (0.5 + 127 * 2**-23)).all()


def test_nf4_is_the_nearest_level_of_each_block():
    levels = nf4_levels()
    for name, kernel, found in kernels("nf4"):
        count, rows, columns = kernel.shape
        block = BLOCKS.get(name, 64)
        parts = kernel.reshape(count, rows // block, block, columns)
        scale = np.abs(parts).max(2)
        np.testing.assert_allclose(found["scale"], scale, rtol=1e-6)
        assert found["codes"].shape == (count, rows, columns // 2)
        assert found["codes"].dtype == jnp.uint8
        nearest = np.abs(parts[..., None] / scale[:, :, None, :, None] - levels).argmin(-1)
        wanted = levels[nearest] * scale[:, :, None]
        decoded = np.asarray(quantized.decode(found)).reshape(parts.shape)
        np.testing.assert_allclose(decoded, wanted, atol=1e-6 * scale.max())
        # a normal sample loses about a tenth of its size: the error that the docs state
        lost = np.sqrt(((decoded - parts) ** 2).mean() / (parts**2).mean())
        assert 0.05 < lost < 0.12


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.0), ("nf4", 4.0)])
def test_memory_is_what_is_said(kind, bits):
    for name, kernel, found in kernels(kind):
        count, rows, columns = kernel.shape
        blocks = 1 if kind == "int8" else rows / BLOCKS.get(name, 64)
        used = sum(x.nbytes for x in found.values())
        assert used == kernel.size * bits / 8 + 4 * count * blocks * columns
    rest = {k: v for k, v in base(kind).items() if k != "layers"}
    jax.tree.map(np.testing.assert_array_equal, rest, {k: base()[k] for k in rest})
    bias = base(kind)["layers"]["q"]["bias"]
    np.testing.assert_array_equal(bias, base()["layers"]["q"]["bias"])


@functools.partial(jax.jit, static_argnames="config")
def logps_and_gradient(params, batch, config):
    """Of the responses, and of their sum by the embedding: through every projection."""

    def value(embed):
        found = response_logps({**params, "embed": embed}, batch, config=config)
        return found.sum(), found

    return jax.value_and_grad(value, has_aux=True)(params["embed"])


# Two layers of random weights, the worst case: published networks lose less (docs/models.md).
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.1), ("nf4", 1.5)])
def test_the_network_is_that_of_the_decoded_kernels_and_near_the_first_one(kind, most):
    batch = tiny.ragged()
    params = base(kind)
    decoded = quantized.decode_params(params)
    assert jax.tree.structure(decoded) == jax.tree.structure(base())
    (_, found), gradient = logps_and_gradient(params, batch, MODEL)
    (_, wanted), right = logps_and_gradient(decoded, batch, MODEL)
    (_, first), _ = logps_and_gradient(base(), batch, MODEL)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    scale = np.abs(right["embedding"]).max()
    np.testing.assert_allclose(gradient["embedding"], right["embedding"], atol=1e-5 * scale)
    away = np.abs(np.asarray(found) - np.asarray(first)).max()
    assert most / 100 < away < most


def pairs(b=4):
    batch = tiny.ragged(2, b=b)
    return batch.replace(response_length=np.maximum(batch.response_length, 1))


OPTIMIZER = optim.make(OptimConfig(learning_rate=3e-2, schedule=optim.constant), 1)


def step_of(model, config):
    forward = functools.partial(with_adapters, forward=score, config=config, live=True)
    return functools.partial(
        train_step,
        update=Update(
            apply=functools.partial(response_logps, config=model),
            optimizer=OPTIMIZER,
            loss=functools.partial(dpo.loss, beta=0.1),
            forward=forward,
        ),
    )


def fresh(config):
    shapes = jax.eval_shape(lambda: base())
    return init_state(lora.init(config, shapes, jax.random.key(1)), OPTIMIZER, jax.random.key(0))


@pytest.mark.slow
def test_adapters_learn_and_the_codes_stay():
    config = LoraConfig(rank=4, quantize="nf4")
    params, run = base("nf4"), jax.jit(step_of(MODEL, config))
    before, state, losses = tree_digest(params), fresh(config), []
    for _ in range(3):
        state, scalars = run(state, params, pairs())
        losses.append(float(scalars["loss"]))
        if len(losses) == 1:  # policy and reference are one network
            assert scalars["rewards/chosen"] == scalars["rewards/rejected"] == 0
    assert losses[-1] < losses[0] - 1e-3
    assert tree_digest(params) == before
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def stacked_floats(jaxpr, shapes):
    """Values of a program that are all layers' kernels in a floating type."""
    return [
        eqn.primitive.name
        for eqn in jaxprs.equations(jaxpr)
        for out in eqn.outvars
        if out.aval.shape in shapes and jnp.issubdtype(out.aval.dtype, jnp.floating)
    ]


def test_a_step_never_holds_the_kernels_of_all_layers():
    config = LoraConfig(rank=4, quantize="nf4")
    model = tiny.model(width=64, mlp_width=96, layers=5)
    params = tiny.params(model)
    shapes = {x["kernel"].shape for x in params["layers"].values() if "kernel" in x}
    coded = jax.eval_shape(lambda: pretrained.quantize_params(params, "nf4", MESH()))
    new = lora.init(config, params, jax.random.key(1))
    state = init_state(new, OPTIMIZER, jax.random.key(0))

    program = jax.make_jaxpr(step_of(model, config))(state, coded, pairs())
    assert stacked_floats(program.jaxpr, shapes) == []
    assert stacked_floats(jax.make_jaxpr(quantized.decode_params)(coded).jaxpr, shapes) != []


@pytest.mark.slow
def test_on_a_mesh_it_is_the_same():
    config = LoraConfig(rank=4, quantize="nf4")
    batch = pairs(b=8)
    run = jax.jit(step_of(MODEL, config))
    _, wanted = run(fresh(config), base("nf4"), batch)
    mesh = sharding.make_mesh(2, 2, 2)
    split = jax.device_put(base(), sharding.shard_tree(base(), mesh))
    coded = pretrained.quantize_params(split, "nf4", mesh)
    jax.tree.map(np.testing.assert_array_equal, coded, base("nf4"))
    kernel = coded["layers"]["q"]["kernel"]
    assert kernel["codes"].sharding.spec == P(None, "fsdp", "tensor")
    assert kernel["scale"].sharding.spec == P(None, None, "tensor")
    _, found = run(fresh(config), coded, sharding.put_rows(batch, mesh))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(
        UserError, match=r"^lora\.quantize: wanted int8, nf4 or nothing, found 'x'$"
    ):
        LoraConfig(quantize="x")
    odd, said = (
        tiny.model(mlp_width=47),
        r"^lora\.quantize: nf4 wanted an even model\.mlp_width, found 47",
    )
    with pytest.raises(UserError, match=said):
        check_adapters(LoraConfig(rank=2, quantize="nf4"), odd)
    check_adapters(LoraConfig(rank=2, quantize="int8"), odd)
