"""Writes tests/losses/trl_values.json: the losses that TRL's own code gives on fixed numbers.

No part of the test suite, which reads the file; torch and TRL are no dependencies. Two environments
outside the project's, because TRL 1.16 has no BCO trainer any more:

    python -m venv trl-new && trl-new/bin/pip install torch trl==1.16.0
    python -m venv trl-old && trl-old/bin/pip install torch trl==0.26.2 joblib
    trl-new/bin/python tests/parity/trl_values.py
    trl-old/bin/python tests/parity/trl_values.py

Each run replaces the entries that its TRL version is the source of, and leaves the others. The
file that is checked in was made with torch 2.13.0, transformers 5.23.0, on a CPU.

The "models" are distributions over 7 tokens that ignore their context, in float64, so a response's
log-probability is the sum over its tokens. TRL's trainers are not constructed: their methods run on
a namespace that holds the attributes which the methods read. Responses differ in length, and each
pair is a batch of its own, so that batch means are values of one pair.
"""

import json
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import transformers
import trl

OUT = Path(__file__).resolve().parent.parent / "losses" / "trl_values.json"
LOGITS = {
    "policy": [0.0, 1.3, -0.7, 0.4, 2.1, -1.6, 0.2],
    "reference": [0.3, 0.5, 0.1, -0.4, 1.2, -0.9, 0.8],
}
BOS = 0
PAIRS = [  # tokens of the chosen and of the rejected response
    ([4, 1, 4], [5, 2]),
    ([1], [3, 6, 2, 5, 1]),
    ([5, 2, 6, 2], [4]),
    ([3, 4, 6, 1, 1, 4], [4, 4, 1]),
]
SINGLES = [  # tokens, desirable
    ([4, 1, 4], True),
    ([3, 6, 2, 5, 1], False),
    ([5, 2], True),
    ([4, 4, 1, 6], False),
    ([1], True),
]
BETA = 0.3


