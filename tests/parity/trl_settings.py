"""Writes what TRL 1.16's own code gives for every loss setting that it documents: JSON to argv[1].

Run by `losses_test.py` under ``make test-parity``, in the environment of `requirements.txt`. The
"models" are those of `trl_values.py`, in float64. The alpha divergence, which TRL computes in
float32, sees numbers that float32 holds exactly. Each pair is a batch of its own, save for AOT,
which sorts a batch.
"""

import json
import sys
import warnings
from types import SimpleNamespace

import torch
import trl_values as base
from accelerate import Accelerator
from trl.trainer.callbacks import SyncRefModelCallback
from trl_values import PAIRS, POLICY, REFERENCE, SINGLES, Unigram, padded

DIVERGING = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
SMOOTHED = {"robust": 0.2, "exo_pair": 1e-3}
GOLD = [[4, 4], [1, 2, 1], [4], [3, 4, 1, 1]]  # the gold response of each pair, for TPO
SCORES = [[1.5, -0.5], [0.2, 0.9], [-2.0, 0.3], [0.1, 0.0]]  # of a reward model
MARGINS = [0.5, 0.0, 1.0, 0.25]


def rounded(model):
    """The same distribution, near enough, in float32 numbers whose sums are exact."""
    coarse = Unigram("policy")
    coarse.log_p = (torch.round(model.log_p * 1024) / 1024).float()
    return coarse


def dpo(
    types,
    *,
    weights=None,
    smoothing=0.0,
    divergence="reverse_kl",
    whole=False,
    ld_alpha=None,
    weighting=False,
):
    """The values of ``DPOTrainer._compute_loss``, one pair at a time or all in a batch."""
    from trl import DPOTrainer

    exact = divergence == "alpha_divergence"
    policy, reference = (rounded(m) if exact else m for m in (POLICY, REFERENCE))
    fake = base.trainer(
        loss_types=types,
        loss_weights=weights or [1.0] * len(types),
        label_smoothing=smoothing,
        ld_alpha=ld_alpha,
        precompute_ref_logps=False,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=0.4,
        use_weighting=weighting,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
    )
    fake.model, fake.ref_model = policy, reference
    batches = [[c for c, _ in PAIRS] + [r for _, r in PAIRS]] if whole else PAIRS
    values = []
    for batch in batches:
        ids, attention, completion = padded(batch)
        inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
        values.append(DPOTrainer._compute_loss(fake, policy, inputs, False).item())
    return values


def tpo(loss_type, smoothing=0.0):
    """The values of ``TPOTrainer._compute_loss``; a row is chosen, rejected and gold."""
    from trl.experimental.tpo import TPOTrainer

    fake = base.trainer(
        loss_type=loss_type, label_smoothing=smoothing, tpo_alpha=0.7, tpo_l_gamma=0.5
    )
    values = []
    for pair, gold in zip(PAIRS, GOLD, strict=True):
        ids, attention, completion = padded([*pair, gold])
        inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
        values.append(TPOTrainer._compute_loss(fake, POLICY, inputs, False).item())
    return values


def reward(*, margin=False, center=None):
    """The values of ``RewardTrainer.compute_loss`` on given scores."""
    from trl import RewardTrainer

    fake = base.trainer(args=SimpleNamespace(center_rewards_coefficient=center))
    fake.model = SimpleNamespace(training=True)
    values = []
    for scores, wanted in zip(SCORES, MARGINS, strict=True):
        logits = torch.tensor(scores, dtype=torch.float64)[:, None]
        inputs = {"attention_mask": torch.ones(2, 3)}
        if margin:
            inputs["margin"] = torch.tensor([wanted], dtype=torch.float64)

        def model(logits=logits, **_):
            return SimpleNamespace(logits=logits)

        values.append(RewardTrainer.compute_loss(fake, model, inputs).item())
    return values


