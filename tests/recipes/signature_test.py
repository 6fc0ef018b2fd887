"""Objectives tried on the data's shapes: what does not fit is told before anything is compiled."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.data import world
from alignjax.errors import UserError
from alignjax.objectives import dpo, hps, plackett_luce, sft
from alignjax.recipes import signature
from alignjax.recipes.prepared import prepare_data
from alignjax.types import loss_inputs
from tests import runs

LISTS = dataclasses.replace(
    runs.get_config().data, source=partial(world.lists, size=60, seed=0, responses=4)
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return prepare_data(runs.get_config(), tmp_path_factory.mktemp("pairs")).train


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    config = runs.get_config(data=LISTS)
    return prepare_data(config, tmp_path_factory.mktemp("lists")).train


def scalar(logps, batch):
    return logps.policy.mean(), {}


def scalar_metric(logps, batch):
    return logps.policy[:, 0], {"x": logps.policy.mean()}


def no_metrics(logps, batch):
    return logps.policy[:, 0]


def taken(logps, batch):
    return logps.policy[:, 0], {"weight": logps.policy[:, 0]}


def mistaken(logps, batch):
    return logps.polcy[:, 0], {}


def misshapen(logps, batch):
    return jnp.concatenate([logps.policy, logps.policy[0]]), {}


def branching(logps, batch):
    return (logps.policy[:, 0], {}) if logps.policy[0, 0] > 0 else (logps.policy[:, 1], {})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (scalar, r"loss: .*scalar: wanted one value per prompt, \[B\], found shapes .*\(\)"),
        (scalar_metric, r"wanted one value per prompt, \[B\], found shapes \{'x': \(\)\}"),
        (no_metrics, r"no_metrics must return \(losses, metrics\)"),
        (taken, r"returns a metric 'weight', a name that the step uses itself"),
        (mistaken, r"signature_test\.py:\d+: AttributeError: .*'polcy'"),
        (misshapen, r"loss: .*misshapen on this data: "),
        (branching, r"signature_test\.py:\d+: TracerBoolConversionError: "),
        (hps.loss, r"loss: .*hps\.loss on this data: "),
    ],
)
def test_a_loss_that_does_not_fit_is_told_in_one_line(loss, message, pairs):
    config = runs.get_config(loss=loss)
    if loss is hps.loss:  # wants to know how many responses it was drawn from
        config = dataclasses.replace(config, loss=plackett_luce.loss)
        message = r"plackett_luce\.loss on this data: .*scores"
    with pytest.raises(UserError, match=message) as caught:
        signature.check_objectives(config, pairs)
    assert "\n" not in str(caught.value)


def test_k_and_reference_are_checked(pairs, lists):
    with pytest.raises(UserError, match=r"K=4: set `select`"):
        signature.check_objectives(runs.get_config(data=LISTS), lists)
    with pytest.raises(UserError, match=r"set reference\.mode"):
        signature.check_objectives(runs.changed("reference.mode=none"), pairs)
    with pytest.raises(UserError, match=r"select: .*hps\.select on this data: .*scores"):
        signature.check_objectives(runs.get_config(select=partial(hps.select, gamma=1.0)), pairs)


def test_the_loss_of_a_reward_model_is_given_scores(pairs, lists):
    def margin(scores, batch, *, wanted: tuple[int, ...]):
        assert scores.shape == batch.response_length.shape == wanted
        assert batch.scores is None or batch.scores.shape == wanted
        return scores[:, 0] - scores[:, 1], {}

    def config(rows, **changes):
        wanted = (2, rows.dataset.response_length.shape[1])
        loss = partial(margin, wanted=wanted)
        return runs.get_config(loss=None, reward_loss=loss, **changes)

    signature.check_objectives(config(pairs), pairs)
    signature.check_objectives(config(lists, data=LISTS), lists)
    with pytest.raises(UserError, match=r"reward_loss: .*mistaken on this data: .*polcy"):
        signature.check_objectives(runs.get_config(loss=None, reward_loss=mistaken), pairs)


def test_the_supervised_loss_is_checked_too(pairs):
    stage = dataclasses.replace(runs.get_config().sft, loss=dpo.loss)
    with pytest.raises(UserError, match=r"sft\.loss: .*dpo\.loss on this data: .*reference"):
        signature.check_objectives(runs.get_config(sft=stage), pairs)


def test_what_fits_passes(pairs, lists):
    signature.check_objectives(runs.get_config(), pairs)
    signature.check_objectives(runs.get_config(loss=sft.loss), pairs)
    signature.check_objectives(runs.get_config(loss=plackett_luce.loss), lists)
    gamma = optax.linear_schedule(-5.0, 5.0, 8)
    config = runs.get_config(select=partial(hps.select, gamma=gamma), loss=hps.loss)
    signature.check_objectives(config, lists)
    assert signature.drawn_responses(config, lists) == 2
    assert signature.drawn_responses(runs.get_config(), lists) == 4


def per_token(logps, *, scale: float = 1.0):
    return scale * logps.policy / jnp.maximum(logps.length, 1)


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (dpo.loss, [0.2, -0.3]),
        (partial(dpo.loss, beta=0.3), [0.6, -0.9]),
        (partial(dpo.loss, beta=optax.linear_schedule(0.0, 0.7, 10)), [1.4, -2.1]),
        (partial(plackett_luce.loss, beta=2.0, implicit=per_token), [-2.0, -4.0]),
        (
            partial(hps.loss, implicit=partial(per_token, scale=optax.linear_schedule(0, 5.0, 9))),
            [-0.5, -1.0],
        ),
        (sft.loss, [2.0, -3.0]),
    ],
)
def test_rewards_are_those_that_the_loss_trains(loss, wanted):
    logps, _ = loss_inputs([[-4.0, -6.0]], [[-6.0, -3.0]], length=[[4, 3]])
    np.testing.assert_allclose(signature.implicit_reward(loss)(logps), [wanted], rtol=1e-6)


def test_without_a_reference_the_reward_is_the_log_probability():
    logps, _ = loss_inputs([[-4.0, -6.0]])
    np.testing.assert_array_equal(signature.implicit_reward(sft.loss)(logps), [[-4.0, -6.0]])
