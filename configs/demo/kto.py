"""KTO in the embedded world: single labelled responses, 30% of them desirable, on a laptop.

Command:   python -m alignjax run --config=configs/demo/kto.py --workdir=runs/kto
Hardware:  2 CPU cores
Time:      5.3 minutes of CPU time
Expect:    log-ratios -8.4 ± 2.8 desirable, -40.6 ± 2.3 undesirable, ordered correctly 0.877 ±
           0.032; true score of samples from 0.598 ± 0.019 to 0.745 ± 0.021 at a KL of 1.89 ± 0.18
           (one seed; ± is the 95% interval over prompts)
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
from alignjax.losses import kto, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim
from alignjax.world import sources as world

DESIRABLE = 0.3


def truth(prompt: str, response: str) -> float:
    """Exact log-probability under what the responses were drawn from: the mixture."""
    return world.log_prob(world.DEFAULT_WORLD, prompt, response, alpha=DESIRABLE)


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(world.unpaired, size=10000, seed=0, desirable_fraction=DESIRABLE),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.05,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=2.0, batch_size=32, truth=truth),
        # z_0 over the whole batch: another prompt's response beside every row's own.
        select=kto.select,
        baseline=kto.baseline,
        # beta is the paper's; lambda_D N = lambda_U M at 30% desirable: within its [1, 4/3].
        loss=partial(kto.loss, beta=0.1, desirable_weight=7 / 3, undesirable_weight=1.0),
        optim=OptimConfig(learning_rate=2e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=32, eval_every=100),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=4, max_new_tokens=64),
    )
