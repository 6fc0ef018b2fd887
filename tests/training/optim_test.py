"""Learning-rate schedules and the optimizer chain, against their formulas in NumPy."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.config import OptimConfig
from alignjax.training import optim
from tests import tiny

PEAK, STEPS, WARM = 0.1, 20, 4


def by_formula(name, step):
    if step < WARM:
        return PEAK * step / WARM
    done = min((step - WARM) / (STEPS - WARM), 1.0)
    return (
        PEAK
        * {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
        }[name]
    )


class ScheduleTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_schedules(self):
        for name in ("constant", "linear", "cosine"):
            schedule = self.variant(getattr(optim, name)(PEAK, STEPS, WARM))
            found = [float(schedule(step)) for step in range(STEPS + 3)]
            wanted = [by_formula(name, step) for step in range(STEPS + 3)]
            np.testing.assert_allclose(found, wanted, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_warm_up_the_first_step_has_the_peak(name):
    assert float(getattr(optim, name)(PEAK, STEPS, 0)(0)) == pytest.approx(PEAK)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_warm_up_of_the_whole_run_and_a_run_of_one_step(name):
    schedule = getattr(optim, name)
    assert float(schedule(PEAK, 4, 4)(3)) == pytest.approx(PEAK * 3 / 4)
    assert math.isfinite(schedule(PEAK, 1, 0)(1))


def test_warm_up_is_a_share_of_the_steps():
    config = OptimConfig(learning_rate=PEAK, schedule=optim.linear, warmup_fraction=0.2)
    assert float(optim.learning_rate(config, STEPS)(2)) == pytest.approx(by_formula("linear", 2))
    assert float(optim.learning_rate(config, STEPS)(WARM)) == pytest.approx(PEAK)


def updates_of(config, params, gradients):
    optimizer = optim.make(config, STEPS)
    state, out = optimizer.init(params), []
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        out.append(updates)
    return out


def test_adamw_with_clipping_by_hand():
    config = OptimConfig(
        learning_rate=0.01,
        schedule=optim.constant,
        warmup_fraction=0.0,
        weight_decay=0.3,
        b1=0.8,
        b2=0.95,
        eps=1e-4,
        clip_norm=2.0,
    )
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 3))
    gradients = [rng.normal(size=(2, 3)) * size for size in (0.1, 5.0, 1.0)]
    found = updates_of(
        config,
        {"kernel": jnp.asarray(w, jnp.float32)},
        [{"kernel": jnp.asarray(g, jnp.float32)} for g in gradients],
    )
    first, second = np.zeros((2, 3)), np.zeros((2, 3))
    for t, (g, update) in enumerate(zip(gradients, found, strict=True), start=1):
        g = g * min(1.0, 2.0 / np.linalg.norm(g))
        first, second = 0.8 * first + 0.2 * g, 0.95 * second + 0.05 * g**2
        step = first / (1 - 0.8**t) / (np.sqrt(second / (1 - 0.95**t)) + 1e-4)
        np.testing.assert_allclose(update["kernel"], -0.01 * (step + 0.3 * w), rtol=2e-5)
    assert np.linalg.norm(gradients[0]) < 2.0 < np.linalg.norm(gradients[1])


def test_without_a_clip_norm_gradients_keep_their_size():
    """Adam forgets the size of the first gradient; the second shows it."""
    params = {"kernel": jnp.ones((2, 2))}
    gradients = [{"kernel": jnp.full((2, 2), size)} for size in (1.0, 100.0)]
    free, clipped = (
        updates_of(
            OptimConfig(
                learning_rate=1.0, schedule=optim.constant, warmup_fraction=0.0, clip_norm=norm
            ),
            params,
            gradients,
        )[1]["kernel"]
        for norm in (None, 1.0)
    )
    assert float(jnp.abs(free - clipped).min()) > 0.1


def test_decay_reaches_every_matrix_and_no_norm_or_bias():
    config = OptimConfig(
        learning_rate=1.0, schedule=optim.constant, warmup_fraction=0.0, weight_decay=0.5
    )
    params = tiny.params(tiny.model(tied_embeddings=False, qkv_bias=True, qk_norm=True))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = updates_of(config, params, [zeros])[0]
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        weight = params
        for part in name.split("/"):
            weight = weight[part]
        vector = name.endswith(("scale", "bias"))
        np.testing.assert_allclose(update, 0 * weight if vector else -0.5 * weight, rtol=1e-6)
