"""Attention against loops in NumPy float64, and the rotary frequencies against their definition."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from alignjax.models.attention import attend, rope_frequencies, rotate
from alignjax.models.config import RopeScaling


def attend_by_loops(query, key, value, mask, shared_key, shared_value, shared_mask):
    """Softmax attention, one query at a time: own tokens and the shared prefix in one list."""
    b, k, t, h, d = query.shape
    group = h // key.shape[3]
    out = np.zeros(query.shape)
    for i, j, q, head in np.ndindex(b, k, t, h):
        g = head // group
        keys = [key[i, j, s, g] for s in range(key.shape[2]) if mask[q, s]]
        values = [value[i, j, s, g] for s in range(key.shape[2]) if mask[q, s]]
        if shared_key is not None:
            seen = np.flatnonzero(shared_mask[i])
            keys = [shared_key[i, s, g] for s in seen] + keys
            values = [shared_value[i, s, g] for s in seen] + values
        scores = np.array([query[i, j, q, head] @ x for x in keys]) / math.sqrt(d)
        weight = np.exp(scores - scores.max())
        out[i, j, q, head] = (weight / weight.sum()) @ np.array(values)
    return out


def inputs(groups, shared, *, scale=1.0, seed=0):
    b, k, t, h, d, p = 2, 3, 4, 4, 6, 5
    rng = np.random.default_rng(seed)
    query = scale * rng.normal(size=(b, k, t, h, d))
    key, value = rng.normal(size=(2, b, k, t, groups, d))
    prefix = [*rng.normal(size=(2, b, p, groups, d)), np.array([[0] * 4 + [1], [1] * 5], bool)]
    arrays = [query, key, value, np.tril(np.ones((t, t), bool)), *prefix]
    return arrays if shared else [*arrays[:4], None, None, None]


def call(query, key, value, mask, shared_key, shared_value, shared_mask):
    return attend(
        query,
        key,
        value,
        mask,
        shared_key=shared_key,
        shared_value=shared_value,
        shared_mask=shared_mask,
    )


class AttendTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(groups=(1, 2, 4), shared=(False, True))
    def test_equals_the_loops(self, groups, shared):
        arrays = inputs(groups, shared)
        single = [None if x is None else jnp.asarray(x) for x in arrays]
        out = self.variant(call)(*single)
        chex.assert_shape(out, (2, 3, 4, 4, 6))
        chex.assert_type(out, jnp.float32)
        np.testing.assert_allclose(out, attend_by_loops(*arrays), atol=2e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_large_scores_stay_finite(self):
        arrays = inputs(2, True, scale=1e4)
        single = [jnp.asarray(x) for x in arrays]
        out = self.variant(call)(*single)
        np.testing.assert_allclose(out, attend_by_loops(*arrays), atol=1e-4)
        grads = jax.grad(lambda q: call(q, *single[1:]).sum())(single[0])
        chex.assert_tree_all_finite(grads)


def test_a_mask_of_each_sequence_equals_the_same_mask_for_all():
    query, key, value, mask, *_ = (jnp.asarray(x) for x in inputs(2, False)[:4])
    each = jnp.broadcast_to(mask, (2, 3, *mask.shape))
    np.testing.assert_array_equal(attend(query, key, value, mask), attend(query, key, value, each))


def test_a_query_that_sees_nothing_gives_numbers_and_a_finite_gradient():
    query, key, value, mask, *_ = (jnp.asarray(x) for x in inputs(2, False)[:4])

    def total(value):
        return attend(query, key, value, jnp.zeros_like(mask)).sum()

    chex.assert_tree_all_finite(jax.value_and_grad(total)(value))


def test_bfloat16_inputs_keep_float32_scores():
    """1000 + 1 in bfloat16 is 1000: scores rounded to the input type would tie."""
    d = 4
    query = jnp.full((1, 1, 1, 1, d), 1.0, jnp.bfloat16)
    key = jnp.zeros((1, 1, 2, 1, d), jnp.bfloat16).at[0, 0, :, 0, 0].set(2000.0)
    key = key.at[0, 0, 1, 0, 1].set(2.0)  # scores 1000 and 1001
    value = jnp.zeros((1, 1, 2, 1, d), jnp.bfloat16).at[0, 0, 1].set(1.0)
    mask = jnp.ones((1, 2), bool)
    wanted = 1 / (1 + math.exp(-1))

    second_weight = attend(query, key, value, mask)[0, 0, 0, 0, 0]
    assert float(second_weight) == pytest.approx(wanted, abs=2**-8)


def frequencies_by_definition(head_dim, theta, scaling):
    """Llama 3's rule, dimension by dimension, over wavelengths in tokens."""
    out = []
    for i in range(head_dim // 2):
        frequency = theta ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / frequency
        if scaling is not None and scaling.kind == "linear":
            out.append(frequency / scaling.factor)
        elif scaling is None or wavelength < scaling.original_length / scaling.high_freq_factor:
            out.append(frequency)
        elif wavelength > scaling.original_length / scaling.low_freq_factor:
            out.append(frequency / scaling.factor)
        else:
            smooth = (scaling.original_length / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            out.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(out)


@pytest.mark.parametrize(
    ("head_dim", "theta", "scaling"),
    [
        (8, 10000.0, None),
        (128, 500000.0, RopeScaling()),
        (64, 500000.0, RopeScaling(factor=32.0, high_freq_factor=4.0, original_length=8192)),
        (16, 10000.0, RopeScaling(factor=4.0, low_freq_factor=2.0, original_length=64)),
    ],
)
def test_rope_frequencies_by_definition(head_dim, theta, scaling):
    wanted = frequencies_by_definition(head_dim, theta, scaling)
    found = rope_frequencies(head_dim, theta, scaling)
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    if scaling is not None:  # all three bands are there, else the rule is not tested
        ratio = wanted / frequencies_by_definition(head_dim, theta, None)
        kept, slowed = np.isclose(ratio, 1), np.isclose(ratio, 1 / scaling.factor)
        assert kept.any()
        assert slowed.any()
        assert (~kept & ~slowed).any()


def test_rotation_is_by_the_angle_and_pairs_the_halves():
    x = np.random.default_rng(0).normal(size=(2, 3, 1, 6))
    angle = np.random.default_rng(1).uniform(0, 7, (2, 3, 3))
    complex_x = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angle)[:, :, None, :]
    wanted = np.concatenate([complex_x.real, complex_x.imag], axis=-1)
    found = rotate(jnp.asarray(x), jnp.asarray(angle))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_scores_depend_on_the_distance_of_positions_only():
    frequency = rope_frequencies(8, 10000.0, None)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 8))

    def score(at, other):
        return (rotate(q, at * frequency) * rotate(k, other * frequency)).sum()

    np.testing.assert_allclose(score(9.0, 4.0), score(25.0, 20.0), rtol=1e-5)
    assert abs(score(9.0, 4.0) - score(9.0, 5.0)) > 1e-3
