"""HPS with the paper's settings: lists of the model's own responses to HH-RLHF's prompts.

100 responses are sampled for each prompt, the data's own are put first, and a reward model scores
all of them. Each epoch draws one negative per list, a harder one as training proceeds. The paper
trains Llama 3 8B, on lists sampled from another policy (RLHFlow's Llama3-v2-DPO); the other sizes
have its settings. The authors' code trains all parameters by default: --set lora=None, with more
devices.

Command:   python -m alignjax run --config=configs/hps.py:8b --workdir=runs/hps_8b \
               --set data.path='/data/hh/*/train.jsonl.gz' --set model.path=/models/llama3-sft-v2.0

size   model           hardware (not run here)            seconds a step, by plan (docs/pods.md)
1.5b   Qwen2.5 1.5B    1 GPU of 80 GB                     2.09 to 3.97 on v5e:2x4
8b     Llama 3 8B      4 GPUs of 80 GB, as in the paper   1.19 to 1.86 on v5p:2x2x4
70b    Llama 3 70B     8 GPUs of 80 GB                    0.33 to 0.76 on v5p:8x8x8

Expect:    TODO measure; the paper reports RM_DPO 2.723, and 0.349 for DPO on best and worst. The
           best of 5 samples is chosen, and its reward measured, by another reward model than
           scored the lists; the paper's is ArmoRM, whose gated outputs cannot be loaded here
"""

import dataclasses
from functools import partial
from typing import Literal

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

REWARD_MODEL = "/models/skywork-reward-llama-3.1-8b-v0.2"
TEST_REWARD_MODEL = "/models/test-reward-model"  # any other one


def get_config(size: Literal["1.5b", "8b", "70b"] = "8b") -> Config:
    model = {
        "1.5b": presets.qwen25_1p5b(),
        "8b": presets.llama3_8b(),
        "70b": dataclasses.replace(presets.llama3_70b(), param_dtype="bfloat16"),
    }[size]
    lora = LoraConfig(rank=8, alpha=16.0, targets=("q", "v"), dropout=0.01)
    tokens = 12_288 if size == "1.5b" else 3072
    return Config(
        data=DataConfig(
            source=partial(sources.hh, chat=True),
            max_prompt_tokens=1024,
            max_response_tokens=1024,
        ),
        model=dataclasses.replace(model, dtype="bfloat16", remat="full", logits_chunk=128),
        lora=None if size == "1.5b" else lora,
        candidates=CandidatesConfig(
            scorers=(partial(scorers.reward_model, path=REWARD_MODEL, batch_size=8),),
            samples=100,
            keep_own=True,
            temperature=0.9,
            max_new_tokens=1024,
            batch_size=2 if size == "1.5b" else 8,
        ),
        # gamma goes from -5 to 3 in five parts of the run and multiplies the reward model's own
        # scores, as in the authors' code; its end is 5 in the paper: curriculum(stop=5.0).
        select=partial(hps.select, gamma=hps.curriculum(), score_sd=1.0),  # type: ignore[arg-type]
        # beta is the paper's; its code has 0.25, and label smoothing of 0.1.
        loss=partial(hps.loss, beta=0.1),
        optim=OptimConfig(learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.0),
        train=TrainConfig(epochs=2.0, batch_size=64, microbatch_tokens=tokens, save_every=100),
        mesh=MeshConfig(fsdp={"1.5b": 1, "8b": 4, "70b": 8}[size]),
        evaluate=EvaluateConfig(
            scorers=(partial(scorers.reward_model, path=TEST_REWARD_MODEL, batch_size=8),),
            prompts=512,
            samples=5,
            best_of=5,
            temperature=0.9,
            max_new_tokens=1024,
            batch_size=8 if size == "1.5b" else 16,
        ),
    )
