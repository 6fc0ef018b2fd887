"""Sampling: its log-probabilities are the scorer's, its draws depend on nothing but their key."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from alignjax.config import SamplingConfig
from alignjax.models.logps import response_logps
from alignjax.models.transformer import Transformer, unembedding
from alignjax.planning import collectives, hlo
from alignjax.runtime import sharding
from alignjax.runtime.sharding import make_mesh, put_rows, shard_tree
from alignjax.sampling.decode import decode, prefill, sample
from alignjax.stages import pretrained
from tests import tiny
from tests.sampling.logits_test import keep_by_loops

CONFIG = tiny.model(kv_heads=4, rope_scaling=tiny.SCALING)
EOS, R = 5, 10
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def params():
    return tiny.params(CONFIG)


def prompts(lengths=(3, 7, 1, 5), p=8, ids=None):
    """The tokens of a prompt depend on its id only."""
    ids = np.arange(len(lengths)) if ids is None else np.asarray(ids)
    prompt = np.zeros((len(lengths), p), np.int32)
    for i, (n, number) in enumerate(zip(lengths, ids, strict=True)):
        prompt[i, p - n :] = np.random.default_rng(number).integers(0, 64, n)
    return prompt, np.array(lengths, np.int32), ids.astype(np.int32)


@functools.partial(jax.jit, compiler_options=tiny.FAST)
def scored(params, batch):
    return response_logps(params, batch, config=CONFIG)


# Every setting at work, so that what holds of these draws holds of all.
SETTINGS = SamplingConfig(
    samples=3,
    max_new_tokens=R,
    temperature=0.7,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
)


def draw(params, rows, key=KEY, config=CONFIG, eos=(EOS,), **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    found = sample(params, *rows, key, config=config, settings=settings, eos=eos)
    return jax.device_get(found)


@pytest.fixture(scope="module")
def drawn(params):
    return draw(params, prompts())


PLAIN = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


def test_log_probabilities_are_those_of_the_scorer(params):
    tokens, length, logps = draw(params, prompts(), **PLAIN)
    chex.assert_shape([tokens, length, logps], [(4, 3, R), (4, 3), (4, 3)])
    wanted = scored(params, tiny.given(*prompts()[:2], tokens, length))
    np.testing.assert_allclose(logps, wanted, atol=1e-4)
    assert len(np.unique(logps)) == 12


def test_what_is_cut_or_flattened_does_not_change_the_log_probabilities(params, drawn):
    """Under the policy itself: temperature 1, nothing cut, nothing penalised."""
    tokens, length, logps = drawn
    wanted = scored(params, tiny.given(*prompts()[:2], tokens, length))
    np.testing.assert_allclose(logps, wanted, atol=1e-4)
    assert (tokens != draw(params, prompts(), **PLAIN)[0]).any()


def test_in_bfloat16_they_are_the_scorer_s_up_to_its_rounding(params):
    """A token's state has 8 bits: nats of R tokens differ by R times the last of them, at most."""
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    tokens, length, logps = draw(params, prompts(), config=half, **PLAIN)
    batch = tiny.given(*prompts()[:2], tokens, length)
    wanted = jax.jit(response_logps, static_argnames="config")(params, batch, config=half)
    assert logps.dtype == np.float32
    np.testing.assert_allclose(logps, wanted, atol=R * 2**-6)
    exact = scored(params, batch)
    assert np.abs(logps - exact).max() > 1e-3  # it is another network than in float32


def check_ends(tokens, length, room):
    """One end-of-sequence, counted, as the last token unless there was no room; zeros after."""
    for ids, n in zip(tokens.reshape(-1, room), length.ravel(), strict=True):
        assert 1 <= n <= room
        assert not (ids[: n - 1] == EOS).any()
        assert ids[n - 1] == EOS or n == room
        assert not ids[n:].any()


def with_likely_end(params):
    """The same network with an end-of-sequence that is drawn often."""
    bent = jax.tree.map(np.copy, params)
    bent["embed"]["embedding"][EOS] *= 4.0
    return bent


def test_responses_end_with_one_end_of_sequence_or_for_lack_of_room(params):
    tokens, length, _ = draw(with_likely_end(params), prompts(), **PLAIN)
    check_ends(tokens, length, R)
    ended = np.take_along_axis(tokens, length[..., None] - 1, axis=2)[..., 0] == EOS
    assert ended.any()
    assert len(np.unique(length)) > 2
    tokens, length, _ = draw(params, prompts(), eos=(64,))  # an id that is never drawn
    assert (length == R).all()
    ends = tuple(int(i) for i in tokens[:2, 0, 1])  # two tokens of the middle
    _, length, _ = draw(params, prompts(), eos=ends)
    met = np.isin(tokens, ends)
    np.testing.assert_array_equal(length, np.where(met.any(-1), met.argmax(-1) + 1, R))


