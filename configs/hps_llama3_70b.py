"""HPS with the paper's settings: Llama 3 70B on lists of its own responses to HH-RLHF's prompts.

100 responses are sampled for each prompt, the data's own put first, and a reward model scores all;
each epoch draws one hard negative per list, harder as training goes on. The paper's lists are
sampled from another policy (RLHFlow's Llama3-v2-DPO).
It has no model of this size; its settings are those of its 8B one.

Command:   python -m alignjax run --config=configs/hps_llama3_70b.py --workdir=runs/hps_70b \
               --set data.path='/data/hh/*/train.jsonl.gz' \
               --set model.path=/models/llama-3-70b-instruct
Hardware:  8 GPUs of 80 GB; not run here
Time:      TODO measure; by plan 0.33 to 0.76 s a step on v5p:8x8x8 (docs/pods.md)
Expect:    TODO measure
"""

import dataclasses
from functools import partial

from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.losses import hps
from alignjax.models import presets
from alignjax.models.config import LoraConfig
from alignjax.rewards import scorers
from alignjax.training import optim

STEPS = 2 * 160_800 // 64  # two passes over HH-RLHF's training prompts; change it with the data
REWARD_MODEL = "/models/skywork-reward-llama-3.1-8b-v0.2"


def get_config() -> Config:
    return Config(
        data=DataConfig(source=sources.hh, max_prompt_tokens=1024, max_response_tokens=1024),
        model=dataclasses.replace(
            presets.llama3_70b(),
            dtype="bfloat16",
            param_dtype="bfloat16",
            remat="full",
            logits_chunk=128,
        ),
        lora=LoraConfig(rank=8, alpha=16.0, targets=("q", "v"), dropout=0.01),
        candidates=CandidatesConfig(
            scorers=(partial(scorers.reward_model, path=REWARD_MODEL, batch_size=8),),
            samples=100,
            keep_own=True,
            temperature=0.9,
            max_new_tokens=1024,
            batch_size=8,
        ),
        # gamma goes from -5 to 3 in five parts, as in the authors' code; 5 is its end in the paper.
        select=partial(hps.select, gamma=hps.curriculum(STEPS)),  # type: ignore[arg-type]
        loss=partial(hps.loss, beta=0.1),
        optim=OptimConfig(learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.0),
        train=TrainConfig(steps=STEPS, batch_size=64, accumulate=8, save_every=100),
        mesh=MeshConfig(fsdp=8),
        evaluate=EvaluateConfig(
            prompts=512, samples=5, best_of=5, temperature=0.9, max_new_tokens=1024, batch_size=16
        ),
    )
