"""ParetoHqD with the paper's settings: helpful against harmless, eleven preferences.

For each preference, adapters are fine-tuned on the 100 responses of the best layers that are
nearest to its direction, then on 50 of the responses that representative policies give to 10,000
prompts. The scores come from a reward model for each objective; one with an output for each takes
their place as scorer=partial(scorers.reward_model, path=...). The paper's base is Llama 2 7B; what
it does not state of adapters and their learning rate is taken from Rewards-in-Context, which it
builds on. Less memory: --set lora.quantize=nf4. Its baselines: `multi_objective.py`.

Command:   python -m alignjax run --config=configs/paretohqd.py:8b \
               --workdir=runs/paretohqd_8b --set data.path='/data/hh/*/train.jsonl.gz' \
               --set model.path=/models/llama-3-8b-sft

size   model           hardware (not run here)            seconds a step, by plan (docs/pods.md)
1.5b   Qwen2.5 1.5B    1 GPU of 80 GB                     0.32 to 0.48 on v5e:2x4
8b     Llama 3 8B      1 GPU of 80 GB                     0.08 to 0.18 on v5p:2x2x4
70b    Llama 3 70B     8 GPUs of 80 GB                    0.14 to 0.32 on v5p:8x8x8

Expect:    TODO measure; the paper reports a hypervolume of 0.753 and 7.0% collapsed responses
"""

import dataclasses
from functools import partial
from typing import Literal

from alignjax import recipes
from alignjax.config import Config, DataConfig, EvaluateConfig, MeshConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import paretohqd
from alignjax.models import presets
from alignjax.models.config import LoraConfig
from alignjax.recipes.multi_objective import paretohqd as recipe
from alignjax.rewards import scorers
from alignjax.training import optim

# One output each, in the order of `names`.
REWARD_MODELS = ("/models/hh-helpful", "/models/hh-harmless")


def get_config(size: Literal["1.5b", "8b", "70b"] = "8b") -> Config:
    model = {
        "1.5b": presets.qwen25_1p5b(),
        "8b": presets.llama3_8b(),
        "70b": presets.llama3_70b(),
    }[size]
    at_once = {"1.5b": 4, "8b": 2, "70b": 1}[size]  # preferences trained in one program
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(
                    recipe.train,
                    size=100,
                    prompts=10_000,
                    max_new_tokens=128,
                    temperature=0.7,
                    top_p=0.9,
                    at_once=at_once,
                ),
                scorer=partial(
                    scorers.several,
                    scorers=tuple(partial(scorers.reward_model, path=x) for x in REWARD_MODELS),
                ),
                names=("helpful", "harmless"),
                preferences=tuple((i / 10, 1 - i / 10) for i in range(11)),
            ),
        ),
        data=DataConfig(
            source=partial(sources.hh, chat=True),
            max_prompt_tokens=512,
            max_response_tokens=128,
        ),
        model=dataclasses.replace(model, dtype="bfloat16", param_dtype="bfloat16", remat="full"),
        lora=LoraConfig(rank=64, alpha=128.0, dropout=0.05),
        loss=paretohqd.loss,  # supervised, in both stages; it has no settings
        optim=OptimConfig(learning_rate=1.414e-4, schedule=optim.linear),
        train=TrainConfig(steps=200, batch_size=8, microbatch_tokens=2560),
        mesh=MeshConfig(fsdp=8 if size == "70b" else 1),
        evaluate=EvaluateConfig(
            prompts=512, samples=1, temperature=0.7, top_p=0.9, max_new_tokens=128, batch_size=32
        ),
    )