def test_sampling_stops_when_all_have_ended(params, steps):
    room = R + 3  # a shape of its own: compiled with the counter
    settings = {**PLAIN, "temperature": 0.5}
    _, length, _ = draw(with_likely_end(params), prompts((3, 7)), max_new_tokens=room, **settings)
    jax.effects_barrier()
    assert len(steps) == length.max() - 1 < room - 1


def test_a_row_of_padding_takes_no_step(params):
    rows = prompts((3, 0), p=8)
    tokens, length, logps = draw(params, rows)
    assert (length[0] > 0).all()
    for found in (tokens[1], length[1], logps[1]):
        assert not found.any()


@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_greedy_equals_taking_the_likeliest_token_by_the_scoring_path(params, penalty):
    rows = prompts((25, 30), p=30)
    settings = {**PLAIN, "temperature": 0.0, "repetition_penalty": penalty}
    tokens, length, _ = draw(params, rows, samples=2, max_new_tokens=6, **settings)
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])

    @jax.jit
    def logits_at(response):
        hidden = Transformer(CONFIG).apply({"params": params}, rows[0], rows[1], response)
        return hidden @ unembedding(params, CONFIG).T

    def by_loops(prompt_counts):
        response = np.zeros((2, 1, 6), np.int32)
        for t in range(6):
            logits = np.array(logits_at(response)[:, 0, t])
            for i, row in enumerate(logits):
                prompt = rows[0][i, 30 - rows[1][i] :].tolist() if prompt_counts else []
                for v in {*prompt, *response[i, 0, :t].tolist()}:
                    row[v] *= penalty if row[v] < 0 else 1 / penalty
            response[:, 0, t] = logits.argmax(-1)
        return response[:, 0]

    wanted = by_loops(prompt_counts=True)
    for i in range(2):
        n = length[i, 0]
        np.testing.assert_array_equal(tokens[i, 0, :n], wanted[i, :n])
    ignored = by_loops(prompt_counts=False)
    assert (wanted != ignored).any() == (penalty != 1)


@pytest.mark.parametrize("order", [[2], [1, 3, 0, 2, 2, 1]])
def test_draws_do_not_depend_on_the_batch(params, drawn, order):
    """Neither on its size, nor on the slot, nor on the other rows."""
    lengths = np.array([3, 7, 1, 5])[order]
    tokens, length, logps = draw(params, prompts(lengths, ids=order))
    np.testing.assert_array_equal(tokens, drawn[0][order])
    np.testing.assert_array_equal(length, drawn[1][order])
    np.testing.assert_allclose(logps, drawn[2][order], atol=1e-4)


def test_draws_do_not_depend_on_padding_or_room(params, drawn):
    tokens, length, _ = draw(params, prompts(p=13), max_new_tokens=R + 4)
    short = np.minimum(length, R)
    np.testing.assert_array_equal(short, drawn[1])
    np.testing.assert_array_equal(tokens[..., :R], drawn[0])


def test_fewer_samples_are_the_first_of_more(params, drawn):
    tokens, _, _ = draw(params, prompts(), samples=2)
    np.testing.assert_array_equal(tokens, drawn[0][:, :2])


