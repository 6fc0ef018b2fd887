"""Our losses on the numbers on which TRL's own code was run; tests/parity/trl_values.py did that.

To 1e-6, because TRL computes ORPO's odds and BCO's running mean in float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from alignjax.losses import (
    bco,
    cpo,
    dpo,
    exo,
    ipo,
    kto,
    nca,
    orpo,
    robust_dpo,
    sft,
    simpo,
    slic,
    sppo,
)
from alignjax.testing import loss_inputs

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
    "exo_pair": (exo.loss, lambda h: beta(h) | {"label_smoothing": h["label_smoothing"]}),
    "nca_pair": (nca.loss, beta),
    "sppo_hard": (sppo.loss, beta),
    "simpo": (simpo.loss, lambda h: beta(h) | {"gamma_beta_ratio": h["simpo_gamma"] / h["beta"]}),
    "cpo": (cpo.loss, lambda h: beta(h) | {"nll_weight": h["cpo_alpha"]}),
    "orpo": (orpo.loss, lambda h: {"odds_weight": h["beta"]}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    loss, keywords = PAIRS[name]
    losses, _ = loss(*loss_inputs(**RECORDED["pairs"]), **keywords(LOSSES[name]["hyper"]))
    np.testing.assert_allclose(losses, LOSSES[name]["values"], rtol=1e-6)


def singles(start=0, **more):
    numbers = {k: np.array(v)[start:, None] for k, v in RECORDED["singles"].items()}
    return loss_inputs(**numbers, **more)


def test_supervised():
    chosen = {k: np.array(v)[:, :1] for k, v in RECORDED["pairs"].items()}
    _, metrics = sft.loss(*loss_inputs(**chosen))
    np.testing.assert_allclose(metrics["nll_per_token"], LOSSES["sft"]["values"], rtol=1e-6)


@pytest.mark.parametrize("name", ["kto", "kto_clamped"])
def test_kto(name):
    hyper = dict(LOSSES[name]["hyper"])
    z = np.mean(hyper.pop("mismatched_log_ratio"))
    assert (z < 0) == (name == "kto_clamped")
    losses, _ = kto.loss(*singles(baseline=z), **hyper)
    np.testing.assert_allclose([losses.mean()], LOSSES[name]["values"], rtol=1e-6)


def test_bco_without_a_shift():
    desirable = np.tile([True, False], (4, 1))
    case = loss_inputs(**RECORDED["pairs"], desirable=desirable, running_baseline=0.0)
    losses, _ = bco.loss(
        *case, **beta(LOSSES["bco_pair"]["hyper"]), reduction="batch_mean", desirable_fraction=0.6
    )
    np.testing.assert_allclose(losses, LOSSES["bco_pair"]["values"], rtol=1e-6)


def test_bco_with_the_running_mean():
    """The shift is the mean reward of all five responses, those of the earlier batch included."""
    hyper = LOSSES["bco"]["hyper"]
    logps, _ = singles()
    running = float(logps.log_ratio.mean())
    np.testing.assert_allclose(hyper["beta"] * running, hyper["delta"], rtol=1e-6)
    second = singles(2, running_baseline=running)
    losses, _ = bco.loss(*second, **beta(hyper), reduction="batch_mean", desirable_fraction=0.6)
    desirable_first = np.argsort(~np.array(RECORDED["singles"]["desirable"][2:]), kind="stable")
    np.testing.assert_allclose(losses[desirable_first], LOSSES["bco"]["values"], rtol=1e-6)


def test_every_recorded_loss_is_compared():
    assert {*PAIRS, "sft", "kto", "kto_clamped", "bco_pair", "bco"} == set(LOSSES)
