"""Every loss setting that TRL 1.16 documents, as its own code gives it: ``make test-parity``.

`OURS` is the table from TRL's settings to losses here. `LEFT_OUT` says which have no counterpart.
"""

import json
from functools import partial

import jax
import numpy as np
import optax
import pytest

from alignjax.config import FollowConfig
from alignjax.losses import (
    alphapo,
    anchored,
    aot,
    bco,
    bradley_terry,
    cpo,
    discopop,
    dpo,
    exo,
    f_dpo,
    ipo,
    kto,
    ld_dpo,
    mixed,
    nca,
    orpo,
    robust_dpo,
    rpo,
    sft,
    simpo,
    slic,
    sppo,
    tpo,
    wpo,
)
from alignjax.testing import loss_inputs
from alignjax.training import step as step_module
from tests.parity.live import PYTHON, ask

LEFT_OUT = {
    "online_dpo sigmoid, ipo": "inside a method that samples; the formulas are dpo's",
    "grpo, rloo, a2po, gmpo": "ratios of each token",
    "sft, gkd, gold, distillation and its variants": "distributions of each token, or a teacher",
}
HYPER = dict(beta=0.3)
SIMPO = dict(beta=0.3, gamma_beta_ratio=0.4 / 0.3)
TOKENS = ipo.implicit_mean
SHORT = partial(ld_dpo.weighted, alpha=0.3)
DIVERGENCES = {
    "forward_kl": f_dpo.forward_kl,
    "js_divergence": f_dpo.jensen_shannon,
    "alpha_divergence": partial(f_dpo.alpha, alpha=0.6),  # TRL's coefficient 0.4
}


def of_reward(implicit):
    """TRL's eight losses that take an f-divergence, with ours."""
    whole = dict(HYPER, implicit=implicit)
    per_token = dict(HYPER, implicit=partial(TOKENS, of=implicit))
    return {
        "sigmoid": partial(dpo.loss, **whole),
        "sigmoid_norm": partial(dpo.loss, **per_token),
        "hinge": partial(slic.loss_hinge, **whole),
        "ipo": partial(ipo.loss, **per_token),
        "exo_pair": partial(exo.loss, label_smoothing=1e-3, **whole),
        "robust": partial(robust_dpo.loss, flip_rate=0.2, **whole),
        "discopop": partial(discopop.loss, temperature=0.05, **whole),
        "sft": sft.loss_chosen,
    }


def imitating(loss):
    return partial(mixed.loss, losses=(loss, sft.loss_chosen), weights=(1.0, 0.7))


def triple(compare):
    return partial(tpo.loss, nll_weight=0.7, compare=compare)


def reward(**hyper):
    return partial(bradley_terry.reward_loss, **hyper)


def weighed():
    """TRL's losses of pairs that it weighs by ``ld_alpha`` or ``use_weighting``, with ours."""
    other = {
        "nca_pair": partial(nca.loss, **HYPER),
        "bco_pair": partial(bco.loss_pairs, **HYPER),
        "sppo_hard": partial(sppo.loss, **HYPER),
        "apo_zero": partial(anchored.loss, **HYPER),
        "apo_down": partial(anchored.loss_down, **HYPER),
    }
    return {name: x for name, x in of_reward(dpo.implicit).items() if name != "sft"} | other


