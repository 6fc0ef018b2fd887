"""Response log-probabilities: the only place where tokens become nats.

The prompt runs once per batch row, whatever K is; the projection to the vocabulary runs over
``logits_chunk`` positions of each response at a time and is recomputed in the backward pass, so
that no ``[tokens, vocab]`` array of a whole batch of longer responses ever exists.
"""

from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models import layout
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.transformer import Transformer, unembedding
from alignjax.types import Array, Batch, Params


def response_logps(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Summed log-probability of every response, ``log pi(response | prompt)``.

    Args:
      params: the network's parameters.
      batch: B prompts with K responses each.
      config: the network's shape; ``logits_chunk`` positions are projected at a time.

    Returns:
      ``[B, K]`` float32 nats; 0 for absent responses (length 0).
    """
    return token_logps(params, batch, config=config).sum(axis=-1)


# The same, compiled: for scoring outside a training step. One program per batch shape and model.
score_responses = jax.jit(response_logps, static_argnames="config")


def token_logps(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Log-probability of every response token.

    Returns:
      ``[B, K, R]`` float32 nats; 0 at padding.
    """
    # Padding may hold any id, also one outside the vocabulary, which the network would answer with
    # NaN: it is run and scored as id 0, and masked.
    mask = jnp.arange(batch.response.shape[-1]) < batch.response_length[..., None]
    target = jnp.where(mask, batch.response, 0)
    hidden: Any = Transformer(config).apply(
        {"params": params}, batch.prompt, batch.prompt_length, target
    )
    # Gathered once, outside of the loop over chunks.
    table = layout.move(unembedding(params, config).astype(hidden.dtype), *layout.LINES)
    logps = chunked_logps(
        hidden,
        table,
        target,
        config.logits_chunk,
        config.logit_softcap,
    )
    return jnp.where(mask, logps, 0.0)


def chunked_logps(
    hidden: Array, table: Array, target: Array, chunk: int, softcap: float | None = None
) -> Array:
    """``log softmax(hidden @ table.T)[target]`` without the whole ``[..., vocab]`` array.

    Args:
      hidden: ``[B, K, R, width]``.
      table: ``[vocab, width]``.
      target: ``[B, K, R]`` int32.
      chunk: positions along R at a time; at most ``[B, K, chunk, vocab]`` exists at once.
      softcap: of the logits, see `attention.soft_cap`.

    Returns:
      ``[B, K, R]`` float32 nats.
    """
    b, k, r, width = hidden.shape
    size = min(chunk, r)

    tables = layout.copies(table, b)
    places = tables.shape[0]

    @jax.checkpoint  # the logits of a chunk are cheaper to recompute than to keep
    def one(hidden: Array, target: Array) -> Array:
        split = hidden.reshape(places, b // places, *hidden.shape[1:])
        logits = jnp.einsum("fbkrd,fvd->fbkrv", split, tables, preferred_element_type=jnp.float32)
        logits = soft_cap(logits.reshape(*hidden.shape[:-1], -1), softcap)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    if size == r:
        return one(hidden, target)
    parts = -(-r // size)
    fill = ((0, 0), (0, 0), (0, parts * size - r))
    hidden, target = jnp.pad(hidden, (*fill, (0, 0))), jnp.pad(target, fill)
    split_hidden = jnp.moveaxis(hidden.reshape(b, k, parts, size, width), 2, 0)
    split_target = jnp.moveaxis(target.reshape(b, k, parts, size), 2, 0)
    _, out = jax.lax.scan(lambda _, x: (None, one(*x)), None, (split_hidden, split_target))
    return jnp.moveaxis(out, 0, 2).reshape(b, k, parts * size)[..., :r]
