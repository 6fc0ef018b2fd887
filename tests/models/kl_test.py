"""The divergence along samples: against every position by hand, and against the whole truth."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import logps
from alignjax.models.transformer import Transformer, unembedding
from tests import tiny

CONFIG = tiny.model(logits_chunk=4)

exact_kl = jax.jit(logps.exact_kl, static_argnames="config")
response_logps = logps.score_responses


@functools.partial(jax.jit, static_argnums=2)
def logits_of(params, batch, config):
    hidden = Transformer(config).apply(
        {"params": params}, batch.prompt, batch.prompt_length, batch.response
    )
    return jnp.einsum("bkrd,vd->bkrv", hidden, unembedding(params, config))


def distributions(params, batch, config):
    """``[B, K, R, vocab]`` log-probabilities at every position, in float64."""
    logits = np.asarray(logits_of(params, batch, config), float)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("chunk", [4, 64])
def test_it_equals_the_sum_over_the_vocabulary_at_every_position(chunk):
    config = tiny.model(logits_chunk=chunk)
    batch, (ours, theirs) = tiny.ragged(), (tiny.params(CONFIG, seed=i) for i in (0, 1))
    logps, found = exact_kl(ours, theirs, batch, config=config)
    p, q = (distributions(x, batch, CONFIG) for x in (ours, theirs))
    inner = (np.exp(p) * (p - q)).sum(-1)
    mask = np.arange(inner.shape[-1]) < batch.response_length[..., None]
    np.testing.assert_allclose(found, (inner * mask).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(
        logps, response_logps(theirs, batch, config=CONFIG), rtol=1e-5, atol=1e-5
    )
    assert found[-1, -1] == 0  # absent
    assert (np.asarray(found)[np.asarray(batch.response_length) > 0] > 0.1).all()
    assert np.abs(exact_kl(ours, ours, batch, config=config)[1]).max() < 1e-4


def test_its_mean_is_the_divergence_between_the_two_distributions_over_responses():
    """All 4^3 responses of a vocabulary of 4, weighed by the policy's probability."""
    config = tiny.model(vocab_size=4)
    ours, theirs = (tiny.params(config, seed=i) for i in (0, 1))
    responses = np.array(list(itertools.product(range(4), repeat=3)), np.int32)[None]
    batch = tiny.given(np.array([[1, 2]], np.int32), [2], responses)
    p = np.asarray(response_logps(ours, batch, config=config)[0], float)
    q, inner = (np.asarray(x[0], float) for x in exact_kl(ours, theirs, batch, config=config))
    truth = (np.exp(p) * (p - q)).sum()
    assert np.exp(p).sum() == pytest.approx(1, rel=1e-5)
    assert (np.exp(p) * inner).sum() == pytest.approx(truth, rel=1e-4)
    # Both estimates have this mean; of one sample, this one's spread is the smaller.
    spread = [np.exp(p) @ (x - truth) ** 2 for x in (p - q, inner)]
    assert spread[1] < spread[0] / 2
