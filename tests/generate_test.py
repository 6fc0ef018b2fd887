"""Sampling: its log-probabilities are the scorer's, its draws depend on nothing but their key."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import stats

from alignjax.config import EvaluateConfig
from alignjax.data.batching import bucket
from alignjax.decode import sample
from alignjax.generate import first_of_each_prompt, questions, respond
from alignjax.logits import keep_likely
from alignjax.logps import response_logps
from alignjax.models.transformer import Transformer, unembedding
from alignjax.sharding import make_mesh, put_rows, shard_tree
from alignjax.types import Batch
from tests import tiny

CONFIG = tiny.model(kv_heads=4, rope_scaling=tiny.SCALING)
EOS, R = 5, 10
KEY = jax.random.key(11)

pytestmark = pytest.mark.usefixtures("compiled_here")


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


def draw(params, rows, key=KEY, **changes):
    settings = dict(config=CONFIG, samples=3, max_new_tokens=R, eos=EOS, temperature=0.7)
    return jax.device_get(sample(params, *rows, key, **{**settings, **changes}))


@pytest.fixture(scope="module")
def drawn(params):
    return draw(params, prompts())


def batch_of(rows, tokens, length):
    prompt, prompt_length, prompt_id = rows
    return Batch(
        prompt=prompt,
        prompt_length=prompt_length,
        response=tokens,
        response_length=length,
        weight=np.ones(len(prompt), np.float32),
        prompt_id=prompt_id,
    )


def test_log_probabilities_are_those_of_the_scorer(params, drawn):
    tokens, length, logps = drawn
    chex.assert_shape([tokens, length, logps], [(4, 3, R), (4, 3), (4, 3)])
    wanted = scored(params, batch_of(prompts(), tokens, length))
    np.testing.assert_allclose(logps, wanted, atol=1e-4)
    assert len(np.unique(logps)) == 12


def test_what_is_cut_or_flattened_does_not_change_the_log_probabilities(params):
    """Under the policy itself: temperature 1, nothing cut."""
    tokens, length, logps = draw(params, prompts(), temperature=3.0, top_p=0.8, top_k=9)
    wanted = scored(params, batch_of(prompts(), tokens, length))
    np.testing.assert_allclose(logps, wanted, atol=1e-4)


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
    tokens, length, _ = draw(with_likely_end(params), prompts(), temperature=1.0)
    check_ends(tokens, length, R)
    ended = np.take_along_axis(tokens, length[..., None] - 1, axis=2)[..., 0] == EOS
    assert ended.any()
    assert len(np.unique(length)) > 2
    tokens, length, _ = draw(params, prompts(), eos=64)  # an id that is never drawn
    assert (length == R).all()


def test_sampling_stops_when_all_have_ended(params, monkeypatch):
    """Counted by a callback in the network's decoding step."""
    steps = []
    inner = Transformer.decode

    def counting(self, token, prompt_length, position, cache):
        jax.debug.callback(lambda t: steps.append(int(t)), position)
        return inner(self, token, prompt_length, position, cache)

    monkeypatch.setattr(Transformer, "decode", counting)
    room = R + 3  # a shape of its own: compiled with the counter
    _, length, _ = draw(with_likely_end(params), prompts(), temperature=0.5, max_new_tokens=room)
    jax.effects_barrier()
    assert len(steps) == length.max() - 1 < room - 1


def test_greedy_equals_taking_the_likeliest_token_by_the_scoring_path(params):
    rows = prompts((3, 7), p=7)
    tokens, length, _ = draw(params, rows, samples=2, temperature=0.0, max_new_tokens=6)
    np.testing.assert_array_equal(tokens[:, 0], tokens[:, 1])

    @jax.jit
    def likeliest(response):
        hidden = Transformer(CONFIG).apply({"params": params}, rows[0], rows[1], response)
        return jnp.argmax(hidden @ unembedding(params, CONFIG).T, axis=-1)

    response = np.zeros((2, 1, 6), np.int32)
    for t in range(6):
        response[:, 0, t] = likeliest(response)[:, 0, t]
    for i in range(2):
        n = length[i, 0]
        np.testing.assert_array_equal(tokens[i, 0, :n], response[i, 0, :n])


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


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 2)])
def test_draws_do_not_depend_on_the_devices(params, drawn, shape):
    mesh = make_mesh(*shape)
    placed = jax.device_put(params, shard_tree(params, mesh))
    tokens, length, logps = draw(placed, put_rows(prompts(), mesh))
    np.testing.assert_array_equal(tokens, drawn[0])
    np.testing.assert_array_equal(length, drawn[1])
    np.testing.assert_allclose(logps, drawn[2], atol=1e-4)


