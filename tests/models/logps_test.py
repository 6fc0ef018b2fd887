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

from alignjax.models import layer, transformer
from alignjax.models.logps import chunked_logps, response_logps, token_logps
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
        (1, kind(1, 0, 0, 1, 0)),
        (2, kind(0, 1, 1, 1, 1)),
        (5, kind(1, 1, 0, 2, 1)),
        (2, kind(0, 0, 1, 2, 0)),
        (1, kind(0, 1, 0, 4, 0)),
        (5, kind(1, 0, 1, 4, 1)),
    ],
)
def test_values_and_gradients_equal_the_plain_path_in_float64(k, changes):
    with tiny.float64(tiny.model(**changes, logits_chunk=3), plain) as config:
        assert_equals_plain(config, tiny.ragged(k), 1e-9)


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


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_shapes_and_types(self):
        k = 2
        config = tiny.model()
        batch = jax.tree.map(jnp.asarray, tiny.ragged(k, b=2))
        params = tiny.params(config)
        tokens = self.variant(lambda p, b: token_logps(p, b, config=config))(params, batch)
        chex.assert_shape(tokens, (2, k, 6))
        chex.assert_type(tokens, jnp.float32)
        values = self.variant(lambda p, b: response_logps(p, b, config=config))(params, batch)
        chex.assert_shape(values, (2, k))
        chex.assert_trees_all_close(values, tokens.sum(-1), rtol=1e-6)
        padding = np.arange(6) >= np.asarray(batch.response_length)[..., None]
        np.testing.assert_array_equal(tokens[padding], 0.0)
        assert np.all(np.asarray(tokens)[~padding] < 0)


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


def test_other_responses_and_rows_do_not_matter():
    config = tiny.model()
    params = tiny.params(config)
    batch = tiny.ragged(3)
    run = jax.jit(
        lambda batch: response_logps(params, batch, config=config), compiler_options=tiny.FAST
    )
    whole = run(batch)
    for i, j in np.ndindex(3, 3):
        alone = dataclasses.replace(
            batch,
            prompt=batch.prompt[i : i + 1],
            prompt_length=batch.prompt_length[i : i + 1],
            response=batch.response[i : i + 1, j : j + 1],
            response_length=batch.response_length[i : i + 1, j : j + 1],
        )
        np.testing.assert_allclose(run(alone)[0, 0], whole[i, j], rtol=1e-5)


# What prompt-once code gets wrong, each as a patch; the comparison must fail under every one.


def masks_from_ids(monkeypatch):
    inner = response_logps

    def mutant(params, batch, *, config):
        lengths = dict(
            prompt_length=jnp.sum(batch.prompt != 0, axis=1),
            response_length=jnp.sum(batch.response != 0, axis=2),
        )
        return inner(params, dataclasses.replace(batch, **lengths), config=config)

    monkeypatch.setitem(globals(), "response_logps", mutant)


def responses_see_those_before(monkeypatch):
    inner = layer.attend

    def mutant(query, key, value, mask, **shared):
        if not shared:
            return inner(query, key, value, mask)
        b, k, t, *_ = query.shape
        query, key, value = (x.reshape(b, 1, k * t, *x.shape[3:]) for x in (query, key, value))
        mask = jnp.tril(jnp.ones((k * t, k * t), bool))
        return inner(query, key, value, mask, **shared).reshape(b, k, t, *query.shape[3:])

    monkeypatch.setattr(layer, "attend", mutant)


def responses_one_position_late(monkeypatch):
    inner = transformer.Transformer._angles

    def mutant(self, position):
        late = jnp.arange(position.shape[1]) >= 7  # P
        return inner(self, position + (late if position.shape[1] == 7 + 3 * 6 else 0))

    monkeypatch.setattr(transformer.Transformer, "_angles", mutant)


def responses_see_prompt_padding(monkeypatch):
    inner = layer.attend

    def mutant(*args, **shared):
        if "shared_mask" in shared:
            shared["shared_mask"] = jnp.ones_like(shared["shared_mask"])
        return inner(*args, **shared)

    monkeypatch.setattr(layer, "attend", mutant)


def prompt_sees_its_padding(monkeypatch):
    inner = layer.attend

    def mutant(query, key, value, mask, **shared):
        if (
            "shared_mask" not in shared and query.shape[0] == 3
        ):  # the plain path has 9 rows, and no padding in front
            mask = jnp.tril(jnp.ones(mask.shape[-2:], bool))
        return inner(query, key, value, mask, **shared)

    monkeypatch.setattr(layer, "attend", mutant)


def first_token_from_the_first_response(monkeypatch):
    """The state before a response's first token is the prompt's last, not the response's."""
    inner = jnp.broadcast_to

    def mutant(x, shape, **kwargs):
        return (
            jnp.roll(inner(x, shape, **kwargs), 1, axis=0) if len(shape) == 4 else inner(x, shape)
        )

    monkeypatch.setattr(transformer.jnp, "broadcast_to", mutant)


@pytest.mark.parametrize(
    "mutate",
    [
        masks_from_ids,
        responses_see_those_before,
        responses_one_position_late,
        responses_see_prompt_padding,
        prompt_sees_its_padding,
        first_token_from_the_first_response,
    ],
)
def test_the_comparison_fails_on_mutants(mutate, monkeypatch):
    config, batch, params = tiny.model(), tiny.ragged(3), tiny.params(tiny.model())
    assert (batch.prompt[:, -1] == 0).any() or (
        batch.response[batch.response_length > 0] == 0
    ).any()
    wanted = value_and_grad(params, batch, logps=plain_logps, config=config)[0]
    right = value_and_grad(params, batch, logps=response_logps, config=config)[0]
    assert_close(right, wanted, 1e-5)
    mutate(monkeypatch)
    mutant = globals()["response_logps"]
    wrong = jax.jit(lambda p: mutant(p, batch, config=config), compiler_options=tiny.FAST)(params)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(wrong, wanted, 1e-5)


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
