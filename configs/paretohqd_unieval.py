"""ParetoHqD on human scores: UniEval's restaurant sentences, informative against natural.

The data's own scores choose the responses of stage 1. The reward model of `rm_unieval.py`, which
was trained on the same prompts, scores the policies' responses.

Command:   python -m alignjax run --config=configs/rm_unieval.py --workdir=runs/rm_unieval \
               --set data.path=/data/unieval/sfres.json
           python -m alignjax run --config=configs/paretohqd_unieval.py \
               --workdir=runs/paretohqd_unieval --set data.path=/data/unieval/sfres.json \
               --set recipe.objectives.scorer.path=runs/rm_unieval
Hardware:  2 CPU cores
Time:      5.4 minutes of CPU time after the reward model, both cores together
Expect:    fronts that this reward model cannot tell apart: mean scores between -0.16 and 0.20
           (informativeness) and 0.13 and 0.38 (naturalness), in no order of the preferences (10 of
           20 comparisons the wrong way round), 0.9% collapsed (one seed)
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
from alignjax.data import sources
from alignjax.losses import paretohqd, sft
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.recipes.multi_objective import paretohqd as recipe
from alignjax.rewards import scorers
from alignjax.training import optim

NAMES = ("informativeness", "naturalness")


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=partial(recipe.train, size=50, curate=paretohqd.curate, at_once=5),
                scorer=partial(scorers.reward_model, path="runs/rm_unieval"),
                names=NAMES,
                preferences=((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)),
            ),
        ),
        data=DataConfig(
            source=partial(
                sources.rated,
                prompt="source",
                response="system_output",
                objectives=NAMES,
                after="\n",
            ),
            max_prompt_tokens=96,
            max_response_tokens=64,
            eval_fraction=0.15,
            max_drop_fraction=0.2,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=512),
        model=ModelConfig(
            vocab_size=512, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        lora=LoraConfig(rank=8, alpha=16.0),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=12.0, batch_size=16),
        loss=paretohqd.loss,
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(steps=60, batch_size=8),
        evaluate=EvaluateConfig(prompts=64, samples=2, max_new_tokens=64),
    )
