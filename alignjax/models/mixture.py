"""Several policies of one architecture that respond as one: their average, or their mixture.

`average` averages parameters (rewarded soups). `mix` is multi-objective decoding: MOD (Shi et al.,
arXiv 2406.18853) draws every token from

    pi(v | x, y_<t)  ~  prod_m pi_m(v | x, y_<t) ** w_m

The sum is over logits: that they are no log-probabilities changes a constant only, and with one
policy of weight 1 nothing, not even in the last bit.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from alignjax.errors import UserError
from alignjax.types import Array, Params


@flax.struct.dataclass(kw_only=True)
class Mixture:
    """Policies and their weights; other weights do not compile again. Made by `mix`."""

    policies: tuple[Params, ...]  # M of one shape; they may share arrays
    weights: Array  # [M] float32


def mix(policies: Sequence[Params], weights: Sequence[float]) -> Mixture:
    """Makes a mixture of policies of one architecture.

    Args:
      policies: M parameter trees with the same names, shapes and types.
      weights: M numbers >= 0, used as they are: that they sum to 1 is the caller's choice.

    Raises:
      UserError: they do not fit together, or the weights are negative, not finite or all 0.
    """
    if not policies or len(policies) != len(weights):
        raise UserError(
            f"mixture: wanted a weight for each policy, found {len(policies)} policies and "
            f"{len(weights)} weights"
        )
    values = np.asarray(weights, np.float32)
    if not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise UserError(
            f"mixture: wanted finite weights >= 0 that are not all 0, found {list(weights)}"
        )

    def shapes(params: Params) -> Params:
        return jax.tree.map(lambda x: (x.shape, x.dtype), params)

    for i, other in enumerate(policies[1:], start=1):
        if shapes(other) != shapes(policies[0]):
            raise UserError(f"mixture: policy {i} has other parameters than policy 0")
    return Mixture(policies=tuple(policies), weights=jnp.asarray(values))


def average(networks: Sequence[Params], weights: Sequence[float]) -> Params:
    """Averages networks, ``sum_k w_k theta_k``: summed in float32, returned in their own types.

    Args:
      networks: M parameter trees of one shape; one alone is returned as it is.
      weights: M numbers; of a unit vector the result is that network.
    """
    if len(networks) == 1:
        return networks[0]

    def one(*leaves: Array) -> Array:
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        total = sum(w * x.astype(wide) for w, x in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(one, *networks)


def policies_of(params: Params | Mixture) -> tuple[Params, ...]:
    """Lists the policies to run: one, or those of a mixture."""
    return params.policies if isinstance(params, Mixture) else (params,)


def each_policy(function: Callable[[Params], Params], params: Params | Mixture) -> Params | Mixture:
    """Applies a function to each policy."""
    if not isinstance(params, Mixture):
        return function(params)
    return dataclasses.replace(params, policies=tuple(function(p) for p in params.policies))


def mix_logits(params: Params | Mixture | None, logits: Sequence[Array]) -> Array:
    """Logits ``[..., vocab]`` of the mixture from those of its policies; of one policy, its own."""
    if not isinstance(params, Mixture):
        (only,) = logits
        return only
    out = params.weights[0] * logits[0]
    for weight, other in zip(params.weights[1:], logits[1:], strict=True):
        out = out + weight * other
    return out
