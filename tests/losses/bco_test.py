"""BCO's shift, its density ratio, and what it refuses."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import bco
from alignjax.testing import loss_inputs
from alignjax.training.schedules import resolve

F = 0.25


def test_the_shift_is_halfway_between_the_classes():
    ratio = np.array([[1.0], [3.0], [-5.0], [-1.0], [-3.0], [0.0], [0.0], [-9.0]])
    labels = np.arange(8)[:, None] < 2
    logps, batch = loss_inputs(ratio, np.zeros_like(ratio), desirable=labels)
    found = bco.baseline(logps, batch, desirable_fraction=F).mean()
    np.testing.assert_allclose(found, (2.0 - 3.0) / 2, rtol=1e-6)
    found = bco.baseline(logps, batch, desirable_fraction=F, reduction="batch_mean").mean()
    np.testing.assert_allclose(found, ratio.mean(), rtol=1e-6)


def test_what_is_missing_is_named():
    logps, batch = loss_inputs([[-1.0]], [[-1.0]], desirable=[[True]])
    with pytest.raises(ValueError, match=r"set `baseline` to bco\.baseline"):
        bco.loss(logps, batch, desirable_fraction=F)
    for call in (bco.loss, bco.baseline):
        with pytest.raises(ValueError, match=r"binds it from the data"):
            call(logps, batch.replace(running_baseline=jnp.zeros(1)))
        with pytest.raises(ValueError, match=r"wanted a label for every response"):
            call(logps, batch.replace(desirable=None), desirable_fraction=F)


def test_a_density_ratio_is_no_schedule():
    def ratio(batch):
        return batch.weight

    bound = resolve(partial(bco.loss, density_ratio=ratio), jnp.int32(0), 1)
    assert bound.keywords["density_ratio"] is ratio
