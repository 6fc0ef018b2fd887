"""RDRO's weights, and what the losses of labelled responses refuse."""

import jax
import numpy as np
import pytest

from alignjax.losses import ddro, rdro
from alignjax.testing import loss_inputs

F = 0.2  # desirable fraction


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def case(k=3, b=64, seed=0, scale=3.0):
    """Log-ratios, labels and presence ``[b, k]``, and the loss's two arguments."""
    rng = np.random.default_rng(seed)
    ratio = rng.normal(0, scale, (b, k))
    labels = rng.random((b, k)) < F
    present = (rng.random((b, k)) < 0.8) | (np.arange(k) == 0)
    reference = rng.uniform(-30, -10, (b, k))
    inputs = loss_inputs(ratio + reference, reference, length=2 * present, desirable=labels)
    return ratio, labels, present, inputs


def eq_18(ratio, labels, alpha):
    """Class-wise means over all responses."""
    sp = np.logaddexp(0, ratio)
    good = ((1 + alpha) * sp - ratio)[labels].mean()
    return good + ((1 - alpha) * sp)[~labels].mean()


def test_random_batches_average_to_eq_18():
    """The mean over every batch of one row, most of them of one class only, is Eq. 18."""
    ratio, labels, _, (logps, batch) = case(k=1, b=200)
    f = labels.mean()
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 1], (logps, batch)) for i in range(0, 200, 8)]
    assert all(len(np.unique(b.desirable)) == 1 for _, b in batches)
    whole = np.asarray(rdro.loss(logps, batch, alpha=0.3, desirable_fraction=float(f))[0])
    apart = [rdro.loss(*one, alpha=0.3, desirable_fraction=float(f))[0][0] for one in batches]
    np.testing.assert_allclose(apart, whole[::8], rtol=1e-12)
    np.testing.assert_allclose(whole.mean(), eq_18(ratio, labels, 0.3), rtol=1e-9)


def test_lists_are_the_same_rows_times_their_mean_number_of_responses():
    ratio, labels, present, (logps, batch) = case(k=4)
    f = float(labels[present].mean())
    lists = rdro.loss(logps, batch, desirable_fraction=f)[0].mean()
    single = loss_inputs(
        ratio[present][:, None],
        np.zeros((present.sum(), 1)),
        desirable=labels[present][:, None],
    )
    rows = rdro.loss(*single, desirable_fraction=f)[0].mean()
    np.testing.assert_allclose(lists, rows * present.sum() / len(present), rtol=1e-9)
    np.testing.assert_allclose(rows, eq_18(ratio[present], labels[present], f), rtol=1e-9)


@pytest.mark.parametrize("loss", [rdro.loss, ddro.loss, ddro.loss_log_sigmoid])
def test_what_is_refused(loss):
    logps, batch = case()[-1]
    assert np.isfinite(loss(logps, batch, desirable_fraction=F)[0]).all()
    with pytest.raises(ValueError, match=r"binds it from the data; in a direct call pass"):
        loss(logps, batch)
    with pytest.raises(ValueError, match=r"binds it from the data"):
        loss(logps, batch, alpha=0.5)
    for value in (0.0, 1.0, -0.1, 2, float("nan")):
        with pytest.raises(ValueError, match=rf"alpha: wanted a number in \(0, 1\), found {value}"):
            loss(logps, batch, desirable_fraction=F, alpha=value)
        with pytest.raises(ValueError, match=rf"desirable_fraction: wanted .* found {value}"):
            loss(logps, batch, desirable_fraction=value)
    with pytest.raises(ValueError, match=r"reduction: wanted 'class_mean' .* found 'mean'"):
        loss(logps, batch, desirable_fraction=F, reduction="mean")
    with pytest.raises(ValueError, match=r"wanted a label .*sources\.unpaired"):
        loss(logps, batch.replace(desirable=None), desirable_fraction=F)
    with pytest.raises(ValueError, match=r"each of 3 responses, found 2: .*kto\.select"):
        loss(logps, batch.replace(desirable=batch.desirable[:, :2]), desirable_fraction=F)


def test_alpha_and_fraction_may_be_traced():
    inputs = case()[-1]
    traced = jax.jit(lambda a, f: rdro.loss(*inputs, alpha=a, desirable_fraction=f)[0])(0.3, F)
    np.testing.assert_allclose(
        traced, rdro.loss(*inputs, alpha=0.3, desirable_fraction=F)[0], rtol=1e-9
    )
