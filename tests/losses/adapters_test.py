"""Every objective trains adapters: a whole step of each, through the smallest of networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.models import lora
from alignjax.models.config import LoraConfig
from alignjax.training.step import (
    Update,
    init_state,
    reward_scores,
    score,
    train_step,
    with_adapters,
)
from tests.losses import checks
from tests.losses.conformance_test import DEFINED, RUNS, as_run

pytestmark = [pytest.mark.usefixtures("compiled_here"), pytest.mark.slow]

CONFIG = LoraConfig(rank=2, dropout=0.2, targets=("q",))
OPTIMIZER = optax.sgd(0.1)


def apply(params, batch):
    """``[B, K]`` of the response ids: one projection, with the adapters that are beside it."""
    own = jax.tree.map(lambda x: x[0], params["layers"]["q"])
    x = jnp.sin(batch.response.astype(jnp.float32))
    y = x @ own["kernel"] + (lora.low_rank(x, own) if "lora_a" in own else 0.0)
    return jnp.where(batch.response_length > 0, jnp.tanh(y[..., 0]) - 2.0, 0.0)


@pytest.mark.parametrize("name", DEFINED)
def test_a_step_moves_the_adapters_and_nothing_else(name):
    rng = np.random.default_rng(0)
    base = {"layers": {"q": {"kernel": jnp.asarray(rng.normal(size=(1, 6, 1)), jnp.float32)}}}
    rewards = ".reward_loss" in name
    _, batch = checks.largest(RUNS[name])
    forward = functools.partial(
        with_adapters, forward=reward_scores if rewards else score, config=CONFIG, live=not rewards
    )
    step = functools.partial(
        train_step,
        update=Update(
            apply=apply,
            optimizer=OPTIMIZER,
            loss=as_run(DEFINED[name]),
            forward=forward,
        ),
    )
    before = init_state(lora.init(CONFIG, base, jax.random.key(1)), OPTIMIZER, jax.random.key(2))
    after, scalars = jax.jit(step)(before, base, batch)
    assert not scalars["skipped"]
    b, a = (after.params["layers"]["q"][leaf] for leaf in ("lora_b", "lora_a"))
    assert np.abs(b).max() > 0  # B is 0 at the start, so A has no gradient yet
    np.testing.assert_array_equal(a, before.params["layers"]["q"]["lora_a"])
