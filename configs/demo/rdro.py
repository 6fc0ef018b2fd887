"""RDRO in the embedded world: single labelled responses, 30% of them desirable, on a laptop.

The supervised stage imitates *all* responses (no ``sft.select``), so the reference is the mixture
0.3 p+ + 0.7 p- that the theory assumes; its held-out loss is reported beside that of the mixture.

Command:   python -m alignjax run --config=configs/demo/rdro.py --workdir=runs/rdro
Hardware:  2 CPU cores
Time:      4.6 minutes of CPU time
Expect:    held-out loss of the supervised stage 7.36 nats per response (the truth: 7.11);
           log-ratios 0.50 ± 0.16 desirable, -2.04 ± 0.17 undesirable, ordered correctly 0.906 ±
           0.020; true score of samples from 0.598 ± 0.019 to 0.715 ± 0.018 at a KL of 0.63 ± 0.04
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
from alignjax.losses import rdro, sft
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
        # alpha is the data's desirable fraction; a mean over each class: the paper's Equation 18.
        loss=rdro.loss,
        optim=OptimConfig(learning_rate=2e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=32, eval_every=100),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=4, max_new_tokens=64),
    )