BARE = dict(HYPER, implicit=cpo.implicit)
POWER = dict(HYPER, implicit=partial(alphapo.implicit, alpha=0.25, of=cpo.implicit))
POWER_TOKENS = partial(alphapo.implicit, alpha=0.25)
OURS = {
    **{f"dpo {name}": loss for name, loss in of_reward(dpo.implicit).items()},
    **{
        f"dpo {name} {kind}": loss
        for kind, implicit in DIVERGENCES.items()
        for name, loss in of_reward(implicit).items()
    },
    **{f"dpo {name} ld_alpha": partial(SHORT, loss=loss) for name, loss in weighed().items()},
    **{
        f"dpo {name} use_weighting": partial(wpo.weighted, loss=loss)
        for name, loss in weighed().items()
    },
    "dpo sigmoid ld_alpha": partial(ld_dpo.loss, alpha=0.3, **HYPER),
    "dpo sigmoid_norm ld_alpha": partial(ld_dpo.loss, alpha=0.3, implicit=TOKENS, **HYPER),
    "dpo sigmoid use_weighting": partial(wpo.loss, **HYPER),
    "dpo sigmoid_norm use_weighting": partial(wpo.loss, implicit=TOKENS, **HYPER),
    "dpo aot ld_alpha": partial(SHORT, loss=partial(aot.loss, **HYPER)),
    "dpo aot_unpaired ld_alpha": partial(SHORT, loss=partial(aot.loss_unpaired, **HYPER)),
    "dpo nca_pair": partial(nca.loss, **HYPER),
    "dpo bco_pair": partial(bco.loss_pairs, **HYPER),
    "dpo sppo_hard": partial(sppo.loss, **HYPER),
    "dpo apo_zero": partial(anchored.loss, **HYPER),
    "dpo apo_down": partial(anchored.loss_down, **HYPER),
    "dpo aot": partial(aot.loss, **HYPER),
    "dpo aot smoothed": partial(aot.loss, label_smoothing=0.1, **HYPER),
    "dpo aot_unpaired": partial(aot.loss_unpaired, **HYPER),
    "dpo aot_unpaired smoothed": partial(aot.loss_unpaired, label_smoothing=0.1, **HYPER),
    "dpo rpo": partial(rpo.loss, nll_weight=0.7, **HYPER),
    "dpo mpo": partial(
        mixed.loss,
        losses=(partial(dpo.loss, **HYPER), partial(bco.loss_pairs, **HYPER), sft.loss_chosen),
    ),
    "kto kto": partial(kto.loss, desirable_weight=1.2, undesirable_weight=0.8, **HYPER),
    "kto apo_zero_unpaired": partial(
        anchored.loss_unpaired, desirable_weight=1.2, undesirable_weight=0.8, **HYPER
    ),
    "cpo sigmoid": partial(cpo.loss, nll_weight=0.7, **HYPER),
    "cpo sigmoid smoothed": partial(cpo.loss, nll_weight=0.7, label_smoothing=0.1, **HYPER),
    "cpo hinge": imitating(partial(slic.loss_hinge, **BARE)),
    "cpo ipo": imitating(partial(ipo.loss, beta=0.3, implicit=simpo.implicit)),
    "cpo simpo": partial(simpo.loss, **SIMPO),
    "cpo simpo smoothed": partial(cpo.loss_simpo, nll_weight=0.7, label_smoothing=0.1, **SIMPO),
    "cpo cpo-simpo": partial(cpo.loss_simpo, nll_weight=0.7, **SIMPO),
    "cpo sigmoid alpha": imitating(partial(dpo.loss, **POWER)),
    "cpo hinge alpha": imitating(partial(slic.loss_hinge, **POWER)),
    "cpo ipo alpha": imitating(partial(ipo.loss, beta=0.3, implicit=POWER_TOKENS)),
    "cpo alphapo alpha": partial(alphapo.loss, implicit=POWER_TOKENS, **SIMPO),
    "orpo": partial(orpo.loss, odds_weight=0.3),
    "tpo sigmoid": triple(partial(dpo.loss, **BARE)),
    "tpo sigmoid smoothed": triple(partial(dpo.loss, label_smoothing=0.1, **BARE)),
    "tpo hinge": triple(partial(slic.loss_hinge, **BARE)),
    "tpo ipo": triple(partial(ipo.loss, beta=0.3, implicit=simpo.implicit)),
    "tpo tpo-l": triple(partial(simpo.loss, beta=0.3, gamma_beta_ratio=0.5 / 0.3)),
    "tpo tpo-l smoothed": triple(
        partial(simpo.loss, beta=0.3, gamma_beta_ratio=0.5 / 0.3, label_smoothing=0.1)
    ),
    "reward": reward(),
    "reward margin": reward(score_margin=1.0),
    "reward centred": reward(center_weight=0.01),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    if not PYTHON:
        pytest.skip("needs torch and TRL in another Python: make test-parity")
    path = tmp_path_factory.mktemp("trl") / "settings.json"
    ask(path, program="trl_settings.py")
    return json.loads(path.read_text())


def ours(name, recorded):
    """The losses of the rows that TRL was run on."""
    if name.startswith("reward"):
        scores, margins = np.array(recorded["scores"]), np.array(recorded["margins"])
        # The margin of a pair is the difference of its external scores; 0 would be no pair.
        external = np.stack([margins if name == "reward margin" else 1 + margins, 0 * margins], 1)
        external[margins == 0, 0] += 1e-12
        _, batch = loss_inputs(scores, scores=external)
        return OURS[name](jax.numpy.asarray(scores), batch)[0]
    if name.startswith("kto"):
        rows = {key: np.array(value)[:, None] for key, value in recorded["singles"].items()}
        losses, _ = OURS[name](*loss_inputs(**rows, baseline=np.mean(recorded["mismatched"])))
        return losses.mean(keepdims=True)
    whole = recorded["pairs"] | recorded["parts"]
    rows = {key: np.array(value) for key, value in whole.items()}
    if name.endswith("alpha_divergence"):
        rows |= {key: np.array(value) for key, value in recorded["exact"].items()}
    if name.startswith("tpo"):
        gold = {key: np.array(value)[:, None] for key, value in recorded["gold"].items()}
        rows = {key: np.concatenate([rows[key], gold[key]], axis=1) for key in gold}
        rows["scores"] = np.tile([1.0, 0.0, 2.0], (len(rows["policy"]), 1))
    losses, _ = OURS[name](*loss_inputs(**rows))
    return losses.mean(keepdims=True) if "aot" in name else losses


def test_every_setting_of_trl_is_one_of_ours(recorded, capsys):
    values = recorded["values"]
    assert OURS.keys() == values.keys()
    assert recorded["trl"] == "1.16.0"
    with jax.enable_x64(True):
        for name in OURS:
            # TRL computes the alpha divergence in float32: a small square is a difference of two.
            atol = 1e-7 if name.endswith("alpha_divergence") else 1e-9
            np.testing.assert_allclose(
                ours(name, recorded), values[name], rtol=1e-6, atol=atol, err_msg=name
            )
    with capsys.disabled():
        print(f"\n{len(OURS)} settings of TRL {recorded['trl']} equal, per example to 1e-6")
        for name, reason in LEFT_OUT.items():
            print(f"left out: {name}: {reason}")


def test_a_reference_follows_as_trl_s_does(recorded):
    """TR-DPO: TRL's ``sync_ref_model``, whose callback is told of each step."""
    follow, kept = FollowConfig(every=2, alpha=0.6), recorded["followed"]
    with jax.enable_x64(True):
        reference = np.array(kept["start"])
        for step, policy in enumerate(kept["policy"], start=1):
            state = step_module.init_state({"w": np.array(policy)}, optax.identity(), None)
            state = state.replace(step=np.int32(step), reference={"w": reference})
            reference = step_module._followed(state, follow)["w"]
            np.testing.assert_allclose(reference, kept["reference"][step - 1], rtol=1e-12)
    assert kept["reference"][0] == kept["start"]
