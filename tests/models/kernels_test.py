"""Fused attention against `attend`: numbers, gradients and who sees whom, on any machine.

Splash runs in Pallas' interpreter. cuDNN itself was not run: it is XLA's implementation of the same
call, with the same mask, that is compared here, and cuDNN's own is lowered without a GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alignjax.errors import UserError
from alignjax.models import kernels, layer, logps
from alignjax.models.config import ModelConfig
from alignjax.runtime.sharding import make_mesh, put_rows, shard_tree
from alignjax.stages import pretrained
from tests import runs, tiny

B, PROMPT, K, R = 2, 130, 3, 90  # 400 tokens: 512 in blocks of 128, and responses end inside them
H, G, D = 4, 2, 8


def config(**changes):
    return tiny.model(heads=H, kv_heads=G, head_dim=D, **changes)


# A window that cuts prompts and responses; with layers that have none; what Gemma adds.
KINDS = {
    "all": (config(), None),
    "window": (config(window=50), None),
    "layer with a window": (config(window=50, full_every=2, attention_softcap=1.5), False),
    "layer without": (config(window=50, full_every=2, query_scalar=6.0), True),
}


def inputs(s, lengths=(1, PROMPT)):
    rng = np.random.default_rng(0)
    shapes = ((B, s, H, D), (B, s, G, D), (B, s, G, D))
    arrays = [2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]
    prompt = np.arange(PROMPT) >= PROMPT - np.array(lengths)[:, None]
    # What padding tokens see is not defined: nothing reads it, so that no gradient reaches it.
    real = np.concatenate([prompt, np.ones((B, s - PROMPT), bool)], axis=1)
    weight = rng.normal(size=(B, s, H, D)).astype(np.float32) * real[..., None, None]
    return arrays, prompt, weight


@functools.partial(jax.jit, static_argnames=("of", "kernel", "responses"))
def run(arrays, prompt, weight, full, *, of, kernel, responses):
    """What attention gives, and the gradients of a weighted sum of it."""
    view = layer.View(
        angle=None, window_angle=None, prompt_mask=prompt, prompt_tokens=PROMPT, responses=responses
    )

    def total(arrays):
        out, _ = layer.attend_tokens(*arrays, view, None, of, full)
        return (out * weight).sum(), out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "of_array", lambda of, x: kernel)
        patch.setattr(kernels, "_BLOCKS", (128,))
        make, whole = splash_attention.make_splash_mha, jax.nn.dot_product_attention
        patch.setattr(splash_attention, "make_splash_mha", functools.partial(make, interpret=True))
        patch.setattr(
            jax.nn,
            "dot_product_attention",
            lambda *args, implementation, **options: whole(*args, implementation="xla", **options),
        )
        gradients, out = jax.grad(total, has_aux=True)(arrays)
    return out, gradients


def on_mesh(arrays, prompt, weight, full):
    """The same arrays as a step has them: rows over fsdp, heads over tensor."""
    mesh = make_mesh(1, 2, 2)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    heads = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
    return (
        [jax.device_put(x, heads) for x in arrays],
        jax.device_put(prompt, rows),
        jax.device_put(weight, heads),
        None if full is None else jax.device_put(jnp.asarray(full), NamedSharding(mesh, P())),
    )


@functools.cache
def wanted(kind, s):
    """What `attend` gives, on one device."""
    of, full = KINDS[kind]
    full = None if full is None else jnp.asarray(full)
    return run(*inputs(s), full, of=of, kernel="xla", responses=K if s > PROMPT else 1)


def check(kernel, kind, s=PROMPT + K * R, *, responses=K):
    of, full = KINDS[kind]
    arrays, prompt, weight = inputs(s)
    placed = on_mesh(arrays, prompt, weight, full)
    out, gradients = run(*placed, of=of, kernel=kernel, responses=responses)
    assert np.isfinite(out).all()
    there, its_gradients = wanted(kind, s)
    real = weight != 0
    # Sums of up to 500 products in another order.
    np.testing.assert_allclose(np.where(real, out, 0), np.where(real, there, 0), atol=1e-5)
    for mine, theirs in zip(gradients, its_gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
def test_splash_equals_xla(kind):
    check("splash", kind)


def test_splash_on_prompts_alone_equals_xla():
    check("splash", "all", PROMPT, responses=1)


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][0].attention_softcap is None])
def test_cudnns_mask_equals_xla(kind):
    check("cudnn", kind)


def test_a_token_sees_the_prompt_and_its_own_response_up_to_itself():
    part = np.array([0, 0, 0, 1, 1, 2, 2])
    place = np.array([0, 1, 2, 3, 4, 3, 4])
    everything = ["x......", "xx.....", "xxx....", "xxxx...", "xxxxx..", "xxx..x.", "xxx..xx"]
    two = ["x......", "xx.....", ".xx....", "..xx...", "...xx..", "..x..x.", ".....xx"]
    for window, rows in ((7, everything), (2, two)):
        seen = kernels.sees(part, place, window)
        assert ["".join(".x"[x] for x in row) for row in seen.astype(int)] == rows


def test_blocks_that_nobody_sees_are_skipped(monkeypatch):
    """Of 4 x 4 blocks: a prompt of one, and three responses of one that see it and themselves."""
    counted = []
    scope = jax.named_scope
    monkeypatch.setattr(jax, "named_scope", lambda name: counted.append(name) or scope(name))
    monkeypatch.setattr(kernels, "_BLOCKS", (128,))
    x = [jax.ShapeDtypeStruct((B, 512, heads, D), jnp.bfloat16) for heads in (H, G, G)]
    mask = jax.ShapeDtypeStruct((B, 128), jnp.bool_)
    attend = functools.partial(kernels.attend_fused, "splash", full=None, config=config())
    jax.eval_shape(lambda *args: attend(*args, 3), *x, mask)
    [name] = [name for name in counted if name.startswith("splash_") and name[7].isdigit()]
    assert name == "splash_7_128"


def test_cudnn_takes_what_it_is_given(monkeypatch):
    """Lowered for a GPU as if cuDNN were here: shapes, types and the mask pass its checks."""
    module = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 90000)
    arrays, prompt, _ = inputs(PROMPT + K * R)

    def total(arrays):
        out = kernels.attend_fused("cudnn", *arrays, prompt, K, full=None, config=config())
        return out.astype(jnp.float32).sum()

    single = [x.astype(jnp.bfloat16) for x in arrays]
    text = jax.jit(jax.grad(total)).trace(single).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    assert "CAUSAL" in text
    with pytest.raises(ValueError, match="Unsupported dtype"):
        jax.jit(total).trace(arrays)


@pytest.mark.parametrize("remat", ["none", "kv"])
def test_whole_networks_are_traced_with_the_kernel(remat, monkeypatch):
    """Inside of the scan over layers, on a mesh, with a gradient."""
    monkeypatch.setattr(kernels, "of_array", lambda of, x: "splash")
    of, mesh = tiny.model(remat=remat, window=4, full_every=2), make_mesh(1, 2, 2)
    params = jax.device_put(tiny.params(of), shard_tree(tiny.params(of), mesh))
    batch = put_rows(tiny.ragged(2, b=2), mesh)
    total = jax.grad(lambda params: logps.response_logps(params, batch, config=of).sum())
    text = str(jax.jit(total).trace(params).jaxpr)
    assert [text.count(f"name=splash_mha_{x}_seg") > 0 for x in ("fwd", "dq", "dkv")] == [True] * 3


@pytest.mark.parametrize(
    ("changes", "platform", "tensor", "kernel"),
    [
        (dict(), "tpu", 2, "splash"),
        (dict(attention_softcap=50.0, window=8, full_every=2), "tpu", 1, "splash"),
        (dict(), "tpu", 4, "xla"),  # two key heads on four devices
        (dict(), "cpu", 1, "tiles"),
        (dict(dtype="bfloat16"), "gpu", 1, "tiles"),  # cuDNN's is to be asked for
        (dict(attention="xla"), "tpu", 1, "xla"),
        (dict(attention="splash"), "tpu", 1, "splash"),
        (dict(attention="cudnn", dtype="bfloat16", window=8), "gpu", 2, "cudnn"),
    ],
)
def test_the_kernel_that_is_chosen(changes, platform, tensor, kernel):
    assert kernels.choose(config(**changes), platform, tensor) == kernel


@pytest.mark.parametrize(
    ("changes", "platform", "tensor", "message"),
    [
        (dict(attention="splash"), "cpu", 1, "'splash' wanted a TPU, found cpu; or use 'xla'"),
        (dict(attention="splash"), "tpu", 4, "model.kv_heads that mesh.tensor=4 divides, found 2"),
        (dict(attention="cudnn"), "tpu", 1, "'cudnn' wanted a GPU, found tpu"),
        (dict(attention="cudnn"), "gpu", 1, "wanted model.dtype=bfloat16, found float32"),
        (dict(attention="cudnn", head_dim=12), "gpu", 1, "multiple of 8, 128 at most, found 12"),
        (dict(attention="cudnn", head_dim=256), "gpu", 1, "multiple of 8, 128 at most, found 256"),
        (dict(attention="cudnn", attention_softcap=5.0), "gpu", 1, "softcap=None, found 5.0"),
    ],
)
def test_a_kernel_that_cannot_be_is_refused(changes, platform, tensor, message):
    types = {} if "model.dtype" in message else {"dtype": "bfloat16"}
    of = ModelConfig(**{**dict(heads=H, kv_heads=G, head_dim=D), **types, **changes})
    with pytest.raises(UserError, match=f"^model.attention: .*{message}"):
        kernels.choose(of, platform, tensor)


def test_a_run_is_refused_before_its_data_are_read():
    of = runs.changed("model.attention=splash", "data.path=nowhere")
    with pytest.raises(UserError, match=r"model\.attention: 'splash' wanted a TPU, found cpu"):
        pretrained.resolve(of)
    assert pretrained.resolve(of, runs=False).model.attention == "splash"
    with pytest.raises(
        UserError, match=r"model\.attention: wanted auto or tiles or xla or splash or cudnn"
    ):
        runs.changed("model.attention=flash")
    cut = runs.changed("mesh.tensor=3", "data.path=nowhere")
    with pytest.raises(UserError, match=r"^mesh\.tensor=3 does not divide model\.heads="):
        pretrained.resolve(cut)


def test_a_program_is_refused_while_it_is_traced():
    of = tiny.model(attention="splash")
    batch = put_rows(tiny.ragged(2, b=2), make_mesh(1, 1, 1))
    with pytest.raises(UserError, match=r"model\.attention: 'splash' wanted a TPU, found cpu"):
        jax.eval_shape(functools.partial(logps.response_logps, config=of), tiny.params(of), batch)
