"""Trains the experts of MOD, multi-objective decoding: one policy per objective.

For a preference w the next token is drawn from ``prod_k pi_k ** w_k``, normalised (`mixture`).
Every response costs one pass of each expert; nothing is trained for a preference. If each expert is
optimal for its reward r_k with the same KL coefficient beta, the mixture over whole responses is
optimal for ``sum_k w_k r_k``. Token by token this is an approximation, because the products'
normalisers depend on the prefix.

Reference: Shi et al., Decoding-Time Language Model Alignment with Multiple Objectives, arXiv
2406.18853. Only its form for the reverse KL divergence is here.
"""

from collections.abc import Callable
from typing import Any

from alignjax.commands.policies import MIXTURE, Policies
from alignjax.recipes.multi_objective import soups
from alignjax.recipes.multi_objective.method import Setting


def train(setting: Setting, *, expert: Callable[..., Any]) -> Policies:
    """Trains one expert per objective; a preference gives the weights of their mixture.

    Args:
      expert: ``(setting, preference) -> Network``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    return setting.policies(MIXTURE, soups.train_experts(setting, expert))
