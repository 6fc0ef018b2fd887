"""MOD, multi-objective decoding: one policy per objective, mixed token by token.

For a preference w the next token is drawn from ``prod_k pi_k ** w_k``, renormalised: `mixture`.
Every response costs one pass of each expert; nothing is trained for a preference. With experts
that are each optimal for their reward r_k at one KL coefficient beta, the mixture over whole
responses would be optimal for ``sum_k w_k r_k``; token by token that is an approximation, since
the products' normalisers differ between prefixes.

Reference: Shi et al., Decoding-Time Language Model Alignment with Multiple Objectives, arXiv
2406.18853. Only its form for the reverse KL divergence is here.
"""

from collections.abc import Callable
from typing import Any

from alignjax.commands.policies import MIXTURE, Policies
from alignjax.recipes.multi_objective import soups
from alignjax.recipes.multi_objective.method import Setting


def train(setting: Setting, *, expert: Callable[..., Any]) -> Policies:
    """Trains an expert per objective; a preference gives the weights of their mixture.

    Args:
      expert: ``(setting, preference) -> Network``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    return setting.policies(MIXTURE, soups.train_experts(setting, expert))