def test_another_key_draws_something_else(params, drawn):
    assert (draw(params, prompts(), key=jax.random.key(12))[0] != drawn[0]).any()
    assert (drawn[0][:, 0] != drawn[0][:, 1]).any()  # and so does another response


def test_frequencies_are_those_of_the_network(params):
    """3,200 first tokens against the network's distribution: chi-square, fixed seed."""
    rows = prompts((4,), p=4)
    tokens, _, _ = draw(params, rows, samples=3200, max_new_tokens=1, temperature=1.0)
    everything = batch_of(rows, np.arange(64, dtype=np.int32).reshape(1, 64, 1), np.ones((1, 64)))
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


def keep_by_loops(logits, top_p, top_k):
    """Which ids may be drawn: k likeliest first, then the smallest likeliest set reaching p."""
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weight = np.where(kept, np.exp(logits - logits.max()), 0.0)
        probability = weight / weight.sum()
        mass, edge = 0.0, np.inf
        for i in np.argsort(-logits):
            if mass >= top_p:
                break
            mass, edge = mass + probability[i], logits[i]
        kept &= logits >= edge
    return kept


class FilterTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(top_p=(1.0, 0.9, 0.5, 1e-6), top_k=(0, 1, 5, 16, 99))
    def test_equals_the_loops(self, top_p, top_k):
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 2, (4, 3, 16)).astype(np.float32)
        logits[0, 0] = rng.integers(0, 4, 16)  # ties
        logits[0, 1] = 1.0  # nothing but ties
        run = self.variant(functools.partial(keep_likely, top_p=top_p, top_k=top_k))
        found = np.asarray(run(jnp.asarray(logits)))
        for row, out in zip(logits.reshape(-1, 16), found.reshape(-1, 16), strict=True):
            kept = keep_by_loops(row.astype(np.float64), top_p, top_k)
            np.testing.assert_array_equal(out[kept], row[kept])
            assert kept.any()
            assert (out[~kept] < -1e38).all()


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 2), (0.4, 0)])
def test_ids_that_are_cut_are_never_drawn(params, top_p, top_k):
    rows = prompts((4,), p=4)
    tokens, _, _ = draw(
        params, rows, samples=500, max_new_tokens=1, temperature=1.0, top_p=top_p, top_k=top_k
    )
    everything = batch_of(rows, np.arange(64, dtype=np.int32).reshape(1, 64, 1), np.ones((1, 64)))
    logits = np.asarray(scored(params, everything)[0], np.float64)
    assert set(tokens.ravel()) == set(np.flatnonzero(keep_by_loops(logits, top_p, top_k)))


class Words:
    """What sampling needs of a tokenizer."""

    eos_id = EOS

    def decode(self, ids):
        return " ".join(str(i) for i in ids if i != EOS)


def respond_to(params, ref_params, data, **changes):
    settings = EvaluateConfig(
        **{**dict(prompts=5, samples=2, max_new_tokens=6, batch_size=4), **changes}
    )
    return respond(
        params,
        ref_params,
        questions(bucket(data, count=2, multiple=8), settings.prompts),
        model=CONFIG,
        tokenizer=Words(),
        settings=settings,
        key=KEY,
        mesh=make_mesh(2, 1, 1),
        title="test",
    )


def test_responses_to_the_first_of_each_prompt(params):
    """And they do not depend on how many prompts are sampled at once."""
    data = tiny.dataset(14, longest=(12, 6))  # every prompt twice
    assert first_of_each_prompt(bucket(data, count=2, multiple=8), 5) == [0, 2, 4, 6, 8]
    assert len(first_of_each_prompt(bucket(data, count=2, multiple=8), 99)) == 7
    bent = with_likely_end(params)
    found = respond_to(bent, bent, data)
    assert [s.prompt for s in found] == [f"prompt {i}" for i in range(5) for _ in range(2)]
    for s in found:
        assert s.logps == pytest.approx(s.reference, abs=1e-4)  # the same network
        assert s.kl == pytest.approx(0, abs=1e-4)
        assert len(s.response.split()) == s.length - s.ended
        assert s.ended or s.length == 6
    assert {s.ended for s in found} == {True, False}
    for one, other in zip(found, respond_to(bent, None, data, batch_size=8), strict=True):
        numbers = dict(logps=one.logps, reference=one.reference, kl=one.kl)
        assert dataclasses.replace(other, **numbers) == one
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
        assert np.isnan([other.reference, other.kl]).all()  # none was given
