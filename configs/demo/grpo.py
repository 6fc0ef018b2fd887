"""GRPO on questions whose answers a rule checks, from random weights, on a laptop.

The questions ask for the larger of two numbers. The supervised policy learns from the right and the
wrong answer to each, so that it is right half of the time. GRPO then samples eight answers to each
prompt at every step and rewards the right ones. `--set loss=bradley_terry.loss` is online DPO.

Command:   python -m alignjax run --config=configs/demo/grpo.py --workdir=runs/grpo
Hardware:  2 CPU cores
Time:      2 minutes of CPU time
Expect:    right answers to held-out questions, sampled, from 0.381 ± 0.047, 0.500 ± 0.046 and
           0.492 ± 0.049 to 0.865 ± 0.052, 0.914 ± 0.047 and 0.855 ± 0.058 at a KL of 0.67 to 0.85
           nats (train.seed 0, 1 and 2; ± is the 95% interval over prompts); online DPO, seed 0:
           to 0.855 ± 0.051 at 0.89 nats; clipped updates, four on each step's samples (`--set
           loss=grpo.loss_clipped --set recipe.updates=4 --set train.steps=40`), seed 0: to
           0.799 ± 0.061 at 0.88 nats; XPO (`--set loss=xpo.loss --set recipe.opponent=1.0`), seeds
           0, 1, 2: to 0.799 ± 0.061, 0.867 ± 0.052, 0.824 ± 0.063 at 1.23 to 1.65 nats; Nash-MD
           (`--set loss=nash_md.loss --set recipe.opponent=0.5`): to 0.727 ± 0.057, 0.830 ± 0.048,
           0.820 ± 0.051 at 0.46 to 0.53 nats
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from alignjax import recipes
from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.data.records import DataReport, Record
from alignjax.losses import grpo, sft
from alignjax.models.config import ModelConfig
from alignjax.rewards import scorers
from alignjax.training import optim

NUMBERS = 100  # from 0


def comparisons(report: DataReport, *, size: int, seed: int) -> Iterator[Record]:
    """Generates questions for the larger of two numbers; the right answer comes first."""
    draw = np.random.default_rng(seed)
    pairs = [(a, b) for a in range(NUMBERS) for b in range(NUMBERS) if a != b]
    for i in draw.permutation(len(pairs))[:size].tolist():
        report.rows_in += 1
        a, b = pairs[i]
        prompt = f"larger of {a} and {b}:"
        yield Record(id=f"{a},{b}", prompt=prompt, responses=(f" {max(a, b)}", f" {min(a, b)}"))


def is_right(response: str, answer: str) -> float:
    """1 for the right answer, else 0."""
    return float(response.strip() == answer.strip())


def get_config() -> Config:
    rule = partial(scorers.checked, check=is_right)
    return Config(
        recipe=recipes.train_online,
        data=DataConfig(
            source=partial(comparisons, size=3000, seed=0),
            max_prompt_tokens=16,
            max_response_tokens=8,
            eval_fraction=0.1,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        model=ModelConfig(
            vocab_size=320, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=6.0, batch_size=64),
        # scale and length as in equation 3 of DeepSeekMath, whose beta is 0.04, a token's KL.
        loss=partial(grpo.loss, scale="std", length="response", beta=0.01),
        candidates=CandidatesConfig(scorers=(rule,), samples=8, max_new_tokens=6),
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(steps=150, batch_size=32, eval_every=50),
        evaluate=EvaluateConfig(prompts=128, samples=4, max_new_tokens=6),
    )
