"""Direct Preference Optimization in the embedded world, from random weights, on a laptop.

Command:   make demo        (or: python -m alignjax demo)
Hardware:  2 CPU cores
Time:      5 minutes
Expect:    held-out loss of the supervised stage 7.16 nats per response (the truth: 7.01); reward
           accuracy 0.775 ± 0.034; true score of sampled responses from 0.649 ± 0.019 to
           0.783 ± 0.016 at a KL of 0.93 ± 0.05 (one seed; ± is the 95% interval over prompts).
           Other seeds: docs/demo.md
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
from alignjax.losses import dpo, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim
from alignjax.world import sources as world


def truth(prompt: str, response: str) -> float:
    """Exact log-probability of what the pairs were drawn from: half p+, half p-."""
    return world.log_prob(world.DEFAULT_WORLD, prompt, response, alpha=0.5)


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(world.pairs, size=12000, seed=0, temperature=0.1),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.05,
            pad_multiple=8,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        # The reference fits what the pairs were drawn from: both responses of each.
        sft=SftConfig(
            loss=sft.loss,
            learning_rate=3e-3,
            epochs=1.5,
            batch_size=32,
            truth=truth,
        ),
        # DPO's appendix B has 0.1, with which more of the responses here end up malformed.
        loss=partial(dpo.loss, beta=0.5),
        optim=OptimConfig(learning_rate=1e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=0.8, batch_size=32, eval_every=50),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=4, max_new_tokens=64),
    )
