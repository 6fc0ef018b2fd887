"""Rewarded soups: one policy per objective, and for a preference the average of their weights.

With theta_k the parameters of the policy trained for objective k alone, and w a preference::

    theta(w) = sum_k w_k theta_k

What is averaged are whole networks. Where the config has ``lora`` each expert is merged into the
base first, so what is averaged are the products A B, exactly: the average of A times the average
of B is another matrix, with cross terms between the experts.

Reference: Rame et al., Rewarded soups, arXiv 2306.04488.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models import lora
from alignjax.recipes.multi_objective import training
from alignjax.recipes.multi_objective.method import Preference, Respond, Setting
from alignjax.types import Array, Params


def train(setting: Setting, *, expert: Callable[..., Any]) -> Respond:
    """Trains an expert per objective; every preference is an average of them.

    Args:
      expert: ``(setting, preference) -> parameters``, called with each unit preference, such as
        ``morlhf.policy`` with its hyperparameters bound.
    """
    found = [whole(setting, params) for params in experts(setting, expert)]

    def respond(preference: Preference, asked: Any) -> Any:
        return training.respond_with(setting, average(found, preference))(asked)

    return respond


def experts(setting: Setting, expert: Callable[..., Any]) -> list[Params]:
    """The policies trained for each objective alone, in the order of the names."""
    count = len(setting.objectives.names)
    return [expert(setting, tuple(float(i == k) for i in range(count))) for k in range(count)]


def whole(setting: Setting, params: Params) -> Params:
    """One network without adapters beside its kernels."""
    config = setting.config.lora
    if config is None or "embed" in params:
        return params
    return lora.merge(setting.load_reference(), params, config)


def average(networks: Sequence[Params], weights: Sequence[float]) -> Params:
    """``sum_k w_k theta_k``, summed in float32 and kept in the networks' own types.

    Args:
      networks: M parameter trees of one shape.
      weights: M numbers; of a unit vector the result is that network, bit for bit.
    """

    def one(*leaves: Array) -> Array:
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        total = sum(w * x.astype(wide) for w, x in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(one, *networks)
