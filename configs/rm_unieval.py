"""A reward model of two human judgements at once: UniEval's restaurant sentences.

580 meaning representations with mostly two generated sentences each, judged for informativeness and
naturalness. The scorer of `paretohqd_unieval.py`.

Command:   python -m alignjax run --config=configs/rm_unieval.py --workdir=runs/rm_unieval \
               --set data.path=/data/unieval/sfres.json
Hardware:  2 CPU cores
Time:      1.7 minutes of CPU time, both cores together
Expect:    held-out reward accuracy 0.570 ± 0.131 for informativeness and 0.629 ± 0.121 for
           naturalness: 71 held-out prompts tell neither much from chance (one seed)
"""

from functools import partial

from alignjax import recipes
from alignjax.config import Config, DataConfig, OptimConfig, TokenizerConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import bradley_terry
from alignjax.models.config import ModelConfig
from alignjax.training import optim

NAMES = ("informativeness", "naturalness")


def get_config() -> Config:
    return Config(
        recipe=recipes.train_reward_model,
        # Outputs that repeat another one, and lists of which all scores tie, are dropped: 18%.
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
        reward_loss=bradley_terry.reward_loss,
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(epochs=6.0, batch_size=16),
    )
