"""The prompt once against the plain path that repeats it: values, gradients, memory."""

import dataclasses
import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models.logps import chunked_logps, response_logps
from alignjax.models.transformer import init_params
from tests import tiny
from tests.oracles import plain
from tests.oracles.plain import plain_logps

EVERYTHING = dict(tied_embeddings=False, qkv_bias=True, qk_norm=True, rope_scaling=tiny.SCALING)


def both(params, batch, *, logps, config):
    """``[B, K]`` values, and the gradient of their sum weighted at random."""
    weight = np.random.default_rng(9).normal(size=batch.response_length.shape)

    def total(params):
        values = logps(params, batch, config=config)
        return (values * weight).sum(), values

    grads, values = jax.grad(total, has_aux=True)(params)
    return values, grads


value_and_grad = jax.jit(both, static_argnames=("logps", "config"), compiler_options=tiny.FAST)


def assert_close(found, wanted, tolerance):
    """Close relative to the largest number of each array: sums cancel."""

    def one(x, y):
        scale = max(1.0, float(jnp.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

    jax.tree.map(one, found, wanted)


def assert_equals_plain(config, batch, tolerance):
    params = tiny.params(config)
    found = value_and_grad(params, batch, logps=response_logps, config=config)
    wanted = value_and_grad(params, batch, logps=plain_logps, config=config)
    assert_close(found, wanted, tolerance)
    return found


def kind(tied, bias, norm, kv_heads, scaling):
    return dict(
        tied_embeddings=bool(tied),
        qkv_bias=bool(bias),
        qk_norm=bool(norm),
        kv_heads=kv_heads,
        rope_scaling=tiny.SCALING if scaling else None,
    )


@pytest.mark.parametrize(
    ("k", "changes"),  # every pair of options is there
    [
        pytest.param(1, kind(1, 0, 0, 1, 0), marks=pytest.mark.slow),
        (2, kind(0, 1, 1, 1, 1)),
        (5, kind(1, 1, 0, 2, 1)),
        pytest.param(2, kind(0, 0, 1, 2, 0), marks=pytest.mark.slow),
        pytest.param(1, kind(0, 1, 0, 4, 0), marks=pytest.mark.slow),
        pytest.param(5, kind(1, 0, 1, 4, 1), marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_equal_the_plain_path_in_float64(k, changes):
    with tiny.float64(tiny.model(**changes, logits_chunk=3), plain) as config:
        assert_equals_plain(config, tiny.ragged(k), 1e-9)


@pytest.mark.slow
def test_equals_the_plain_path_in_float32():
    assert_equals_plain(tiny.model(**EVERYTHING), tiny.ragged(3), 1e-5)


@pytest.mark.parametrize(
    ("prompts", "responses"),
    [([1], [[1]]), ([4, 1], [[0, 0], [0, 3]])],
)
def test_smallest_rows(prompts, responses):
    """One prompt token, one response token, rows and columns that are absent."""
    with tiny.float64(tiny.model(layers=1), plain) as config:
        batch = tiny.batch(prompts, responses)
        values, _ = assert_equals_plain(config, batch, 1e-9)
        np.testing.assert_array_equal(np.asarray(values) == 0, np.array(responses) == 0)


@pytest.mark.slow
def test_every_option_of_the_decoder_changes_the_numbers():
    """So that the comparisons above compare what their names say."""
    plainest = kind(1, 0, 0, 2, 0)
    changes = [{}, dict(kv_heads=1), dict(kv_heads=4)]
    changes += [{name: value} for name, value in EVERYTHING.items()]
    seen = set()
    for change in changes:
        config = tiny.model(**{**plainest, **change}, layers=1)
        run = functools.partial(response_logps, config=config)
        values = jax.jit(run, compiler_options=tiny.FAST)(tiny.params(config), tiny.ragged(2))
        seen.add(float(values.sum()))
    assert len(seen) == len(changes)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 6, 7, 64])
def test_any_chunk_gives_the_same_numbers(chunk):
    """R = 6: chunks that divide it, that do not, and longer ones."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 3, 6, 8)))
    table = jnp.asarray(rng.normal(size=(16, 8)))
    target = jnp.asarray(rng.integers(0, 16, (2, 3, 6)))
    weight = jnp.asarray(rng.normal(size=(2, 3, 6)))

    def whole(hidden, table):
        logps = jax.nn.log_softmax(hidden @ table.T, axis=-1)
        return jnp.take_along_axis(logps, target[..., None], axis=-1)[..., 0]

    def run(f):
        return jax.vjp(f, hidden, table)[1](weight), f(hidden, table)

    found = run(lambda h, t: chunked_logps(h, t, target, chunk))
    assert_close(found, run(whole), 2e-6)


@pytest.mark.slow
def test_remat_gives_the_same_numbers():
    batch = tiny.ragged(2)
    params = tiny.params(tiny.model())
    results, matmuls = [], set()
    for remat in ("none", "dots", "kv", "full"):
        run = dict(logps=response_logps, config=tiny.model(remat=remat))
        results.append(value_and_grad(params, batch, **run))
        traced = jax.make_jaxpr(functools.partial(both, **run))(params, batch)
        matmuls.add(str(traced).count("dot_general"))
    for found in results[1:]:
        assert_close(found, results[0], 1e-6)
    assert len(matmuls) == 4  # they recompute differently


def test_bfloat16_stays_close_to_float32():
    """Why 0.15 nats a token: bfloat16 keeps 8 bits, so each rounding is up to 0.4% off.

    About ten follow one another in a layer: logits of size 1 to 3 come out a few hundredths off.
    """
    batch = tiny.ragged(3)
    params = tiny.params(tiny.model(**EVERYTHING))
    exact, low = (tiny.model(**EVERYTHING, dtype=dtype) for dtype in ("float32", "bfloat16"))
    wanted, exact_grads = value_and_grad(params, batch, logps=response_logps, config=exact)
    values, grads = value_and_grad(params, batch, logps=response_logps, config=low)
    chex.assert_type(values, jnp.float32)
    chex.assert_tree_all_finite((values, grads))
    chex.assert_trees_all_equal_dtypes(grads, params)
    difference = np.abs(values - wanted) / np.maximum(batch.response_length, 1)
    assert 1e-4 < difference.max() < 0.15  # 0 would mean that nothing ran in bfloat16
    flat, wanted = (
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (grads, exact_grads)
    )
    cosine = flat @ wanted / jnp.linalg.norm(flat) / jnp.linalg.norm(wanted)
    assert float(cosine) > 0.99


def test_one_trace_for_each_shape():
    config = tiny.model()
    params = tiny.params(config)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(2)
    def run(params, batch):
        return response_logps(params, batch, config=config)

    for seed in range(3):
        for p in (7, 9):
            run(params, tiny.batch([2, 7], [[1, 6], [3, 2]], p=p, seed=seed))


def unlike(batch, field, real):
    """Writes ids outside the vocabulary, or the end-of-sequence id, where there is padding."""
    ids = np.array(getattr(batch, field))
    return {field: np.where(real, ids, [[99]] if ids.ndim == 2 else [[[99]]])}


def test_padding_does_not_matter():
    """Neither how much there is nor what it holds, even ids that the embedding does not have."""
    config = tiny.model()
    params = tiny.params(config)
    lengths = [2, 7, 1], [[3, 0], [6, 1], [2, 2]]
    batch, wide = tiny.batch(*lengths), tiny.batch(*lengths, p=12, r=9)
    p, r = wide.prompt.shape[1], wide.response.shape[2]
    other = dataclasses.replace(
        wide,
        **unlike(wide, "prompt", np.arange(p) >= p - wide.prompt_length[:, None]),
        **unlike(wide, "response", np.arange(r) < wide.response_length[..., None]),
    )
    run = functools.partial(value_and_grad, logps=response_logps, config=config)
    found = run(params, wide)
    assert_close(found, run(params, batch), 1e-5)
    chex.assert_trees_all_equal(run(params, other), found)


VOCAB, CHUNK = 8192, 8


@pytest.fixture(scope="module")
def programs():
    """The gradients of both paths, compiled at a vocabulary of 8192."""
    config = tiny.model(vocab_size=VOCAB, logits_chunk=CHUNK)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    batch = tiny.batch([32, 32], [[32, 32], [32, 32]])

    def compile_one(logps):
        def total(params, batch):
            return logps(params, batch, config=config).sum()

        return jax.jit(jax.grad(total)).lower(params, batch).compile()

    return {f.__name__: compile_one(f) for f in (response_logps, plain_logps)}


def largest_over_vocabulary(program) -> int:
    """Rows of the largest buffer of a compiled program with the vocabulary as an axis."""
    largest = 0
    for found in re.findall(r"\b(?:f32|bf16|f16|s32|pred)\[([\d,]+)\]", program.as_text()):
        sizes = [int(n) for n in found.split(",")]
        if VOCAB in sizes:
            largest = max(largest, math.prod(sizes) // VOCAB)
    return largest


def test_no_array_of_all_tokens_by_vocabulary_exists(programs):
    """2 x 2 x 32 response tokens: the largest has 2 x 2 x 8 rows, or the 32 of the embedding."""
    assert largest_over_vocabulary(programs["response_logps"]) == 2 * 2 * CHUNK
    assert largest_over_vocabulary(programs["plain_logps"]) >= 2 * 2 * (32 + 32 - 1)


def test_memory_is_below_that_of_the_plain_path(programs):
    once, repeated = (
        programs[name].memory_analysis().temp_size_in_bytes
        for name in ("response_logps", "plain_logps")
    )
    assert once < repeated / 2
