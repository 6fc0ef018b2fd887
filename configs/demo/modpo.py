"""MODPO in the embedded world: helpful against concise, an adapter of rank 8 for each preference.

Data, model, preferences and evaluation are those of `configs/demo/paretohqd.py`. Pairs are ordered
by the objective with the larger weight; the exact scores of the other one are the margin.

Command:   python -m alignjax run --config=configs/demo/modpo.py --workdir=runs/modpo
Hardware:  2 CPU cores
Time:      5.5 minutes of CPU time, both cores together
Expect:    mean (helpful, concise) of the five preferences from (0.43, 0.82) for concise alone over
           (0.55, 0.68) to (0.59, 0.57) for helpful alone; hypervolume 0.459 [0.423, 0.500] of the
           box from 0 to 1, faithfulness 1, nothing collapsed (one seed; 95% intervals over prompts)
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
from alignjax.losses import modpo, sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import modpo as recipe
from alignjax.rewards import scorers
from alignjax.training import optim
from alignjax.world import sources as world

NAMES = ("helpful", "concise")


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(recipe.train, log_odds=1.0),
                scorer=partial(scorers.judged, judge=world.judge, name=NAMES),
                names=NAMES,
                preferences=((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)),
                box=((0.0, 1.0), (0.0, 1.0)),
            ),
        ),
        data=DataConfig(
            source=partial(world.lists, size=4000, seed=0, responses=2, objectives=NAMES),
            max_prompt_tokens=64,
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
        loss=partial(modpo.loss, beta=0.1),  # the default of the authors' code
        optim=OptimConfig(learning_rate=3e-4, schedule=optim.cosine),
        train=TrainConfig(steps=100, batch_size=8),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=2, max_new_tokens=64),
    )
