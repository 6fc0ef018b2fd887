"""MOD, multi-objective decoding: one policy per objective, mixed token by token.

For a preference w the next token is drawn from ``prod_k pi_k ** w_k``, renormalised: `mixture`.
Every response costs one pass of each expert; nothing is trained for a preference. With experts
that are each optimal for their reward r_k at one KL coefficient beta, the mixture over whole
responses would be optimal for ``sum_k w_k r_k``; token by token that is an approximation, since
the products' normalisers differ between prefixes.

Reference: Shi et al., Decoding-Time Language Model Alignment with Multiple Objectives, arXiv
2406.18853. Only its form for the reverse KL divergence is here.
"""

from collections.abc import Callable, Sequence
from typing import Any

from alignjax.models import mixture
from alignjax.recipes.multi_objective import sampling, soups
from alignjax.recipes.multi_objective.method import Preference, Respond, Setting
from alignjax.sampling.generate import Question, Sample


def train(setting: Setting, *, expert: Callable[..., Any]) -> Respond:
    """Trains an expert per objective; a preference gives the weights of their mixture.

    Args:
      expert: ``(setting, preference) -> parameters``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    trained = soups.train_experts(setting, expert)
    experts = [sampling.whole_network(setting, params) for params in trained]

    def respond(preference: Preference, questions: Sequence[Question]) -> list[Sample]:
        return sampling.respond(setting, mixture.mix(experts, preference), questions)

    return respond
