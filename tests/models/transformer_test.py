"""The decoder against one written in NumPy loops, and its three ways to run against each other."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.errors import UserError
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.models.logps import response_logps, token_logps
from alignjax.models.transformer import Transformer, init_params, unembedding
from tests import tiny
from tests.models.attention_test import frequencies_by_definition
from tests.oracles.plain import plain_logps

EVERYTHING = dict(
    tied_embeddings=False, qkv_bias=True, qk_norm=True, rope_scaling=tiny.SCALING, norm_eps=1e-5
)


# What the families add, in windows short enough to cut prompts and responses of `tiny.ragged`.
MISTRAL = dict(tied_embeddings=False, window=4)
GEMMA = dict(
    full_every=2,
    query_scalar=6.0,
    activation="gelu_tanh",
    norm_plus_one=True,
    sandwich_norms=True,
    scaled_embeddings=True,
)
GEMMA_2 = dict(**GEMMA, window=3, attention_softcap=1.5, logit_softcap=2.0)
GEMMA_3 = dict(
    **GEMMA,
    window=5,
    qk_norm=True,
    window_rope_theta=100.0,
    rope_scaling=RopeScaling(kind="linear", factor=8.0),
)
FAMILIES = {"everything": EVERYTHING, "mistral": MISTRAL, "gemma2": GEMMA_2, "gemma3": GEMMA_3}


def capped(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def states_by_loops(params, config, tokens):
    """``[T, width]`` normalised states at each token: one sequence, one head at a time.

    As the families' papers and weights have it: pre-norm blocks, rotated queries and keys (halves
    convention), one key/value head per group of query heads, a gated feed-forward block; what
    Mistral and Gemma add where the config says so.
    """
    c, d = config, config.head_dim
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, scale):
        return x / math.sqrt(np.mean(x**2) + c.norm_eps) * (scale + c.norm_plus_one)

    def linear(x, weights, layer):
        bias = weights["bias"][layer] if "bias" in weights else 0.0
        return x @ weights["kernel"][layer] + bias

    def rotated(x, position):
        turned = (x[: d // 2] + 1j * x[d // 2 :]) * np.exp(1j * position * frequency)
        return np.concatenate([turned.real, turned.imag])

    def gate(x):
        if c.activation == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def after_block(x, name, layer):
        return norm(x, weights[name]["scale"][layer]) if c.sandwich_norms else x

    scale = math.sqrt(c.width) if c.scaled_embeddings else 1.0
    stream = [scale * p["embed"]["embedding"][t] for t in tokens]
    weights = p["layers"]
    for layer in range(c.layers):
        limited = c.window is not None and not (c.full_every and (layer + 1) % c.full_every == 0)
        theta, scaling = c.rope_theta, c.rope_scaling
        if limited and c.window_rope_theta is not None:
            theta, scaling = c.window_rope_theta, None
        frequency = frequencies_by_definition(d, theta, scaling)
        keys, values, after = [], [], []
        for position, x in enumerate(stream):
            h = norm(x, weights["attention_norm"]["scale"][layer])
            q, k, v = (linear(h, weights[name], layer).reshape(-1, d) for name in "qkv")
            if c.qk_norm:
                q = [norm(head, weights["q_norm"]["scale"][layer]) for head in q]
                k = [norm(head, weights["k_norm"]["scale"][layer]) for head in k]
            keys.append([rotated(head, position) for head in k])
            values.append(v)
            mixed = []
            for head in range(c.heads):
                group = head // (c.heads // c.kv_heads)
                query = rotated(q[head], position)
                first = max(0, position + 1 - c.window) if limited else 0
                scores = np.array([query @ key[group] for key in keys[first:]])
                scores = capped(scores / math.sqrt(c.query_scalar or d), c.attention_softcap)
                weight = np.exp(scores - scores.max())
                mixed.append(weight / weight.sum() @ np.array([v[group] for v in values[first:]]))
            added = linear(np.concatenate(mixed), weights["o"], layer)
            x = x + after_block(added, "attention_out_norm", layer)
            h = norm(x, weights["mlp_norm"]["scale"][layer])
            gated = gate(linear(h, weights["gate"], layer)) * linear(h, weights["up"], layer)
            added = linear(gated, weights["down"], layer)
            after.append(x + after_block(added, "mlp_out_norm", layer))
        stream = after
    return np.array([norm(x, p["norm"]["scale"]) for x in stream])


def decoder_by_loops(params, config, tokens):
    """``[T, vocab]`` log-probabilities of what follows each token."""
    table = params["embed"]["embedding"] if config.tied_embeddings else params["head"]
    logits = states_by_loops(params, config, tokens) @ np.asarray(table, np.float64).T
    logits = capped(logits, config.logit_softcap)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def logps_by_loops(params, config, batch):
    """``[B, K, R]`` log-probabilities of response tokens; each response run on its own."""
    out = np.zeros(batch.response.shape)
    for i, j in np.ndindex(*batch.response_length.shape):
        p, n = batch.prompt_length[i], batch.response_length[i, j]
        tokens = [*batch.prompt[i][len(batch.prompt[i]) - p :], *batch.response[i, j][:n]]
        table = decoder_by_loops(params, config, tokens)
        out[i, j, :n] = [table[p - 1 + t, tokens[p + t]] for t in range(n)]
    return out


@pytest.mark.parametrize(
    "changes",
    [
        *FAMILIES.values(),
        dict(kv_heads=1),
        dict(kv_heads=4, qkv_bias=True),
        dict(qk_norm=True, layers=1),
    ],
    ids=[*FAMILIES, "one key head", "as many key heads", "one layer"],
)
def test_equals_the_decoder_by_loops_in_float64(changes):
    config = tiny.model(**changes)
    batch = tiny.ragged(2)
    with tiny.float64(config) as exact:
        params = tiny.params(exact)
        found = jax.jit(lambda p: token_logps(p, batch, config=exact))(params)
        chex.assert_type(found, jnp.float64)
        np.testing.assert_allclose(found, logps_by_loops(params, config, batch), atol=1e-11)


def test_parameters_are_float32_and_of_the_stated_shapes():
    config = tiny.model(**EVERYTHING, layers=3)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }
    assert named == {
        "embed/embedding": (64, 32),
        "head": (64, 32),
        "norm/scale": (32,),
        "layers/attention_norm/scale": (3, 32),
        "layers/mlp_norm/scale": (3, 32),
        "layers/q/kernel": (3, 32, 32),
        "layers/q/bias": (3, 32),
        "layers/q_norm/scale": (3, 8),
        "layers/k/kernel": (3, 32, 16),
        "layers/k/bias": (3, 16),
        "layers/k_norm/scale": (3, 8),
        "layers/v/kernel": (3, 32, 16),
        "layers/v/bias": (3, 16),
        "layers/o/kernel": (3, 32, 32),
        "layers/gate/kernel": (3, 32, 48),
        "layers/up/kernel": (3, 32, 48),
        "layers/down/kernel": (3, 48, 32),
    }
    chex.assert_type(jax.tree.leaves(shapes), jnp.float32)


def test_every_layer_starts_different_and_keeps_the_stream_small():
    config = tiny.model(layers=8)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    kernels = np.asarray(params["layers"]["q"]["kernel"])
    assert len({kernel.tobytes() for kernel in kernels}) == config.layers
    batch = tiny.ragged(2)
    hidden = Transformer(config).apply(
        {"params": params}, batch.prompt, batch.prompt_length, batch.response
    )
    chex.assert_shape(hidden, (3, 2, 6, 32))
    logits = hidden @ unembedding(params, config).T
    assert 0.5 < float(logits.std()) < 2.0  # near uniform at the start, whatever the depth


def decoded(params, config, batch):
    """Hidden states before each response token, from one prefill and a decode per token."""
    _, k, r = batch.response.shape
    model = Transformer(config)
    hidden, cache = model.apply(
        {"params": params}, batch.prompt, batch.prompt_length, k, r, method=Transformer.prefill
    )
    states = [jnp.broadcast_to(hidden[:, None], (len(hidden), k, hidden.shape[-1]))]

    def one(cache, x):
        token, t = x
        hidden, cache = model.apply(
            {"params": params}, token, batch.prompt_length, t, cache, method=Transformer.decode
        )
        return cache, hidden

    tokens = jnp.moveaxis(jnp.asarray(batch.response), 2, 0)[:-1]
    _, rest = jax.lax.scan(one, cache, (tokens, jnp.arange(r - 1)))
    return jnp.stack([*states, *rest], axis=2)


@pytest.mark.parametrize("changes", [{}, *FAMILIES.values()], ids=["plain", *FAMILIES])
def test_decoding_token_by_token_equals_one_pass(changes):
    config = tiny.model(**changes)
    batch = tiny.ragged(3)
    params = tiny.params(config)

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def both(params):
        whole = Transformer(config).apply(
            {"params": params}, batch.prompt, batch.prompt_length, batch.response
        )
        return whole, decoded(params, config, batch)

    whole, steps = both(params)
    real = np.arange(batch.response.shape[2]) < batch.response_length[..., None]
    np.testing.assert_allclose(whole[real], steps[real], atol=1e-5)


@pytest.mark.parametrize("family", [MISTRAL, GEMMA_2, GEMMA_3], ids=["mistral", "gemma2", "gemma3"])
def test_a_window_counts_tokens_whatever_the_padding(family):
    config = tiny.model(**family)
    params = tiny.params(config)
    lengths = [2, 7, 5], [[6, 1], [2, 3], [4, 0]]
    narrow, wide = tiny.batch(*lengths), tiny.batch(*lengths, p=12, r=9)

    @functools.partial(jax.jit, compiler_options=tiny.FAST)
    def scores(params):
        once = [response_logps(params, batch, config=config) for batch in (narrow, wide)]
        return [*once, plain_logps(params, wide, config=config)]

    first, *rest = scores(params)
    for found in rest:
        np.testing.assert_allclose(found, first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("kv_heads", 3),
        ("head_dim", 7),
        ("dtype", "float64"),
        ("param_dtype", "int8"),
        ("remat", "some"),
        ("logits_chunk", 0),
        ("window", 0),
        ("full_every", 2),
        ("window_rope_theta", 100.0),
        ("activation", "relu"),
        ("logit_softcap", -1.0),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(field, value):
    with pytest.raises(
        UserError, match=rf"^model\.{field}: wanted .*, found {re.escape(repr(value))}$"
    ):
        ModelConfig(**{field: value})


def test_an_unknown_rotary_scaling_is_refused():
    with pytest.raises(UserError, match=r"^model\.rope_scaling\.kind: wanted .*, found 'yarn'$"):
        RopeScaling(kind="yarn")
