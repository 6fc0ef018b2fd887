"""Direct Preference Optimization of LoRA adapters in the embedded world: `dpo.py`, 8% trained.

Command:   python -m alignjax run --config=configs/demo/dpo_lora.py --workdir=runs/dpo_lora
Hardware:  2 CPU cores
Time:      6.8 minutes of CPU time, both cores together
Expect:    reward accuracy 0.719 ± 0.037; true score of sampled responses from 0.655 ± 0.018 to
           0.725 ± 0.018 at a KL of 0.53 ± 0.07 (one seed; ± is the 95% interval over prompts).
           At 5e-4 the accuracy is higher, 0.765 ± 0.035, and the text falls apart: a KL of 22 nats,
           29% of the samples well-formed
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
from alignjax.models.config import LoraConfig, ModelConfig
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
        lora=LoraConfig(rank=8, alpha=16.0),
        # The reference fits what the pairs were drawn from: both responses of each.
        sft=SftConfig(
            loss=sft.loss,
            learning_rate=3e-3,
            epochs=1.5,
            batch_size=32,
            truth=truth,
        ),
        loss=partial(dpo.loss, beta=0.1),  # DPO's appendix B
        optim=OptimConfig(learning_rate=1e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=0.8, batch_size=32, eval_every=50),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=4, max_new_tokens=64),
    )
