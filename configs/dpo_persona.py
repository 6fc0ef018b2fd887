"""DPO on short Yes/No items: Anthropic's model-written persona evaluations, 20 behaviours.

Command:   python -m alignjax run --config=configs/dpo_persona.py --workdir=runs/persona \
               --set data.path='/data/persona/*.jsonl.gz'
Hardware:  2 CPU cores
Time:      4.5 minutes, on a shared machine
Expect:    18,018 items to train on and 1,982 held out by prompt: held-out reward accuracy
           0.839 ± 0.016 (one seed; ± is the 95% interval)
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
            source=sources.persona,
            eval_fraction=0.1,
            max_prompt_tokens=96,
            max_response_tokens=8,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(
            vocab_size=2048, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        # Both answers: the reference says Yes as often as No, whatever the statement.
        sft=SftConfig(loss=sft.loss, learning_rate=1e-3, steps=100, batch_size=64),
        loss=partial(dpo.loss, beta=0.1),  # DPO's appendix B
        optim=OptimConfig(learning_rate=4e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=2.0, batch_size=64, eval_every=140),
        evaluate=EvaluateConfig(prompts=64, samples=4, max_new_tokens=8),
    )
