"""The guards of losses, taken away: the check that each is for then fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import ddro, hps
from alignjax.testing import loss_inputs


def test_without_the_clamp_far_log_ratios_are_not_finite(monkeypatch):
    case = loss_inputs([[0.0], [3.0]], [[0.0], [0.0]], desirable=[[1], [0]])
    settings = dict(alpha=0.5, desirable_fraction=0.5)
    assert np.isfinite(ddro.loss(*case, **settings)[0]).all()
    monkeypatch.setattr(ddro, "CLAMP", -1e9)
    assert not np.isfinite(ddro.loss(*case, **settings)[0]).all()


def drawn(b=500):
    """The scores that `hps.select` draws for lists with absent, tied and unscored responses."""
    scores = np.tile([0.5, 2.0, 9.0, 2.0, np.nan, -1.0], (b, 1))
    length = np.tile([1, 1, 0, 1, 1, 1], (b, 1))
    _, batch = loss_inputs(np.zeros((b, 6)), scores=scores, length=length)
    return set(np.unique(hps.select(jax.random.key(0), batch, gamma=0.0).scores[:, 1]).tolist())


@pytest.mark.parametrize(
    "negatives", [lambda b: b.scores < 9, lambda b: b.present, lambda b: b.scores > -9]
)
def test_without_the_guard_other_responses_are_drawn(monkeypatch, negatives):
    assert drawn() == {0.5, -1.0}
    guarded = hps.best_and_negatives
    monkeypatch.setattr(hps, "best_and_negatives", lambda b: (guarded(b)[0], negatives(b)))
    assert drawn() != {0.5, -1.0}


def test_a_draw_by_slot_does_not_follow_the_prompt():
    scores = np.random.default_rng(0).normal(size=(16, 5))
    _, batch = loss_inputs(np.zeros((16, 5)), scores=scores)
    order = jnp.asarray(np.random.default_rng(1).permutation(16))
    moved = jax.tree.map(lambda x: x[order], batch)

    def picked(batch, by_slot):
        if by_slot:
            batch = batch.replace(prompt_id=jnp.arange(16, dtype=jnp.int32))
        return np.asarray(hps.select(jax.random.key(0), batch, gamma=1.0).scores[:, 1])

    for by_slot, same in ((False, True), (True, False)):
        assert np.array_equal(picked(moved, by_slot), picked(batch, by_slot)[order]) == same
