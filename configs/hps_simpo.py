"""Combines select, loss and reward freely: HPS's hard negatives with SimPO's reward per token.

Lists of 8 responses of the embedded world with exact scores. `select` draws one negative per list,
more often one with a better score, and HPS's loss (Equation 8) compares log-probabilities per
token, so the alignment needs no reference. Exchange either line for another.

Command:   python -m alignjax run --config=configs/hps_simpo.py --workdir=runs/hps_simpo
Hardware:  2 CPU cores
Time:      3 minutes of CPU time, over all cores (14 minutes elapsed, on cores that other work
           filled)
Expect:    with --set select.score_sd=1.0, on 114 held-out lists: the reward per token orders
           0.721 ± 0.026 of the pairs as the scores do; true score of sampled responses from
           0.239 ± 0.048 to 0.321 ± 0.069, their length from 26.4 ± 1.0 to 18.2 ± 0.5 tokens (one
           seed; ± is the 95% interval over prompts). Malformed responses score 0, and the
           supervised stage is kept short: 0.340 of its samples are well-formed
"""

from functools import partial

from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    ReferenceConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.losses import hps, sft, simpo
from alignjax.models.config import ModelConfig
from alignjax.training import optim
from alignjax.world import sources as world


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(world.lists, size=2400, seed=0, responses=8),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.05,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=96, layers=2, heads=4, kv_heads=2, head_dim=24, mlp_width=256
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=5e-3, steps=120, batch_size=16),
        select=partial(hps.select, gamma=1.0),
        # beta is SimPO's for base models; nobody has published this combination.
        loss=partial(hps.loss, beta=2.0, implicit=simpo.implicit),
        optim=OptimConfig(learning_rate=1e-4, schedule=optim.cosine),
        train=TrainConfig(steps=120, batch_size=16, eval_every=60),
        reference=ReferenceConfig(mode="none"),
        evaluate=EvaluateConfig(judge=world.judge, prompts=64, samples=4, max_new_tokens=64),
    )
