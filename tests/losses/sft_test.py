"""The loss against NumPy, and what select leaves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from alignjax.losses import sft
from alignjax.testing import loss_inputs
from tests.losses import checks


class Golden(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_mean_over_the_responses_present(self):
        rng = np.random.default_rng(0)
        length = rng.integers(1, 9, (6, 3))
        length[0, 2] = length[1, 1] = length[2, :] = 0
        policy = np.where(length > 0, -rng.uniform(1, 30, (6, 3)), 0.0)

        losses, metrics = self.variant(sft.loss)(*loss_inputs(policy, length=length))

        for b in range(6):
            present = [k for k in range(3) if length[b, k] > 0]
            nll = sum(-policy[b, k] for k in present)
            expected = nll / len(present) if present else 0.0
            per_token = nll / length[b].sum() if present else 0.0
            np.testing.assert_allclose(losses[b], expected, rtol=1e-6)
            np.testing.assert_allclose(metrics["nll"][b], expected, rtol=1e-6)
            np.testing.assert_allclose(metrics["nll_per_token"][b], per_token, rtol=1e-6)


def test_no_reference_is_needed():
    logps, batch = checks.make(2)
    without = sft.loss(logps.replace(reference=None), batch)
    chex.assert_trees_all_equal(without, sft.loss(logps, batch))


def test_minimiser_is_the_mixture_of_the_responses():
    """Exact frequencies of 3 responses over many prompts: the minimiser has these frequencies."""
    counts = np.array([1, 4, 5])

    @jax.jit
    @jax.grad
    def gradient(logits):
        policy = jnp.repeat(jax.nn.log_softmax(logits), counts, total_repeat_length=10)
        return sft.loss(*loss_inputs(policy[:, None]))[0].mean()

    logits = jnp.zeros(3)
    for _ in range(400):
        logits = logits - 0.5 * gradient(logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), counts / counts.sum(), atol=1e-4)


def test_select_keeps_the_chosen_response():
    _, batch = checks.make(4)
    kept = sft.select(jax.random.key(0), batch)
    chex.assert_shape(kept.response, (checks.B, 1, batch.response.shape[2]))
    for field in ("response", "response_length", "scores", "desirable"):
        chex.assert_trees_all_equal(getattr(kept, field), getattr(batch, field)[:, :1])
    chex.assert_trees_all_equal(kept.prompt_id, batch.prompt_id)
