"""KTO's mismatched pairs and what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.losses import kto, rdro
from alignjax.models.logps import response_logps
from alignjax.testing import loss_inputs
from alignjax.training import step
from alignjax.training.microbatches import Rooms
from tests import tiny


def test_implicit_is_the_log_ratio_or_that_per_token():
    logps, _ = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]])
    np.testing.assert_allclose(kto.implicit(logps), [[1.0, -3.0]])
    np.testing.assert_allclose(kto.implicit(logps, per_token=True), [[0.5, -1.0]])


def labelled(weight, k=1):
    """Rows whose response j is made of the id 10 row + j."""
    b = len(weight)
    _, batch = loss_inputs(np.zeros((b, k)), np.zeros((b, k)), desirable=np.ones((b, k)))
    ids = 10 * np.arange(b)[:, None] + np.arange(k)
    return batch.replace(
        response=jnp.asarray(ids[:, :, None], jnp.int32),
        weight=jnp.asarray(weight, jnp.float32),
        ref_logps=jnp.zeros((b, k)),
    )


@pytest.mark.parametrize("weight", [[1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [2, 0, 0, 1]])
def test_every_row_that_counts_gets_the_response_of_the_next_one(weight):
    batch = labelled(weight, k=2)
    out = kto.select(jax.random.key(0), batch)
    rows = np.flatnonzero(weight)
    partner = np.roll(rows, -1)
    assert (partner != rows).all()
    np.testing.assert_array_equal(out.response[rows, 2, 0], 10 * partner)
    np.testing.assert_array_equal(out.response_length[rows, 2], 1)
    np.testing.assert_array_equal(out.response_length[np.equal(weight, 0), 2], 0)
    np.testing.assert_array_equal(out.response[:, :2], batch.response)
    assert out.ref_logps is None
    assert out.desirable.shape == (len(weight), 2)


def test_the_first_present_response_of_the_partner_is_taken():
    batch = labelled([1, 1], k=2)
    batch = batch.replace(response_length=jnp.array([[0, 3], [2, 0]]))
    out = kto.select(jax.random.key(0), batch)
    np.testing.assert_array_equal(out.response[:, 2, 0], [10, 1])
    np.testing.assert_array_equal(out.response_length[:, 2], [2, 3])


def test_a_batch_of_one_counted_row_has_the_baseline_0():
    out = kto.select(jax.random.key(0), labelled([0, 1, 0]))
    np.testing.assert_array_equal(out.response_length[:, 1], 0)
    logps, _ = loss_inputs(np.full((3, 2), 5.0), np.zeros((3, 2)), length=out.response_length)
    np.testing.assert_array_equal(kto.baseline(logps, out), 0.0)


def test_the_loss_does_not_read_the_mismatched_response():
    batch = kto.select(jax.random.key(0), labelled([1, 1, 1])).replace(baseline=jnp.full(3, 0.1))
    for far in (0.0, 9.0):
        logps, _ = loss_inputs(np.array([[1.0, far]] * 3), np.zeros((3, 2)))
        losses, metrics = kto.loss(logps, batch)
        np.testing.assert_allclose(losses, 1 / (1 + np.exp(0.1 * 0.9)), rtol=1e-6)
        np.testing.assert_allclose(metrics["log_ratio/desirable"], 1.0)
        np.testing.assert_allclose(kto.baseline(logps, batch), far)


def test_what_is_missing_is_named():
    logps, batch = loss_inputs([[-1.0]], [[-1.0]], desirable=[[True]])
    with pytest.raises(ValueError, match=r"set `select` to kto\.select and `baseline`"):
        kto.loss(logps, batch)
    with pytest.raises(ValueError, match=r"set `select` to kto\.select in the config"):
        kto.baseline(logps, batch)
    bare = batch.replace(desirable=None, baseline=jnp.zeros(1))
    for call in (lambda: kto.loss(logps, bare), lambda: kto.select(jax.random.key(0), bare)):
        with pytest.raises(ValueError, match=r"wanted a label for every response"):
            call()
    with pytest.raises(ValueError, match=r"each of 2 responses, found 1"):
        rdro.loss(logps, kto.select(jax.random.key(0), labelled([1])), desirable_fraction=0.5)


def test_what_the_mismatched_response_costs():
    """The docstring's factors, from XLA's count for a compiled step."""
    # XLA counts the body of a loop once, however often it runs: padded attention has none.
    config = tiny.model(vocab_size=512, width=64, mlp_width=176, attention="xla")
    params, optimizer = tiny.params(config), optax.sgd(1.0)
    batch = tiny.batch(np.full(8, 32), np.full((8, 1), 64))
    batch = jax.tree.map(jnp.asarray, batch.replace(desirable=np.arange(8)[:, None] % 2 == 0))
    state = step.init_state(params, optimizer, jax.random.key(0))

    def flops(select, baseline, batch):
        run = functools.partial(
            step.train_step,
            update=step.Update(
                apply=functools.partial(response_logps, config=config),
                optimizer=optimizer,
                loss=kto.loss,
                select=select,
                baseline=baseline,
                rooms=Rooms(sizes=(2048,)),  # one part: several would score twice
            ),
        )
        return jax.jit(run).lower(state, params, batch).cost_analysis()["flops"]

    def own(logps, batch):
        return logps.log_ratio[:, 0]

    with_it = flops(kto.select, kto.baseline, batch)
    assert with_it / flops(None, own, batch) == pytest.approx(1.73, abs=0.05)
    cached = batch.replace(ref_logps=jnp.zeros((8, 1)))
    assert with_it / flops(None, own, cached) == pytest.approx(2.28, abs=0.05)
