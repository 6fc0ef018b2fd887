"""ParetoHqD in the embedded world: helpful against concise, five preferences, adapters of rank 8.

Command:   python -m alignjax run --config=configs/demo/paretohqd.py --workdir=runs/paretohqd
Hardware:  2 CPU cores
Time:      3.6 minutes of CPU time, both cores together
Expect:    hypervolume 0.576 [0.532, 0.623] of the box from 0 to 1; mean (helpful, concise) from
           (0.57, 0.86) for concise alone over (0.67, 0.76) for both alike to (0.80, 0.08) for
           helpful alone; faithfulness 0.80; 0.3% collapsed (one seed)

Ablations: ``--set recipe.objectives.method.two_stages=false``, and
``curate=paretohqd.curate_linear`` below.
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
from alignjax.losses import paretohqd, sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import paretohqd as recipe
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
                    recipe.train, size=100, curate=paretohqd.curate, prompts=500, at_once=5
                ),
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
        loss=paretohqd.loss,
        optim=OptimConfig(learning_rate=2e-3, schedule=optim.cosine),
        train=TrainConfig(steps=100, batch_size=8),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=2, max_new_tokens=64),
    )