@pytest.mark.parametrize(
    ("shape", "gather"), [((4, 1, 1), True), ((2, 2, 2), True), ((2, 2, 2), False)]
)
def test_draws_do_not_depend_on_the_devices(params, drawn, shape, gather):
    mesh = make_mesh(*shape)
    placed = jax.device_put(params, shard_tree(params, mesh))
    tokens, length, logps = draw(placed, put_rows(prompts(), mesh), gather_weights=gather)
    np.testing.assert_array_equal(tokens, drawn[0])
    np.testing.assert_array_equal(length, drawn[1])
    np.testing.assert_allclose(logps, drawn[2], atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_gathered_once_or_at_every_token(tied):
    config = dataclasses.replace(CONFIG, tied_embeddings=tied)
    params, mesh = tiny.params(config), make_mesh(1, 4, 2)
    placed = jax.device_put(params, shard_tree(params, mesh))
    smallest = config.width * config.head_dim * config.kv_heads // 2  # of a layer's kernels, k's

    def often(gather):
        """All-gathers of a whole kernel or table by what is done for every token."""
        program = sample.lower(
            *(placed, *put_rows(prompts(), mesh), KEY),
            config=config,
            settings=SamplingConfig(samples=3, max_new_tokens=R, gather_weights=gather),
            eos=(EOS,),
        ).compile()
        return [
            c
            for c in collectives.find_collectives(hlo.parse(program.as_text()))
            if c.kind == "all-gather" and c.times >= R and c.shapes[0].elements >= smallest
        ]

    assert often(gather=True) == []
    kernels = {c.shapes[0].elements for c in often(gather=False)}
    assert {smallest, config.width * config.mlp_width // 2} <= kernels


def test_gathered_weights_have_the_type_of_the_products():
    """Halving what is held; codes, scales and a table that is only looked up stay as they are."""
    config = dataclasses.replace(CONFIG, dtype="bfloat16", tied_embeddings=False)
    whole = sharding.unshard_weights(tiny.params(config), config)
    coded = pretrained.quantize_params(tiny.params(config), "int8", make_mesh(1, 1, 1))
    found = sharding.unshard_weights(coded, config)["layers"]["q"]["kernel"]
    assert whole["head"].dtype == whole["layers"]["down"]["kernel"].dtype == jnp.bfloat16
    assert whole["embed"]["embedding"].dtype == whole["norm"]["scale"].dtype == jnp.float32
    assert (found["codes"].dtype, found["scale"].dtype) == (jnp.int8, jnp.float32)


def test_another_key_draws_something_else(params, drawn):
    assert (draw(params, prompts(), key=jax.random.key(12))[0] != drawn[0]).any()
    assert (drawn[0][:, 0] != drawn[0][:, 1]).any()  # and so does another response


def test_frequencies_are_those_of_the_network(params):
    """3,200 first tokens against the network's distribution: chi-square, fixed seed."""
    rows = prompts((4,), p=4)
    tokens, _, _ = draw(params, rows, samples=3200, max_new_tokens=1, **PLAIN)
    everything = tiny.given(*rows[:2], np.arange(64, dtype=np.int32).reshape(1, 64, 1))
    probability = np.exp(scored(params, everything)[0])
    counts = np.bincount(tokens.ravel(), minlength=64)

    def p_value(probability):
        wanted = probability / probability.sum() * 3200
        order = np.argsort(wanted)  # the rarest four in one cell: each needs enough expected
        cells = [np.append(x[order[4:]], x[order[:4]].sum()) for x in (counts, wanted)]
        assert cells[1].min() > 5
        return stats.chisquare(*cells).pvalue

    assert p_value(np.asarray(probability, np.float64)) > 0.01
    flat = np.asarray(probability, np.float64) ** 0.8
    assert p_value(flat / flat.sum()) < 1e-4  # another temperature is noticed


def test_one_compile_for_each_shape(params):
    sample.clear_cache()
    for key in (1, 2):
        for lengths in ((3, 2), (1, 4)):
            draw(params, prompts(lengths, p=4), key=jax.random.key(key), max_new_tokens=2)
    assert sample._cache_size() == 1
    draw(params, prompts((3, 2), p=5), max_new_tokens=2)
    assert sample._cache_size() == 2


@pytest.mark.parametrize("cut", [dict(top_k=2), dict(top_p=0.4), dict(min_p=0.5)])
def test_ids_that_are_cut_are_never_drawn(params, cut):
    rows = prompts((4,), p=4)
    tokens, _, _ = draw(params, rows, samples=500, max_new_tokens=1, **{**PLAIN, **cut})
    everything = tiny.given(*rows[:2], np.arange(64, dtype=np.int32).reshape(1, 64, 1))
    logits = np.asarray(scored(params, everything)[0], np.float64)
    assert set(tokens.ravel()) == set(np.flatnonzero(keep_by_loops(logits, **cut)))


def test_decoding_gathers_no_second_cache():
    """The layers give back what is new; a scan that gave back the cache would copy it each time."""
    config = tiny.model()
    b, k, r = 2, 3, 100
    rows = prompts((3, 5))
    found = jax.eval_shape(lambda p: prefill(p, *rows[:2], k, r, config), tiny.params(config))
    (cache,) = found[1]
    assert cache.prompt_key.size == config.layers * b * 8 * config.kv_heads * config.head_dim

    def step(params, caches):
        return decode(params, jnp.zeros((b, k), jnp.int32), rows[1], jnp.int32(4), caches, config)

    traced = jax.make_jaxpr(step)(tiny.params(config), found[1])
    scans = [eqn for eqn in traced.jaxpr.eqns if eqn.primitive.name == "scan"]
    (layers,) = scans
    new = config.layers * b * k * config.kv_heads * config.head_dim
    assert max(x.aval.size for x in layers.outvars) == new
    assert cache.key.size == new * 128  # whole tiles of 64 places


@pytest.mark.parametrize("window", [None, 70])
def test_a_cache_of_several_tiles_gives_the_scorer_s_numbers(window):
    """Responses of 150 tokens: three tiles of places, full, in part and empty."""
    config = dataclasses.replace(CONFIG, window=window)
    params = tiny.params(config)
    rows = prompts((3, 7))
    settings = SamplingConfig(samples=2, max_new_tokens=150)
    tokens, length, logps = jax.device_get(
        sample(params, *rows, KEY, config=config, settings=settings, eos=64)
    )
    batch = tiny.given(*rows[:2], tokens, length)
    wanted = jax.jit(response_logps, static_argnames="config")(params, batch, config=config)
    np.testing.assert_allclose(logps, wanted, rtol=1e-5)
