"""Rewards-in-Context in the embedded world: helpful against concise, one adapter for all of it.

Data, model, preferences and evaluation are those of `configs/demo/paretohqd.py`; prompts have room
for the scores that they tell. Targets lie between the data's own extremes: the world's scores are
bounded, and prompts that ask for 4 deviations would ask for what was never seen.

Command:   python -m alignjax run --config=configs/demo/rewards_in_context.py --workdir=runs/ric
Hardware:  2 CPU cores
Time:      2.5 minutes of CPU time after the supervised stage
Expect:    352 and 432 of 500 samples kept; mean (helpful, concise) of the five preferences
           (0.15, 0.88), (0.33, 0.66), (0.64, 0.65), (0.71, 0.15), (0.70, 0.13), each within 0.04;
           hypervolume 0.466 [0.432, 0.500] of the box, nothing collapsed, 1 of 20 comparisons of
           two preferences the wrong way round (one seed; 95% intervals over prompts)
"""

from functools import partial

from alignjax import recipes
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.losses import rewards_in_context as ric
from alignjax.losses import sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import rewards_in_context as recipe
from alignjax.rewards import scorers
from alignjax.training import optim
from alignjax.world import sources as world

NAMES = ("helpful", "concise")


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(
                    recipe.train,
                    target=ric.l2,
                    limits=ric.data_limits,
                    online_rounds=2,
                    online_samples=500,
                    originals=500,
                    online_steps=60,
                    online_learning_rate=1e-3,
                ),
                scorer=partial(scorers.judged, judge=world.judge, name=NAMES),
                names=NAMES,
                preferences=((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)),
                box=((0.0, 1.0), (0.0, 1.0)),
            ),
        ),
        data=DataConfig(
            source=partial(world.lists, size=4000, seed=0, responses=2, objectives=NAMES),
            max_prompt_tokens=96,
            max_response_tokens=64,
            eval_fraction=0.05,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        lora=LoraConfig(rank=8, alpha=16.0),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=2.0, batch_size=32),
        loss=ric.loss,
        optim=OptimConfig(learning_rate=4e-3, schedule=optim.cosine),
        train=TrainConfig(steps=300, batch_size=16),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=2, max_new_tokens=64),
    )
