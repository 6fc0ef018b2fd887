"""HPS on lists of sampled responses with judge scores: one hard negative drawn per prompt.

The file has 16 responses per prompt, 11 of them judged; those without a score are left out and
counted. The order in the file correlates with length and score, so it is shuffled.

Command:   python -m alignjax run --config=configs/hps_lists.py --workdir=runs/hps \
               --set data.path=/data/bon16.jsonl.gz
Hardware:  2 CPU cores
Time:      3 minutes, on a shared machine
Expect:    with --set select.score_sd=1.0 --set train.steps=64,
           513 lists to train on and 130 held out: the reward orders 0.516 ± 0.025 of the held-out
           pairs like the judge, which is not above chance (one seed; ± is the 95% interval)
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
from alignjax.losses import hps, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(
                sources.lists,
                responses="responses",
                scores="judge_preference",
                order_seed=0,
                chat=True,
            ),
            eval_fraction=0.2,
            max_prompt_tokens=96,
            max_response_tokens=96,
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
        sft=SftConfig(loss=sft.loss, learning_rate=2e-3, epochs=1.0, batch_size=8),
        # The paper's pair: draw by hardness, then Equation 8 with the one drawn response.
        select=partial(hps.select, gamma=hps.curriculum()),  # type: ignore[arg-type]
        loss=partial(hps.loss, beta=0.1),  # the paper's; its code has 0.25
        optim=OptimConfig(learning_rate=5e-5, schedule=optim.cosine),
        train=TrainConfig(epochs=2.0, batch_size=16, eval_every=32),
        evaluate=EvaluateConfig(prompts=16, samples=2, max_new_tokens=64, batch_size=16),
    )