class Unigram(torch.nn.Module):
    """What TRL asks of a model: log-probabilities of labels, or logits."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, name: str):
        super().__init__()
        self.log_p = torch.log_softmax(torch.tensor(LOGITS[name], dtype=torch.float64), 0)

    def forward(self, input_ids, labels=None, **_):
        logits = self.log_p.expand(*input_ids.shape, -1)
        if labels is None:
            return SimpleNamespace(logits=logits)
        real = labels[:, 1:] != -100
        taken = self.log_p[labels[:, 1:].clamp(min=0)]
        return SimpleNamespace(
            log_probs=torch.where(real, taken, 0.0),
            entropy=torch.zeros_like(taken),
            mean_logits=torch.zeros_like(taken),
            is_top1=torch.zeros_like(real),
            log_sum_sq_probs=torch.logsumexp(2 * self.log_p, 0).expand(taken.shape),
        )

    def sums(self, responses):
        return [sum(self.log_p[t].item() for t in tokens) for tokens in responses]


POLICY, REFERENCE = Unigram("policy"), Unigram("reference")
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    use_distributed=False,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    unwrap_model=lambda x: x,
)


def padded(responses):
    """``input_ids``, ``attention_mask`` and ``completion_mask``; the prompt is one BOS."""
    width = 1 + max(map(len, responses))
    ids = torch.tensor([[BOS, *r] + [0] * (width - 1 - len(r)) for r in responses])
    lengths = torch.tensor([len(r) for r in responses])[:, None]
    place = torch.arange(width)
    return ids, (place <= lengths).long(), ((place > 0) & (place <= lengths)).long()


class Metrics(dict):
    def __missing__(self, key):
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trainer(**attributes):
    return SimpleNamespace(
        model=POLICY,
        ref_model=REFERENCE,
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        beta=BETA,
        _metrics=Metrics(),
        _total_train_tokens=0,
        _tp_size=1,
        **attributes,
    )


def dpo(loss_type, label_smoothing=0.0):
    """``DPOTrainer._compute_loss``, one pair at a time."""
    from trl import DPOTrainer

    fake = trainer(
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=label_smoothing,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    values = []
    for pair in PAIRS:
        ids, attention, completion = padded(pair)
        inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
        values.append(DPOTrainer._compute_loss(fake, POLICY, inputs, False).item())
    hyper = {"beta": BETA} | ({"label_smoothing": label_smoothing} if label_smoothing else {})
    return entry("trl.DPOTrainer._compute_loss", f"loss_type={loss_type!r}", hyper, values)


def reference_free(kind, **settings):
    """``CPOTrainer`` or ``ORPOTrainer.get_batch_loss_metrics``, one pair at a time."""
    if kind == "orpo":
        from trl.experimental.orpo import ORPOTrainer as Trainer
    else:
        from trl.experimental.cpo import CPOTrainer as Trainer
    fake = trainer(is_encoder_decoder=False, pad_token_id=0, padding_value=0, **settings)
    for name in ("concatenated_inputs", "get_batch_logps"):
        setattr(fake, name, getattr(Trainer, name))
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(Trainer, name):
            setattr(fake, name, getattr(Trainer, name).__get__(fake))
    values = []
    for chosen, rejected in PAIRS:
        batch = {}
        for name, tokens in (("chosen", chosen), ("rejected", rejected)):
            ids, attention, completion = padded([tokens])
            batch[f"{name}_input_ids"] = ids
            batch[f"{name}_attention_mask"] = attention
            batch[f"{name}_labels"] = ids.masked_fill(completion == 0, -100)
        values.append(Trainer.get_batch_loss_metrics(fake, POLICY, batch)[0].item())
    called = f"{Trainer.__module__}.{Trainer.__name__}.get_batch_loss_metrics"
    return entry(called, "a prompt of one token", {"beta": BETA} | settings, values)


def kto(desirable_weight, undesirable_weight, mismatched):
    """``KTOTrainer._compute_loss``, one batch; the value is the batch mean."""
    from trl import KTOTrainer

    fake = trainer(
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=False,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    fake._compute_kl_logps = KTOTrainer._compute_kl_logps.__get__(fake)
    ids, attention, completion = padded([tokens for tokens, _ in SINGLES])
    inputs = dict(input_ids=ids, attention_mask=attention, completion_mask=completion)
    kl_ids, kl_attention, kl_completion = padded(mismatched)
    inputs |= dict(KL_input_ids=kl_ids, KL_attention_mask=kl_attention)
    inputs |= dict(KL_completion_mask=kl_completion, label=torch.tensor([d for _, d in SINGLES]))
    value = KTOTrainer._compute_loss(fake, POLICY, inputs, False).item()
    ratios = zip(POLICY.sums(mismatched), REFERENCE.sums(mismatched), strict=True)
    hyper = {
        "beta": BETA,
        "desirable_weight": desirable_weight,
        "undesirable_weight": undesirable_weight,
        "mismatched_log_ratio": [p - r for p, r in ratios],
    }
    return entry("trl.KTOTrainer._compute_loss", "the mean over the batch", hyper, [value])


def bco():
    """``BCOTrainer.bco_loss`` on two batches in a row; the values of the second."""
    from trl.experimental.bco import BCOTrainer
    from trl.trainer.utils import RunningMoments

    fake = trainer(running=RunningMoments(ACCELERATOR), match_underlying_distribution=False)

    def run(batch):
        tokens = [[t for t, d in batch if d == wanted] for wanted in (True, False)]
        sums = [
            torch.tensor(model.sums(responses), dtype=torch.float64)
            for model in (POLICY, REFERENCE)
            for responses in tokens
        ]
        losses, *_, delta = BCOTrainer.bco_loss(fake, *sums, None, None)
        return losses.tolist(), float(delta)

    before = run(SINGLES[:2])[1]
    losses, delta = run(SINGLES[2:])
    hyper = {"beta": BETA, "delta_before": before, "delta": delta}
    how = "after a batch of the first two singles; the others, desirable ones first"
    return entry("trl.experimental.bco.BCOTrainer.bco_loss", how, hyper, losses)


def entry(called, how, hyper, values):
    return dict(trl=trl.__version__, called=called, how=how, hyper=hyper, values=values)


def numbers(responses):
    return {
        "policy": POLICY.sums(responses),
        "reference": REFERENCE.sums(responses),
        "length": [len(tokens) for tokens in responses],
    }


def main():
    # Only the trainers of the old version are wanted that the new one lacks.
    if trl.__version__ == "0.26.2":
        losses = {"bco": bco()}
    elif trl.__version__ == "1.16.0":
        tokens = [t for t, _ in SINGLES]
        losses = {
            "sigmoid": dpo("sigmoid"),
            "robust": dpo("robust", 0.2),
            "hinge": dpo("hinge"),
            "ipo": dpo("ipo"),
            "exo_pair": dpo("exo_pair", 1e-3),
            "nca_pair": dpo("nca_pair"),
            "sppo_hard": dpo("sppo_hard"),
            "bco_pair": dpo("bco_pair"),
            "sft": dpo("sft"),
            "cpo": reference_free(
                "cpo", loss_type="sigmoid", cpo_alpha=0.7, label_smoothing=0.0, alpha=0.0
            ),
            "simpo": reference_free(
                "cpo",
                loss_type="simpo",
                simpo_gamma=0.4,
                cpo_alpha=0.0,
                label_smoothing=0.0,
                alpha=0.0,
            ),
            "orpo": reference_free("orpo"),
            "kto": kto(1.0, 1.3, [[4, 1], [1], [4], [1, 4], [3]]),
            "kto_clamped": kto(1.2, 1.0, tokens[1:] + tokens[:1]),
        }
    else:
        raise SystemExit(f"needs trl 1.16.0 or 0.26.2, found {trl.__version__}")
    old = json.loads(OUT.read_text()) if OUT.exists() else {"losses": {}}
    pairs = [numbers(side) for side in zip(*PAIRS, strict=True)]
    written = {
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "pairs": {k: list(zip(*(side[k] for side in pairs), strict=True)) for k in pairs[0]},
        "singles": numbers([t for t, _ in SINGLES]) | {"desirable": [d for _, d in SINGLES]},
        "losses": dict(sorted((old["losses"] | losses).items())),
    }
    OUT.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{OUT}: {', '.join(losses)} by trl {trl.__version__}")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
