"""What is done to logits, against loops over single rows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import stats

from alignjax.sampling.logits import invert_sum, keep_likely, penalise, pick, seen_in


def keep_by_loops(logits, top_k=0, top_p=1.0, min_p=0.0):
    """Which ids may be drawn: what each setting leaves is what the next one looks at."""
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        weight = np.where(kept, np.exp(logits - logits.max()), 0.0)
        probability = weight / weight.sum()
        mass, edge = 0.0, np.inf
        for i in np.argsort(-logits):
            if mass >= top_p:
                break
            mass, edge = mass + probability[i], logits[i]
        kept &= logits >= edge
    weight = np.where(kept, np.exp(logits - logits.max()), 0.0)
    probability = weight / weight.sum()
    return kept & (probability >= min_p * probability.max())


class KeepTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(top_k=(0, 1, 5, 99), top_p=(1.0, 0.7, 1e-6), min_p=(0.0, 0.3))
    def test_equals_the_loops(self, top_k, top_p, min_p):
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 2, (4, 3, 16)).astype(np.float32)
        logits[0, 0] = rng.integers(0, 4, 16)  # ties
        logits[0, 1] = 1.0  # nothing but ties
        run = self.variant(functools.partial(keep_likely, top_k=top_k, top_p=top_p, min_p=min_p))
        found = np.asarray(run(jnp.asarray(logits)))
        for row, out in zip(logits.reshape(-1, 16), found.reshape(-1, 16), strict=True):
            kept = keep_by_loops(row.astype(np.float64), top_k, top_p, min_p)
            np.testing.assert_array_equal(out[kept], row[kept])
            assert kept.any()
            assert (out[~kept] < -1e38).all()


def test_ids_of_a_prompt_are_seen_and_its_padding_is_not():
    ids = np.array([[9, 9, 2, 5], [1, 2, 3, 2], [7, 7, 7, 7]], np.int32)
    seen = np.asarray(seen_in(ids, np.array([2, 4, 0]), 8))
    assert [np.flatnonzero(row).tolist() for row in seen] == [[2, 5], [1, 2, 3], []]


def test_the_penalty_makes_what_was_seen_less_likely():
    logits, seen = np.array([2.0, 2.0, -1.0, -1.0, 0.0]), np.array([1, 0, 1, 0, 1], bool)
    wanted = [1.6, 2.0, -1.25, -1.0, 0.0]
    np.testing.assert_allclose(penalise(jnp.asarray(logits), seen, 1.25), wanted, rtol=1e-6)


@pytest.mark.parametrize("vocab", [1, 40, 256, 300, 600])
def test_frequencies_of_draws_are_those_of_the_softmax(vocab):
    """20,000 draws, chi-square, fixed seed, five sizes at 0.01 in all; blocks whole and in part."""
    logits = 2 * jax.random.normal(jax.random.key(vocab), (vocab,))
    keys = jax.random.split(jax.random.key(1), 20_000)
    found = np.asarray(jax.jit(jax.vmap(pick, in_axes=(0, None)))(keys, logits))
    wanted = 20_000 * np.asarray(jax.nn.softmax(logits), np.float64)
    counts = np.bincount(found, minlength=vocab)
    assert len(counts) == vocab

    def p_value(wanted):
        cells = np.where(wanted < 10, 0, 1 + np.arange(vocab))  # those that are rare in one cell
        grouped = [np.bincount(cells, x)[np.unique(cells)] for x in (counts, wanted)]
        return stats.chisquare(grouped[0], grouped[1] * 20_000 / grouped[1].sum()).pvalue

    if vocab > 1:
        assert p_value(wanted) > 0.01 / 5
        assert p_value(wanted**0.9) < 1e-4  # another temperature is noticed


def test_an_id_of_probability_0_is_never_drawn():
    logits = 3 * jax.random.normal(jax.random.key(0), (2000, 300))
    logits = keep_likely(logits, top_k=30)
    found = jax.jit(jax.vmap(pick))(jax.random.split(jax.random.key(1), 2000), logits)
    drawn = np.take_along_axis(np.asarray(logits), np.asarray(found)[:, None], axis=1)
    assert (drawn > -1e30).all()
    assert len(np.unique(found)) > 200


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-23])
def test_the_ends_of_the_uniform_draw_ids_that_are_possible(uniform):
    chances = jnp.array([0.0, 1.0, 0.0, 2.5, 1e-9, 0.0])
    assert chances[invert_sum(chances, jnp.float32(uniform))] > 0
