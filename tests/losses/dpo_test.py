"""The loss and the metrics of pairs against NumPy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from alignjax.losses import dpo
from alignjax.testing import loss_inputs
from tests.losses import checks


class Golden(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters((0.1, 0.0), (0.5, 0.0), (0.25, 0.1))
    def test_formula(self, beta, smoothing):
        rng = np.random.default_rng(0)
        policy, reference = rng.uniform(-60, 0, (2, 32, 2))

        losses, metrics = self.variant(
            lambda *x: dpo.loss(*x, beta=beta, label_smoothing=smoothing)
        )(*loss_inputs(policy, reference))

        reward = beta * (policy - reference)
        probability = 1 / (1 + np.exp(-(reward[:, 0] - reward[:, 1])))
        expected = -(1 - smoothing) * np.log(probability) - smoothing * np.log(1 - probability)
        np.testing.assert_allclose(losses, expected, rtol=2e-5, atol=1e-6)
        wanted = {
            "rewards/chosen": reward[:, 0],
            "rewards/rejected": reward[:, 1],
            "rewards/margins": reward[:, 0] - reward[:, 1],
            "rewards/accuracies": (reward[:, 0] > reward[:, 1]).astype(float),
            "logps/chosen": policy[:, 0],
            "logps/rejected": policy[:, 1],
        }
        assert metrics.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5)
        assert 0 < metrics["rewards/accuracies"].mean() < 1


def test_policy_equal_to_reference_gives_log_2_and_a_tie_is_wrong():
    logps, batch = checks.make(2)
    losses, metrics = dpo.loss(logps.replace(policy=logps.reference), batch)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(metrics["rewards/accuracies"], 0.0)


def test_the_partition_function_cancels():
    """What depends on the prompt alone changes the rewards and not the loss."""
    logps, batch = checks.make(2)
    shift = jnp.arange(checks.B, dtype=jnp.float32)[:, None]
    moved, metrics = dpo.loss(logps.replace(policy=logps.policy - shift), batch)
    still, before = dpo.loss(logps, batch)
    np.testing.assert_allclose(moved, still, rtol=1e-5)
    assert not np.allclose(metrics["rewards/chosen"], before["rewards/chosen"])


def test_beta_and_smoothing_may_be_traced():
    case = checks.make(2)
    traced = jax.jit(lambda b, e: dpo.loss(*case, beta=b, label_smoothing=e)[0])(0.3, 0.2)
    np.testing.assert_allclose(traced, dpo.loss(*case, beta=0.3, label_smoothing=0.2)[0], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_other_than_pairs_is_refused_with_advice(k):
    with pytest.raises(ValueError, match=rf"dpo\.loss compares 2 .* K={k}: set `select`"):
        dpo.loss(*loss_inputs(np.zeros((2, k)), np.zeros((2, k))))


def test_a_run_without_reference_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"reference\.mode"):
        dpo.loss(*loss_inputs(np.zeros((2, 2))))
