"""Implicit rewards: those that a loss trains, whether it takes them, is marked, or neither."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.losses import (
    cpo,
    dpo,
    hps,
    kto,
    ld_dpo,
    mixed,
    orpo,
    plackett_luce,
    pro,
    rrhf,
    sft,
    slic,
    wpo,
)
from alignjax.testing import loss_inputs
from alignjax.training.implicit import implicit_reward
from alignjax.training.schedules import resolve
from alignjax.types import Schedule


def per_token(logps, *, scale: float = 1.0):
    return scale * logps.policy / jnp.maximum(logps.length, 1)


RISING = Schedule(optax.linear_schedule(0, 5.0, 9))


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (dpo.loss, [0.2, -0.3]),
        (partial(dpo.loss, beta=0.3), [0.6, -0.9]),
        (partial(dpo.loss, beta=Schedule(optax.linear_schedule(0.0, 0.7, 10))), [1.4, -2.1]),
        (partial(dpo.loss, beta=hps.curriculum(start=0.1, stop=0.7)), [1.4, -2.1]),
        (partial(plackett_luce.loss, beta=2.0, implicit=per_token), [-2.0, -4.0]),
        (
            partial(hps.loss, implicit=partial(per_token, scale=RISING)),
            [-0.5, -1.0],
        ),
        (partial(wpo.weighted, loss=partial(dpo.loss, beta=0.3)), [0.6, -0.9]),
        (partial(ld_dpo.weighted, loss=partial(cpo.loss, beta=0.5)), [-2.0, -3.0]),
        (sft.loss, [2.0, -3.0]),
        (kto.loss, [0.2, -0.3]),
        (partial(cpo.loss, beta=0.5), [-2.0, -3.0]),
        (slic.loss, [-4.0, -6.0]),
        (orpo.loss, [-1.0, -2.0]),
        (pro.loss, [-1.0, -2.0]),
        (rrhf.loss, [-1.0, -2.0]),
        (partial(rrhf.loss, length_penalty=0.0), [-4.0, -6.0]),
    ],
)
def test_rewards_are_those_that_the_loss_trains(loss, wanted):
    logps, _ = loss_inputs([[-4.0, -6.0]], [[-6.0, -3.0]], length=[[4, 3]])
    np.testing.assert_allclose(implicit_reward(loss)(logps), [wanted], rtol=1e-6)


def test_without_a_reference_the_reward_is_the_log_probability():
    logps, _ = loss_inputs([[-4.0, -6.0]])
    np.testing.assert_array_equal(implicit_reward(sft.loss)(logps), [[-4.0, -6.0]])


def test_schedules_of_losses_in_a_tuple_are_resolved():
    """`mixed.loss` holds its losses and weights in tuples."""
    half = Schedule(optax.linear_schedule(0.0, 1.0, 10))
    mixture = partial(mixed.loss, losses=(partial(dpo.loss, beta=half),), weights=(half,))
    resolved = resolve(mixture, jnp.int32(5), 10)
    assert float(resolved.keywords["weights"][0]) == 0.5
    assert float(resolved.keywords["losses"][0].keywords["beta"]) == 0.5
