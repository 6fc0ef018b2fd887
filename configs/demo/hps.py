"""The whole HPS recipe in the embedded world: generate, score, draw hard negatives, evaluate.

A supervised policy samples 8 responses to every prompt, the world's exact score ranks them, and HPS
trains on the lists. The best of 5 samples to held-out prompts is reported, as in the paper.

Command:   python -m alignjax run --config=configs/demo/hps.py --workdir=runs/hps_world
Hardware:  2 CPU cores
Time:      5.5 minutes of CPU time
Expect:    753 lists to train on, 97 held out; RM_DPO from 0 to 9.63 ± 1.75 at a KL of 2.76 ± 0.16;
           true score of samples from 0.615 ± 0.025 to 0.790 ± 0.027, of the best of 5 from
           0.784 ± 0.020 to 0.861 ± 0.017; BLEU of the best from 36.0 ± 4.9 to 46.5 ± 5.9; drawn
           from 4.2 of 7 negatives in effect at the end (one seed; ± is the 95% interval over
           prompts)
"""

from functools import partial

from alignjax.config import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.losses import hps, sft
from alignjax.models.config import ModelConfig
from alignjax.rewards import scorers
from alignjax.training import optim
from alignjax.world import sources as world


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(world.lists, size=850, seed=0, responses=8),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.1,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        # Good and bad answers alike: what comes of the lists is the alignment's.
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=4.0, batch_size=16),
        candidates=CandidatesConfig(
            scorers=(partial(scorers.judged, judge=world.judge, name="true_score"),),
            samples=8,
            max_new_tokens=64,
            temperature=0.9,
            batch_size=64,
        ),
        select=partial(hps.select, gamma=hps.curriculum()),  # type: ignore[arg-type]
        loss=partial(hps.loss, beta=0.1),  # the paper's; its code has 0.25
        optim=OptimConfig(learning_rate=1e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=2.0, batch_size=16, eval_every=16),
        evaluate=EvaluateConfig(
            judge=world.judge, prompts=64, samples=5, temperature=0.9, max_new_tokens=64
        ),
    )
