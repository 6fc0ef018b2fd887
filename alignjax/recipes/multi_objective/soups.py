"""Trains the experts of rewarded soups: one policy per objective; their weights are averaged.

With theta_k the parameters of the policy trained for objective k alone, and w a preference::

    theta(w) = sum_k w_k theta_k

Whole networks are averaged (`mixture.average`). With ``lora``, each expert is first merged into the
base, so that the products A B are averaged. The average of A times the average of B would have
cross terms between the experts.

Reference: Rame et al., Rewarded soups, arXiv 2306.04488.
"""

from collections.abc import Callable
from typing import Any

from alignjax.commands.policies import AVERAGE, Network, Policies
from alignjax.recipes.multi_objective.method import Setting


def train(setting: Setting, *, expert: Callable[..., Any]) -> Policies:
    """Trains one expert per objective; a preference's policy is their weighted average.

    Args:
      expert: ``(setting, preference) -> Network``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    return setting.policies(AVERAGE, train_experts(setting, expert))


def train_experts(setting: Setting, expert: Callable[..., Any]) -> list[Network]:
    """Trains a policy for each objective alone, in the order of the names."""
    count = len(setting.objectives.names)
    return [expert(setting, tuple(float(i == k) for i in range(count))) for k in range(count)]
