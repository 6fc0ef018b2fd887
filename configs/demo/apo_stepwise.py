"""Adversarial Preference Optimization step by step in the embedded world, in one loop.

Like configs/demo/apo.py, on the same pairs and golden answers, but the players take turns at every
step: one step of the reward model, on pairs and on golden answers against samples drawn at that
step; then one step of the policy, by policy gradient on samples drawn at that step.

Command:   python -m alignjax run --config=configs/demo/apo_stepwise.py --workdir=runs/apo_steps
Hardware:  2 CPU cores
Time:      8 minutes of CPU time, both cores together
Expect:    true score of samples from 0.629 ± 0.021 to 0.711 ± 0.020 after 120 turns, of the best
           of 4 from 0.798 ± 0.016 to 0.831 ± 0.014, at a KL of 0.67 ± 0.04; the reward model's
           accuracy on held-out pairs from 0.728 ± 0.044 to 0.723 ± 0.044 (one seed; ± is the 95%
           interval over prompts)
"""

from functools import partial

from alignjax import recipes
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SamplingConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.losses import apo, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim
from alignjax.world import sources as world

SIZE = 4000


def get_config() -> Config:
    return Config(
        recipe=partial(
            recipes.play_steps,
            game=recipes.StepsConfig(
                golden=partial(world.golden, size=SIZE, seed=0),
                policy_fraction=0.3,
                sampling=SamplingConfig(samples=4, max_new_tokens=64, batch_size=64),
                optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
                train=TrainConfig(epochs=1.0, batch_size=16),
                reward_steps=1,
                policy_steps=1,
            ),
        ),
        data=DataConfig(
            source=partial(world.pairs, size=SIZE, seed=0, temperature=0.1),
            max_prompt_tokens=64,
            max_response_tokens=64,
            eval_fraction=0.1,
            pad_multiple=16,
        ),
        tokenizer=TokenizerConfig(vocab_size=768),
        model=ModelConfig(
            vocab_size=768, width=128, layers=2, heads=4, kv_heads=2, head_dim=32, mlp_width=352
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, epochs=3.0, batch_size=32),
        # The authors' code has 0.1 for golden answers against samples, see docs/papers/apo.md.
        reward_loss=partial(apo.reward_loss, pair_weight=1.0, sample_weight=1.0),
        # beta_1 is chosen here: the paper states none, and holds policies to their loss instead.
        loss=partial(apo.loss, beta=0.2),
        optim=OptimConfig(learning_rate=3e-4, schedule=optim.cosine),
        train=TrainConfig(steps=60, batch_size=16, log_every=10, save_every=20),
        evaluate=EvaluateConfig(judge=world.judge, prompts=128, samples=4, max_new_tokens=64),
    )
