"""Makes the optimizer of a config: gradient clipping, AdamW, a learning-rate schedule.

A schedule is a function ``(peak, steps, warmup_steps) -> optax schedule``; a config imports one.
"""

from typing import Any

import jax
import optax

from alignjax.config import OptimConfig
from alignjax.runtime.sharding import path_name


def constant(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Makes a linear warm-up to ``peak``, then constant."""
    del steps
    return optax.warmup_constant_schedule(0.0 if warmup_steps else peak, peak, warmup_steps)


def linear(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Makes a linear warm-up to ``peak``, then linear decay to 0 at ``steps``."""
    up = optax.linear_schedule(0.0, peak, warmup_steps)
    down = optax.linear_schedule(peak, 0.0, max(1, steps - warmup_steps))
    return optax.join_schedules([up, down], [warmup_steps])


def cosine(peak: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Makes a linear warm-up to ``peak``, then half a cosine down to 0 at ``steps``."""
    up = optax.linear_schedule(0.0, peak, warmup_steps)
    down = optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps))
    return optax.join_schedules([up, down], [warmup_steps])


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Makes the schedule of a run of ``steps`` optimizer steps."""
    return config.schedule(config.learning_rate, steps, round(config.warmup_fraction * steps))


def make(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Makes AdamW with decoupled weight decay on matrices (not on norms and biases)."""

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).rsplit("/", 1)[-1] not in ("scale", "bias"), params
        )

    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(
        *clip,
        optax.adamw(
            learning_rate(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
