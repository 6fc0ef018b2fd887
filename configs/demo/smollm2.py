"""A published model on pairs of its own: SmolLM2 135M Instruct, LoRA and DPO, by `make real-demo`.

The run answers the prompts with SmolLM2, `plain` ranks the answers, and DPO learns from the best
and the worst of each prompt. Put a function of your own in the place of `plain`.

Command:   make real-demo        (it fetches the model, and writes the prompts as rows)
Hardware:  2 CPU cores
Time:      about 13 minutes of CPU time of one core
Expect:    score of sampled answers to held-out prompts from -0.663 ± 0.122 to -0.592 ± 0.081, and
           to -0.574 ± 0.131 on another CPU, at a KL of 0.37 nats (one seed; ± is the 95% interval
           over 12 prompts)
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.data.records import Record
from alignjax.losses import bradley_terry, dpo
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.training import optim

SMOLLM2: dict[str, Any] = dict(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536,
    rope_theta=1e5, tied_embeddings=True,
)  # fmt: skip
WORDS = 25  # of the answer that is wished for


def plain(prompt: str, response: str) -> dict[str, float]:
    """Scores an answer in plain words: short, ended, without lists and headings. 1 is the best."""
    del prompt
    count = len(response.split())
    length = -abs(math.log((count + 1) / (WORDS + 1)))
    ended = float(response.rstrip().endswith((".", "!", "?")))
    marks = len(re.findall(r"^\s*(?:[-*#]|\d+\.)|\*\*", response, re.M))
    return {"plain": length + ended - 0.2 * min(marks, 5), "words": count, "ended": ended}


def score(records: Sequence[Record]) -> list[np.ndarray]:
    """Scores the responses of each record, ``[k]``."""
    return [np.array([plain("", x)["plain"] for x in record.responses]) for record in records]


def get_config() -> Config:
    return Config(
        data=DataConfig(
            # Rows of a prompt; their responses stand in until the run has sampled its own.
            source=partial(sources.lists, scores="judge_preference", chat=True),
            path="runs/smollm2/prompts.jsonl",
            eval_fraction=0.2,
            max_prompt_tokens=64,
            max_response_tokens=64,
            buckets=1,
            pad_multiple=16,
        ),
        model=ModelConfig(**SMOLLM2, logits_chunk=16),
        lora=LoraConfig(rank=8, alpha=16.0),
        candidates=CandidatesConfig(scorers=(score,), samples=6, max_new_tokens=64, batch_size=24),
        select=bradley_terry.select,
        loss=partial(dpo.loss, beta=0.1),  # DPO's appendix B
        optim=OptimConfig(learning_rate=5e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=8),
        evaluate=EvaluateConfig(judge=plain, prompts=12, samples=4, max_new_tokens=64),
    )
