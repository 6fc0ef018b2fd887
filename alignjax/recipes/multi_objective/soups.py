"""Rewarded soups: one policy per objective, and for a preference the average of their weights.

With theta_k the parameters of the policy trained for objective k alone, and w a preference::

    theta(w) = sum_k w_k theta_k

Whole networks are averaged. Where the config has ``lora``, each expert is merged into the base
first, so that the products A B are averaged. The average of A times the average of B would be
another matrix, with cross terms between the experts.

Reference: Rame et al., Rewarded soups, arXiv 2306.04488.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.recipes.multi_objective import sampling
from alignjax.recipes.multi_objective.method import Preference, Respond, Setting
from alignjax.sampling.generate import Question, Sample
from alignjax.types import Array, Params


def train(setting: Setting, *, expert: Callable[..., Any]) -> Respond:
    """Trains an expert per objective; the policy of a preference is their average.

    Args:
      expert: ``(setting, preference) -> parameters``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    trained = train_experts(setting, expert)
    experts = [sampling.merged_network(setting, params) for params in trained]

    def respond(preference: Preference, questions: Sequence[Question]) -> list[Sample]:
        return sampling.respond(setting, average(experts, preference), questions)

    return respond


def train_experts(setting: Setting, expert: Callable[..., Any]) -> list[Params]:
    """Trains a policy for each objective alone, in the order of the names."""
    count = len(setting.objectives.names)
    return [expert(setting, tuple(float(i == k) for i in range(count))) for k in range(count)]


def average(networks: Sequence[Params], weights: Sequence[float]) -> Params:
    """Averages networks, ``sum_k w_k theta_k``: summed in float32, returned in their own types.

    Args:
      networks: M parameter trees of one shape.
      weights: M numbers; of a unit vector the result is that network, bit for bit.
    """

    def one(*leaves: Array) -> Array:
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        total = sum(w * x.astype(wide) for w, x in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(one, *networks)
