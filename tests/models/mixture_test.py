"""Several policies that decode as one: the distribution is the renormalised weighted sum."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from alignjax.config import SamplingConfig
from alignjax.errors import UserError
from alignjax.models.logps import exact_kl, token_logps
from alignjax.models.mixture import mix
from alignjax.sampling.beam import beam_search
from alignjax.sampling.decode import sample
from tests import tiny

VOCAB, R, DRAWS = 4, 3, 4000
NEVER = VOCAB  # an end-of-sequence that no network knows: all responses have R tokens
CONFIG = tiny.model(vocab_size=VOCAB, logits_chunk=2, logit_softcap=3.0)
ALL = np.array(list(itertools.product(range(VOCAB), repeat=R)), np.int32)
ROWS = (np.array([[1, 3, 2]], np.int32), np.array([3], np.int32), np.array([7], np.int32))
EVERYTHING = tiny.given(*ROWS[:2], ALL[None])


@pytest.fixture(scope="module")
def policies():
    return [tiny.params(CONFIG, seed=seed) for seed in (1, 2)]


def draw(params, samples=DRAWS, **changes):
    settings = SamplingConfig(samples=samples, max_new_tokens=R, **changes)
    found = sample(params, *ROWS, jax.random.key(3), config=CONFIG, settings=settings, eos=(NEVER,))
    return jax.device_get(found)


@pytest.fixture(scope="module")
def tokens(policies):
    """``[M, responses, R, VOCAB]``: each policy's log-probabilities after every beginning."""
    score = jax.jit(token_logps, static_argnames="config", compiler_options=tiny.FAST)
    chosen = [np.asarray(score(p, EVERYTHING, config=CONFIG)[0], np.float64) for p in policies]
    number = {tuple(ids): i for i, ids in enumerate(ALL.tolist())}

    def after(logps, ids, t):  # of every id in place t, the beginning as it is
        rest = (0,) * (R - t - 1)
        return [logps[number[(*ids[:t], v, *rest)], t] for v in range(VOCAB)]

    return np.array(
        [[[after(x, ids, t) for t in range(R)] for ids in ALL.tolist()] for x in chosen]
    )


def nats_of_mixture(tokens, weights):
    """``[responses]``: softmax of the weighted sum of log-probabilities, token by token."""
    total = np.tensordot(weights, tokens, axes=1)
    total -= np.log(np.exp(total).sum(axis=-1, keepdims=True))
    return np.take_along_axis(total, ALL[..., None], axis=-1)[..., 0].sum(axis=-1)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (2.0, 0.5)])
def test_the_distribution_is_the_softmax_of_the_weighted_sum(policies, tokens, weights):
    """All 64 responses, 4,000 draws: chi-square, fixed seed; and the nats that are reported."""
    ids, length, logps = draw(mix(policies, weights))
    assert (length == R).all()
    wanted = nats_of_mixture(tokens, weights)
    place = (ids[0] * VOCAB ** np.arange(R)[::-1]).sum(axis=-1)
    np.testing.assert_allclose(logps[0], wanted[place], atol=1e-4)

    def p_value(nats):
        expected = np.exp(nats) * DRAWS
        assert expected.sum() == pytest.approx(DRAWS)
        order = np.argsort(expected)
        rare = order[: np.searchsorted(expected[order].cumsum(), 10.0) + 1]
        counts = np.bincount(place, minlength=len(ALL))
        cells = [np.append(np.delete(x, rare), x[rare].sum()) for x in (counts, expected)]
        return stats.chisquare(*cells).pvalue

    assert p_value(wanted) > 0.01
    assert p_value(nats_of_mixture(tokens, (0.5, 0.5))) < 1e-6  # other weights are noticed


@pytest.mark.slow
def test_one_policy_is_plain_sampling_bit_for_bit(policies):
    plain = draw(policies[0], samples=5, temperature=0.8)
    for mixture in (mix(policies[:1], [1.0]), mix(policies, [1.0, 0.0])):
        for one, other in zip(draw(mixture, samples=5, temperature=0.8), plain, strict=True):
            np.testing.assert_array_equal(one, other)


def test_other_weights_do_not_compile_again(policies):
    draw(mix(policies, [0.2, 0.8]), samples=2)
    before = sample._cache_size()
    draw(mix(policies, [0.6, 0.4]), samples=2)
    assert sample._cache_size() == before


def test_beams_search_the_mixture(policies, tokens):
    wanted = nats_of_mixture(tokens, (0.7, 0.3))
    ids, _, logps = beam_search(
        mix(policies, (0.7, 0.3)),
        *ROWS[:2],
        config=CONFIG,
        settings=SamplingConfig(samples=3, num_beams=16, max_new_tokens=R),
        eos=(NEVER,),
    )
    best = np.argsort(-wanted)[:3]
    np.testing.assert_array_equal(ids[0], ALL[best])
    np.testing.assert_allclose(logps[0], wanted[best], atol=1e-4)


def test_its_divergence_is_that_of_the_mixture(policies, tokens):
    """Over all responses, the mean of the divergences along them is the whole one."""
    nats = nats_of_mixture(tokens, (0.7, 0.3))
    _, along = exact_kl(mix(policies, (0.7, 0.3)), policies[1], EVERYTHING, config=CONFIG)
    wanted = np.sum(np.exp(nats) * (nats - nats_of_mixture(tokens, (0.0, 1.0))))
    assert np.sum(np.exp(nats) * np.asarray(along[0])) == pytest.approx(wanted, abs=1e-4)


def test_what_does_not_fit_together_is_refused(policies):
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]):
        with pytest.raises(UserError, match=r"mixture: wanted "):
            mix(policies, weights)
    with pytest.raises(UserError, match=r"mixture: wanted a weight for each"):
        mix([], [])
    other = tiny.params(tiny.model(vocab_size=VOCAB, width=16))
    with pytest.raises(UserError, match=r"mixture: policy 1 has other parameters than policy 0"):
        mix([policies[0], other], [0.5, 0.5])
