"""A reward model of human preferences: Anthropic's HH-RLHF, a small model from random weights.

Command:   python -m alignjax run --config=configs/rm_hh.py --workdir=runs/rm_hh \
               --set data.path='/data/hh/*.jsonl.gz'
Hardware:  2 CPU cores
Time:      5 minutes of CPU time (24 minutes elapsed on a busy machine)
Expect:    on the 2,312 pairs of harmless-base/test, 1,834 to train on and 469 held out by prompt:
           held-out accuracy 0.563 ± 0.045; temperature 0.98, ECE 0.041, where chance alone makes
           0.038 of 234 pairs (seed 0; ± is the 95% interval over prompts)
"""

from alignjax import recipes
from alignjax.config import Config, DataConfig, OptimConfig, SftConfig, TokenizerConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import bradley_terry, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim


def get_config() -> Config:
    return Config(
        recipe=recipes.train_reward_model,
        data=DataConfig(
            source=sources.hh,
            eval_fraction=0.2,
            max_prompt_tokens=256,
            max_response_tokens=128,
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(
            vocab_size=2048,
            width=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_width=352,
            logits_chunk=16,
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=2e-3, epochs=1.0, batch_size=32),
        reward_loss=bradley_terry.reward_loss,
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=32, eval_every=30),
    )
