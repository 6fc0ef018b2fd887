"""Averages over the rows of a batch that is taken in one part or in several.

A mean over micro-batches is not the mean of their means. So sums are carried, in float32, and
divided once at the end: splitting a batch changes nothing but rounding.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from alignjax.types import Array, Batch, Metrics, Params


def weighted_sums(loss: Array, metrics: Metrics, weight: Array) -> tuple[Array, Metrics]:
    """``sum_b weight_b x_b`` of the losses and of every metric, in float32.

    Rows of weight 0 are left out by selection: their values, NaN too, change nothing.

    Raises:
      AssertionError: the losses or a metric are not ``[B]``. A loss of ``[B, 1]`` would broadcast
        against the weights to ``[B, B]`` and train on the wrong mean.
    """
    chex.assert_equal_shape([weight, loss, *metrics.values()])

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(weight > 0, x.astype(jnp.float32) * weight, 0.0))

    return total(loss), {name: total(x) for name, x in metrics.items()}


def split(batch: Batch, parts: int) -> Batch:
    """``[B, ...]`` -> ``[parts, B / parts, ...]``; row i goes to micro-batch i % parts.

    So every device keeps the rows it holds.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )


def add_gradients(
    sums: Callable[[Params, Batch], tuple[Array, Metrics]],
    params: Params,
    batch: Batch,
    parts: int,
) -> tuple[tuple[Array, Metrics], Params]:
    """Adds up losses, metrics and float32 gradients of a function over micro-batches.

    Args:
      sums: ``(params, rows) -> (sum of losses, sums of metrics)``.
      params: where the gradient is taken.
      batch: all rows.
      parts: micro-batches.
    """
    gradient = jax.value_and_grad(sums, has_aux=True)
    if parts == 1:
        return gradient(params, batch)
    rows = split(batch, parts)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows))
    # float32 even for bfloat16 parameters: a small gradient added to a large sum would vanish.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "f4")), shapes)

    def body(so_far: Any, part: Batch) -> tuple[Any, None]:
        new = gradient(params, part)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), so_far, new), None

    return jax.lax.scan(body, zeros, rows)[0]
