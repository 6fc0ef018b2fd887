"""Losses and gradients against a formula in NumPy float64."""

from collections.abc import Callable

import jax
import numpy as np

from alignjax.testing import loss_inputs
from alignjax.types import Loss
from tests.losses import checks

Formula = Callable[..., float]  # (policy, reference, length, scores), each [K] -> loss of one row


def rows(k: int, b: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """Policy and reference in nats, lengths and scores, each ``[b, k]``."""
    rng = np.random.default_rng(seed)
    policy, reference = rng.uniform(-30, 0, (2, b, k))
    return {
        "policy": policy,
        "reference": reference,
        "length": rng.integers(1, 20, (b, k)),
        "scores": rng.normal(size=(b, k)),
    }


def check(loss: Loss, formula: Formula, case: dict[str, np.ndarray]) -> None:
    """``[B]`` losses to 1e-9, and the gradient against central differences of the formula."""

    def value(policy: np.ndarray) -> np.ndarray:
        table = zip(policy, case["reference"], case["length"], case["scores"], strict=True)
        return np.array([formula(*row) for row in table])

    policy, h = case["policy"], 1e-5
    gradient = np.zeros(policy.shape)
    for k in range(policy.shape[1]):
        move = h * (np.arange(policy.shape[1]) == k)
        gradient[:, k] = (value(policy + move) - value(policy - move)) / (2 * h)
    with jax.enable_x64(True):
        found = checks.compiled(loss)(*loss_inputs(**case))
        np.testing.assert_allclose(found.losses, value(policy), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.gradient * len(policy), gradient, rtol=1e-6, atol=1e-7)
    assert np.abs(gradient).max() > 1e-3
