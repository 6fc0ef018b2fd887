"""The reward model's head against NumPy loops, and its placement on a mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.models import reward_head
from alignjax.runtime import sharding
from tests import tiny
from tests.models.transformer_test import states_by_loops

CONFIG = tiny.model(layers=1)
PADDING = 77  # an id outside the vocabulary of 64


def reward_params(config, objectives=1):
    """Every leaf random, the head too."""
    params = reward_head.from_language_model(tiny.params(config), objectives=objectives)
    kernel = np.random.default_rng(3).normal(size=(config.width, objectives))
    return {**params, "reward": {"kernel": jnp.asarray(kernel, params["norm"]["scale"].dtype)}}


def by_loops(params, config, batch):
    """``[B, K, M]``: the kernel times the state at a sequence's last token, each run on its own."""
    kernel = np.asarray(params["reward"]["kernel"], np.float64)
    decoder = {name: x for name, x in params.items() if name != "reward"}
    out = np.zeros((*batch.response_length.shape, kernel.shape[1]))
    for i, j in np.ndindex(*batch.response_length.shape):
        p, n = batch.prompt_length[i], batch.response_length[i, j]
        if n:
            tokens = [*batch.prompt[i][len(batch.prompt[i]) - p :], *batch.response[i, j][:n]]
            out[i, j] = states_by_loops(decoder, config, tokens)[-1] @ kernel
    return out


@functools.cache
def fast(config):
    scores = functools.partial(reward_head.response_scores, config=config)
    return jax.jit(scores, compiler_options=tiny.FAST)


@pytest.mark.parametrize("objectives", [1, 3])
def test_equals_the_pooled_decoder_by_loops_in_float64(objectives):
    batch = tiny.ragged(3)
    with tiny.float64(CONFIG, reward_head) as exact:
        params = reward_params(exact, objectives)
        found = jax.jit(lambda p: reward_head.response_scores(p, batch, config=exact))(params)
        wanted = by_loops(params, CONFIG, batch)
    assert found.shape == ((3, 3) if objectives == 1 else (3, 3, 3))
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=1e-11)


def test_absent_responses_score_0_and_padding_is_not_read():
    params, batch = reward_params(CONFIG), tiny.ragged(3)
    found = np.asarray(fast(CONFIG)(params, batch))
    chex.assert_type(found, np.float32)
    assert found[-1, -1] == 0
    assert (found[batch.present] != 0).all()
    after = np.arange(batch.response.shape[-1]) >= batch.response_length[..., None]
    padded = batch.replace(response=np.where(after, PADDING, batch.response))
    np.testing.assert_array_equal(fast(CONFIG)(params, padded), found)
    # The last token is read, and so is the first one of the prompt.
    rows, columns = np.nonzero(batch.response_length)
    other = batch.response.copy()
    last = batch.response_length[rows, columns] - 1
    other[rows, columns, last] = (other[rows, columns, last] + 1) % 64
    changed = np.asarray(fast(CONFIG)(params, batch.replace(response=other)))
    assert (changed[batch.present] != found[batch.present]).all()


def test_sharded_scores_equal_those_of_one_device():
    params, batch = reward_params(CONFIG, 2), tiny.ragged(2, b=4)
    mesh = sharding.make_mesh(2, 2, 2)
    layout = sharding.shard_tree(params, mesh)
    assert layout["reward"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp")
    found = fast(CONFIG)(jax.device_put(params, layout), sharding.put_rows(batch, mesh))
    np.testing.assert_allclose(found, fast(CONFIG)(params, batch), rtol=1e-5, atol=1e-5)


def test_it_starts_as_the_language_model_with_a_head_of_zeros():
    config = tiny.model(layers=1, tied_embeddings=False)
    language = tiny.params(config)
    params = reward_head.from_language_model(language, objectives=2)
    assert set(params) == {"embed", "layers", "norm", "reward"}
    chex.assert_trees_all_equal(params["layers"], language["layers"])
    batch = tiny.ragged(2)
    assert not np.asarray(fast(config)(params, batch)).any()

    def first(params):
        return reward_head.response_scores(params, batch, config=config)[..., 0].sum()

    head = jax.jit(jax.grad(first), compiler_options=tiny.FAST)(params)["reward"]["kernel"]
    assert np.abs(head[:, 0]).max() > 0.1  # zeros that learn
    assert not np.asarray(head[:, 1]).any()
