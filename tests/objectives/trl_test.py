"""Our losses on the numbers on which TRL's own code was run; tests/parity/trl_values.py did that.

To 1e-6, because TRL computes ORPO's odds in float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from alignjax.objectives import cpo, dpo, ipo, orpo, robust_dpo, sft, slic
from alignjax.types import loss_inputs

RECORDED = json.loads((Path(__file__).parent / "trl_values.json").read_text())
LOSSES = RECORDED["losses"]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def beta(hyper):
    return {"beta": hyper["beta"]}


# TRL's name: our loss, and our keywords for TRL's settings.
PAIRS: dict[str, tuple[Callable[..., Any], Callable[[dict[str, Any]], dict[str, float]]]] = {
    "sigmoid": (dpo.loss, beta),
    "robust": (robust_dpo.loss, lambda h: beta(h) | {"flip_rate": h["label_smoothing"]}),
    "hinge": (slic.loss_hinge, beta),
    "ipo": (ipo.loss_mean, beta),
    "cpo": (cpo.loss, lambda h: beta(h) | {"nll_weight": h["cpo_alpha"]}),
    "orpo": (orpo.loss, lambda h: {"odds_weight": h["beta"]}),
}


def ours(name, **changed):
    loss, keywords = PAIRS[name]
    case = loss_inputs(**(RECORDED["pairs"] | changed))
    return loss(*case, **keywords(LOSSES[name]["hyper"]))[0]


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    np.testing.assert_allclose(ours(name), LOSSES[name]["values"], rtol=1e-6)


@pytest.mark.parametrize("name", ["ipo", "cpo", "orpo"])
def test_lengths_are_noticed(name):
    """The recorded pairs are ragged: as if each response were one token, the values differ."""
    changed = ours(name, length=np.ones((4, 2), int))
    assert not np.allclose(changed, LOSSES[name]["values"], rtol=1e-2)


def test_supervised():
    chosen = {k: np.array(v)[:, :1] for k, v in RECORDED["pairs"].items()}
    _, metrics = sft.loss(*loss_inputs(**chosen))
    np.testing.assert_allclose(metrics["nll_per_token"], LOSSES["sft"]["values"], rtol=1e-6)
