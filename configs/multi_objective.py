"""The baselines of ParetoHqD with their published settings: helpful against harmless.

Data, reward models, preferences and evaluation are those of `paretohqd.py`; the method is chosen
after a colon. MORLHF trains a policy for each of 5 preferences by policy gradient; `ppo`, the same
with 4 clipped updates, no value network, and no dropout, which ratios would see. Soups, MOD
and Rewards-in-Context serve any preference; MODPO trains 11 policies. MORLHF and the experts of
soups and MOD score in every step: reward models have the policy's tokenizer, and stay in memory.

Command:   python -m alignjax run --config=configs/multi_objective.py:soups \
               --workdir=runs/soups_8b --set data.path='/data/hh/*/train.jsonl.gz' \
               --set model.path=/models/llama-3-8b-sft
           python -m alignjax front --runs=runs/paretohqd_8b,runs/soups_8b --out=front.png
Hardware:  1 GPU of 80 GB (not run here); less memory: --set lora.quantize=nf4
Time:      TODO measure
Expect:    TODO measure; ParetoHqD's paper reports a hypervolume of 0.378 and 35.4% collapsed
           responses for MORLHF, 0.361 and 31.3% for soups
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from alignjax import recipes
from alignjax.config import Config, DataConfig, EvaluateConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import apo, grpo
from alignjax.losses import modpo as modpo_loss
from alignjax.losses import rewards_in_context as ric_loss
from alignjax.models import presets
from alignjax.models.config import LoraConfig
from alignjax.recipes.multi_objective import mod, modpo, morlhf, rewards_in_context, soups
from alignjax.rewards import scorers
from alignjax.training import optim

# One output each, in the order of `names`.
REWARD_MODELS = ("/models/hh-helpful", "/models/hh-harmless")


def get_config(
    method: Literal["morlhf", "ppo", "soups", "mod", "modpo", "rewards_in_context"] = "soups",
) -> Config:
    expert = partial(morlhf.policy, max_new_tokens=128)
    methods: dict[str, Callable[..., Any]] = {
        "morlhf": partial(morlhf.train, max_new_tokens=128),
        "ppo": partial(morlhf.train, max_new_tokens=128, updates=4),
        "soups": partial(soups.train, expert=expert),
        "mod": partial(mod.train, expert=expert),
        "modpo": modpo.train,
        "rewards_in_context": partial(rewards_in_context.train, max_new_tokens=128),  # RiC's code
    }
    # beta: the initial KL coefficient of RiC's PPO, which adapts there; rewards are z-scores.
    loss = partial(grpo.loss_clipped if method == "ppo" else apo.loss, beta=0.2)
    settings = OptimConfig(learning_rate=1e-5, schedule=optim.constant, warmup_fraction=0.0)
    train = TrainConfig(epochs=1.0, batch_size=64, microbatch_tokens=6144)
    lora = LoraConfig(rank=64, alpha=128.0, dropout=0.0 if method == "ppo" else 0.05)
    if method == "modpo":  # beta, learning rate, adapters, epochs: the defaults of MODPO's code
        loss = partial(modpo_loss.loss, beta=0.1)
        settings = OptimConfig(learning_rate=1e-4, schedule=optim.cosine)
        train = TrainConfig(epochs=3.0, batch_size=8, microbatch_tokens=3072)
        lora = LoraConfig(rank=16, alpha=32.0)
    if method == "rewards_in_context":  # offline: RiC's code; the loss has no settings
        loss = partial(ric_loss.loss)
        settings = OptimConfig(learning_rate=1.414e-4, schedule=optim.linear)
        train = TrainConfig(steps=20_000, batch_size=8)
    parts = 4 if method in ("morlhf", "ppo") else 10
    chats = partial(sources.hh, chat=True)
    each = tuple(partial(scorers.reward_model, path=path) for path in REWARD_MODELS)
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=methods[method],
                scorer=partial(scorers.several, scorers=each),
                names=("helpful", "harmless"),
                preferences=tuple((i / parts, 1 - i / parts) for i in range(parts + 1)),
            ),
        ),
        data=DataConfig(source=chats, max_prompt_tokens=512, max_response_tokens=128),
        model=dataclasses.replace(
            presets.llama3_8b(), dtype="bfloat16", param_dtype="bfloat16", remat="full"
        ),
        lora=lora,
        loss=loss,
        optim=settings,
        train=train,
        evaluate=EvaluateConfig(
            prompts=512, samples=1, temperature=0.7, top_p=0.9, max_new_tokens=128, batch_size=32
        ),
    )
