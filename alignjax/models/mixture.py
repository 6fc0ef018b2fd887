"""Combines policies of one architecture: averages their parameters, or mixes their probabilities.

`average` averages parameters (rewarded soups). `mix` is multi-objective decoding: MOD (Shi et al.,
arXiv 2406.18853) samples every token from

    pi(v | x, y_<t)  ~  prod_m pi_m(v | x, y_<t) ** w_m

The code sums logits instead of log-probabilities, which changes only a constant. One policy of
weight 1 gives its own logits, bit for bit.
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
    """Policies and their weights, from `mix`; other weights need no compilation."""

    policies: tuple[Params, ...]  # M of the same shape; they may share arrays
    weights: Array  # [M] float32


def mix(policies: Sequence[Params], weights: Sequence[float]) -> Mixture:
    """Makes a mixture of policies of one architecture.

    Args:
      policies: M parameter trees with the same names, shapes and types.
      weights: M numbers >= 0; they need not sum to 1.

    Raises:
      UserError: the policies have different shapes, or the weights are negative, not finite or all
        0, or not one per policy.
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
    """Averages networks, ``sum_k w_k theta_k``, in float32; keeps their dtypes.

    Args:
      networks: M parameter trees of the same shape; a single one is returned unchanged.
      weights: M numbers.
    """
    if len(networks) == 1:
        return networks[0]

    def average_leaf(*leaves: Array) -> Array:
        wide = jnp.promote_types(leaves[0].dtype, jnp.float32)
        total = sum(w * x.astype(wide) for w, x in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(average_leaf, *networks)


def policies_of(params: Params | Mixture) -> tuple[Params, ...]:
    """Returns the policies to run: one, or those of a mixture."""
    return params.policies if isinstance(params, Mixture) else (params,)


def each_policy(function: Callable[[Params], Params], params: Params | Mixture) -> Params | Mixture:
    """Applies a function to each policy."""
    if not isinstance(params, Mixture):
        return function(params)
    return dataclasses.replace(params, policies=tuple(function(p) for p in params.policies))


def mix_logits(params: Params | Mixture | None, logits: Sequence[Array]) -> Array:
    """Computes a mixture's logits ``[..., vocab]``; a single policy's are returned unchanged."""
    if not isinstance(params, Mixture):
        (only,) = logits
        return only
    out = params.weights[0] * logits[0]
    for weight, other in zip(params.weights[1:], logits[1:], strict=True):
        out = out + weight * other
    return out
