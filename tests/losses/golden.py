"""Losses, metrics and gradients against a formula in NumPy float64."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from alignjax.testing import loss_inputs
from alignjax.types import Loss
from tests.losses import checks

# The loss of one row, alone or with metrics; the row has the names of `loss_inputs`, and `index`.
Formula = Callable[[SimpleNamespace], Any]


def rows(k: int, b: int = 8, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Policy and reference in nats, lengths and scores, each ``[b, k]``; and what else is given."""
    rng = np.random.default_rng(seed)
    policy, reference = rng.uniform(-30, 0, (2, b, k))
    return {
        "policy": policy,
        "reference": reference,
        "length": rng.integers(1, 20, (b, k)),
        "scores": rng.normal(size=(b, k)),
        **more,
    }


def check(loss: Loss, formula: Formula, case: dict[str, Any]) -> None:
    """``[B]`` losses and metrics to 1e-9, and the gradient against differences of the formula."""
    b, k = case["policy"].shape
    reference = 0.0 if case["reference"] is None else case["reference"]

    def evaluate(policy: np.ndarray) -> tuple[np.ndarray, list[dict[str, float]]]:
        values, metrics = [], []
        for i in range(b):
            row = {name: x[i] for name, x in case.items() if np.ndim(x)} | {"policy": policy[i]}
            found = formula(SimpleNamespace(index=i, ratio=(policy - reference)[i], **row))
            value, of_row = found if isinstance(found, tuple) else (found, {})
            values.append(value)
            metrics.append(of_row)
        return np.array(values), metrics

    h = 1e-5
    moves = h * np.eye(k)
    policy = case["policy"]
    slopes = [(evaluate(policy + m)[0] - evaluate(policy - m)[0]) / (2 * h) for m in moves]
    values, metrics = evaluate(policy)
    with jax.enable_x64(True):
        found = checks.compiled(loss)(*loss_inputs(**case))
        np.testing.assert_allclose(found.losses, values, rtol=1e-9, atol=1e-12)
        gradient = np.asarray(found.gradient) * b
        np.testing.assert_allclose(gradient, np.stack(slopes, axis=1), rtol=1e-6, atol=1e-7)
        for name in metrics[0]:
            wanted = [of_row[name] for of_row in metrics]
            np.testing.assert_allclose(
                found.metrics[name], wanted, rtol=1e-9, atol=1e-12, err_msg=name
            )
    assert np.abs(gradient).max() > 1e-3
