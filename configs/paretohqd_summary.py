"""ParetoHqD's second task: summaries of posts, preferred against faithful, eleven preferences.

The settings are those of `paretohqd.py`, with responses of at most 48 tokens as in
Rewards-in-Context, which this task is taken from. The rows are the comparisons of
`openai/summarize_from_feedback` as published: the post is the prompt, and its two summaries are the
responses, which the reward models score. The base model is one that was fine-tuned to summarise
posts. Reward models have one output each; `python -m alignjax reward` trains one on comparisons
(which summary is preferred, which one says only what the post says).

Command:   python -m alignjax run --config=configs/paretohqd_summary.py \
               --workdir=runs/paretohqd_summary --set data.path='/data/comparisons/*.json' \
               --set model.path=/models/llama-3-8b-tldr
Hardware:  1 GPU of 80 GB (not run here); less memory: --set lora.quantize=nf4
Time:      TODO measure
Expect:    TODO measure
"""

import dataclasses
from functools import partial

from alignjax import recipes
from alignjax.config import Config, DataConfig, EvaluateConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import paretohqd
from alignjax.models import presets
from alignjax.models.config import LoraConfig
from alignjax.recipes.multi_objective import paretohqd as recipe
from alignjax.rewards import scorers
from alignjax.training import optim

# One output each, in the order of `names`.
REWARD_MODELS = ("/models/tldr-preferred", "/models/tldr-faithful")


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(
                    recipe.train,
                    size=100,
                    prompts=10_000,
                    max_new_tokens=48,
                    temperature=0.7,
                    top_p=0.9,
                    at_once=2,  # preferences trained in one program
                ),
                scorer=partial(
                    scorers.several,
                    scorers=tuple(partial(scorers.reward_model, path=x) for x in REWARD_MODELS),
                ),
                names=("preferred", "faithful"),
                preferences=tuple((i / 10, 1 - i / 10) for i in range(11)),
            ),
        ),
        data=DataConfig(
            source=partial(sources.auto, chat=True),
            max_prompt_tokens=512,
            max_response_tokens=48,
        ),
        model=dataclasses.replace(
            presets.llama3_8b(), dtype="bfloat16", param_dtype="bfloat16", remat="full"
        ),
        lora=LoraConfig(rank=64, alpha=128.0, dropout=0.05),
        loss=paretohqd.loss,  # supervised, in both stages; it has no settings
        optim=OptimConfig(learning_rate=1.414e-4, schedule=optim.linear),
        train=TrainConfig(steps=200, batch_size=8, microbatch_tokens=2560),
        evaluate=EvaluateConfig(
            prompts=512, samples=1, temperature=0.7, top_p=0.9, max_new_tokens=48, batch_size=32
        ),
    )
