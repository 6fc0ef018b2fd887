"""ParetoHqD in the embedded world with three objectives: seven preferences.

Data and model are those of `paretohqd.py`. Responses are curated by how much better they are
than the mean of those to their prompt: helpful and harmless conflict for some prompts only, and the
best layers would otherwise consist mostly of the other prompts.

Command:   python -m alignjax run --config=configs/demo/paretohqd_three.py --workdir=runs/paretohqd3
Hardware:  2 CPU cores
Time:      4.3 minutes of CPU time, both cores together
Expect:    hypervolume 0.380 [0.344, 0.440] of the box from 0 to 1, faithfulness 0.53 (12 of 51
           comparisons of two preferences reversed), 0.7% collapsed; mean (helpful,
           harmless, concise) (0.65, 0.63, 0.53) for helpful alone, (0.48, 0.75, 0.67) for harmless,
           (0.49, 0.77, 0.78) for concise (one seed; 95% interval over prompts)
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

NAMES = ("helpful", "harmless", "concise")


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(
                    recipe.train,
                    size=100,
                    curate=paretohqd.curate,
                    centred=True,
                    prompts=500,
                    at_once=7,
                ),
                scorer=partial(scorers.judged, judge=world.judge, name=NAMES),
                names=NAMES,
                preferences=(
                    *((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
                    *((0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)),
                    (1.0, 1.0, 1.0),
                ),
                box=((0.0, 1.0),) * 3,
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