def kto(loss_type):
    """``KTOTrainer._compute_loss``, the mean over one batch."""
    from trl import KTOTrainer

    mismatched = [[4, 1], [1], [4], [1, 4], [3]]
    fake = base.trainer(
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=False,
        desirable_weight=1.2,
        undesirable_weight=0.8,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    if loss_type == "kto":
        fake._compute_kl_logps = KTOTrainer._compute_kl_logps.__get__(fake)
    else:
        fake._compute_kl_logps = lambda *_: None
    ids, attention, completion = padded([tokens for tokens, _ in SINGLES])
    inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
    kl_ids, kl_attention, kl_completion = padded(mismatched)
    inputs |= dict(KL_input_ids=kl_ids, KL_attention_mask=kl_attention)
    inputs |= dict(KL_completion_mask=kl_completion, label=torch.tensor([d for _, d in SINGLES]))
    return [KTOTrainer._compute_loss(fake, POLICY, inputs, False).item()]


def cpo(loss_type, *, nll=0.7, smoothing=0.0, alpha=0.0):
    """The values of ``CPOTrainer``, whose "alphapo" is "simpo" without imitation."""
    return base.reference_free(
        "cpo",
        loss_type="simpo" if loss_type == "alphapo" else loss_type,
        simpo_gamma=0.4,
        cpo_alpha=0.0 if loss_type == "alphapo" else nll,
        label_smoothing=smoothing,
        alpha=alpha,
    )["values"]


def settings():
    """Maps the name of each setting to its values."""
    types = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard apo_zero apo_down"
    found = {
        f"dpo {name}": dpo([name], smoothing=SMOOTHED.get(name, 0.0))
        for name in (*types.split(), "discopop", "sft", "sigmoid_norm")
    }
    for name in ("aot", "aot_unpaired"):
        found[f"dpo {name}"] = dpo([name], whole=True)
        found[f"dpo {name} smoothed"] = dpo([name], smoothing=0.1, whole=True)
    for kind in ("forward_kl", "js_divergence", "alpha_divergence"):
        for name in DIVERGING:
            rate = SMOOTHED.get(name, 0.0)
            found[f"dpo {name} {kind}"] = dpo([name], smoothing=rate, divergence=kind)
    for name in (*types.split(), "discopop", "sigmoid_norm"):
        rate = SMOOTHED.get(name, 0.0)
        found[f"dpo {name} ld_alpha"] = dpo([name], smoothing=rate, ld_alpha=0.3)
        found[f"dpo {name} use_weighting"] = dpo([name], smoothing=rate, weighting=True)
    for name in ("aot", "aot_unpaired"):  # TRL weighs neither
        found[f"dpo {name} ld_alpha"] = dpo([name], whole=True, ld_alpha=0.3)
    found["dpo rpo"] = dpo(["sigmoid", "sft"], weights=[1.0, 0.7])
    found["dpo mpo"] = dpo(["sigmoid", "bco_pair", "sft"], weights=[0.8, 0.2, 1.0])
    for name in ("kto", "apo_zero_unpaired"):
        found[f"kto {name}"] = kto(name)
    for name in ("sigmoid", "hinge", "ipo", "simpo"):
        found[f"cpo {name}"] = cpo(name, nll=0.0 if name == "simpo" else 0.7)
    for name in ("sigmoid", "simpo"):
        found[f"cpo {name} smoothed"] = cpo(name, smoothing=0.1)
    for name in ("sigmoid", "hinge", "ipo", "alphapo"):
        found[f"cpo {name} alpha"] = cpo(name, alpha=0.25)
    found["cpo cpo-simpo"] = cpo("simpo")
    found["orpo"] = base.reference_free("orpo")["values"]
    for name in ("sigmoid", "hinge", "ipo", "tpo-l"):
        found[f"tpo {name}"] = tpo(name)
    for name in ("sigmoid", "tpo-l"):
        found[f"tpo {name} smoothed"] = tpo(name, 0.1)
    found["reward"] = reward()
    found["reward margin"] = reward(margin=True)
    found["reward centred"] = reward(center=0.01)
    return found


def tails(model):
    """Log-probabilities of what each response has beyond the shorter one of its pair."""
    return [model.sums([r[min(map(len, pair)) :] for r in pair]) for pair in PAIRS]


def followed():
    """A policy after each of six steps, and the reference that TRL's callback makes of it."""
    policy, reference = (torch.nn.Linear(3, 1, bias=False).double() for _ in range(2))
    Accelerator(cpu=True)  # the callback asks what it sets up
    callback = SyncRefModelCallback(reference, None)
    args = SimpleNamespace(ref_model_sync_steps=2, ref_model_mixup_alpha=0.6)
    kept = {"start": reference.weight[0].tolist(), "policy": [], "reference": []}
    for step in range(1, 7):
        with torch.no_grad():
            policy.weight.copy_(torch.tensor([[0.1 * step, step**2, -1.0 / step]]))
        callback.on_step_end(args, SimpleNamespace(global_step=step), None, model=policy)
        kept["policy"].append(policy.weight[0].tolist())
        kept["reference"].append(reference.weight[0].tolist())
    return kept


def main():
    """Writes the settings and the numbers that they were run on."""
    coarse = {"policy": rounded(POLICY), "reference": rounded(REFERENCE)}
    written = {
        "trl": base.trl.__version__,
        "values": settings(),
        "pairs": {
            "policy": [POLICY.sums(p) for p in PAIRS],
            "reference": [REFERENCE.sums(p) for p in PAIRS],
            "length": [[len(r) for r in p] for p in PAIRS],
        },
        "parts": {
            "policy_tail": tails(POLICY),
            "reference_tail": tails(REFERENCE),
            "log_squares": [
                [len(r) * torch.logsumexp(2 * POLICY.log_p, 0).item() for r in p] for p in PAIRS
            ],
        },
        "exact": {name: [m.sums(p) for p in PAIRS] for name, m in coarse.items()},
        "gold": {"policy": POLICY.sums(GOLD), "length": [len(r) for r in GOLD]},
        "singles": base.numbers([t for t, _ in SINGLES]) | {"desirable": [d for _, d in SINGLES]},
        "mismatched": [
            p - r
            for p, r in zip(
                *(m.sums([[4, 1], [1], [4], [1, 4], [3]]) for m in (POLICY, REFERENCE)),
                strict=True,
            )
        ],
        "followed": followed(),
        "scores": SCORES,
        "margins": MARGINS,
    }
    with open(sys.argv[1], "w") as file:
        json.dump(written, file)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
