"""DPO on human preferences: Anthropic's HH-RLHF, a small model from random weights.

Command:   python -m alignjax run --config=configs/dpo_hh.py --workdir=runs/hh \
               --set data.path='/data/hh/*.jsonl.gz'
Hardware:  2 CPU cores
Time:      8 minutes, on a shared machine
Expect:    on the 2,312 pairs of harmless-base/test, 1,834 to train on and 469 held out by prompt:
           held-out reward accuracy 0.610 ± 0.044 (one seed; ± is the 95% interval)
"""

from functools import partial

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
from alignjax.losses import dpo, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim


def get_config() -> Config:
    return Config(
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
        sft=SftConfig(loss=sft.loss, learning_rate=2e-3, epochs=3.0, batch_size=32),
        loss=partial(dpo.loss, beta=0.1),  # DPO's appendix B
        optim=OptimConfig(learning_rate=2e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=2.0, batch_size=32, eval_every=60),
        evaluate=EvaluateConfig(prompts=16, samples=2, max_new_tokens=64),
    )
