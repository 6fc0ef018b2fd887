"""ParetoHqD with the paper's settings: Llama 3 8B, helpful against harmless, eleven preferences.

For each preference the 100 responses nearest to its direction, out of the best layers, fine-tune
adapters; then 50 of the responses that the best of those give to 10,000 prompts. The rewards are of
one model with an output for each objective, whose names `names` repeats.
The paper's base is Llama 2 7B; what it does not state of adapters and their learning rate is taken
from Rewards-in-Context, which it builds on. Less memory: --set lora.quantize=nf4.

Command:   python -m alignjax run --config=configs/paretohqd_llama3_8b.py \
               --workdir=runs/paretohqd_8b --set data.path='/data/hh/*/train.jsonl.gz' \
               --set model.path=/models/llama-3-8b-sft
Hardware:  1 GPU of 80 GB; not run here
Time:      TODO measure; by plan 0.08 to 0.18 s a step on v5p:2x2x4 (docs/pods.md)
Expect:    TODO measure; the paper reports a hypervolume of 0.753 and 7.0% collapsed responses
"""

import dataclasses
from functools import partial

from alignjax import recipes
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.losses import paretohqd
from alignjax.models import presets
from alignjax.models.config import LoraConfig
from alignjax.recipes.multi_objective import paretohqd as recipe
from alignjax.rewards import scorers
from alignjax.training import optim

REWARD_MODEL = "/models/hh-helpful-harmless"


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(recipe.train, size=100, prompts=10_000, at_once=2),
                scorer=partial(scorers.reward_model, path=REWARD_MODEL),
                names=("helpful", "harmless"),
                preferences=tuple((i / 10, 1 - i / 10) for i in range(11)),
            ),
        ),
        data=DataConfig(source=sources.hh, max_prompt_tokens=512, max_response_tokens=128),
        model=dataclasses.replace(
            presets.llama3_8b(), dtype="bfloat16", param_dtype="bfloat16", remat="full"
        ),
        lora=LoraConfig(rank=64, alpha=128.0, dropout=0.05),
        loss=paretohqd.loss,
        optim=OptimConfig(learning_rate=1.414e-4, schedule=optim.linear),
        train=TrainConfig(steps=200, batch_size=8, accumulate=2),
        evaluate=EvaluateConfig(
            prompts=512, samples=1, temperature=0.7, top_p=0.9, max_new_tokens=128, batch_size=32
        ),
    )
