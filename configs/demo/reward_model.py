"""A reward model in the embedded world, from nothing: pairs drawn from a known preference.

Command:   python -m alignjax run --config=configs/demo/reward_model.py --workdir=runs/rm
Hardware:  2 CPU cores
Time:      1.5 minutes of CPU time; 5 minutes by the clock on a machine with much other work
Expect:    8,998 pairs to train on and 1,002 held out by prompt: held-out accuracy 0.741 ± 0.027
           (the true score itself agrees with 0.787 of these noisy labels); temperature 0.98, ECE
           0.047, where chance alone makes 0.031 of 501 pairs (seed 0; ± is the 95% interval)
"""

from functools import partial

from alignjax import recipes
from alignjax.config import Config, DataConfig, OptimConfig, TokenizerConfig, TrainConfig
from alignjax.losses import bradley_terry
from alignjax.models.config import ModelConfig
from alignjax.training import optim
from alignjax.world import sources as world


def get_config() -> Config:
    return Config(
        recipe=recipes.train_reward_model,
        data=DataConfig(
            source=partial(world.pairs, size=10000, seed=0, temperature=0.1),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.1,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        reward_loss=bradley_terry.reward_loss,
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=32, eval_every=100),
    )
