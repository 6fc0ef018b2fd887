"""The plain way to score responses, to compare with: what a straightforward trainer does.

The prompt is repeated in front of every response, the network runs over whole sequences, the
vocabulary projection covers every position, and one softmax over the full logits follows. Same
parameters and same layers as the library's path, which must give the same numbers.
"""

import jax
import jax.numpy as jnp

from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.layer import View
from alignjax.models.transformer import Transformer, unembedding
from alignjax.types import Array, Batch, Params


def plain_logps(
    params: Params, batch: Batch, *, config: ModelConfig, total: int | None = None
) -> Array:
    """``[B, K]`` summed response log-probabilities, nats, prompt repeated and logits in full.

    Args:
      params, batch, config: as `alignjax.models.logps.response_logps` takes them.
      total: tokens that sequences are padded to; at least the longest prompt + response. None:
        P + R.
    """
    b, k, r = batch.response.shape
    p = batch.prompt.shape[1]
    prompt = jnp.repeat(batch.prompt, k, axis=0)
    tokens = jnp.concatenate([prompt, batch.response.reshape(b * k, r)], axis=1)
    padding = p - jnp.repeat(batch.prompt_length, k)
    length = jnp.repeat(batch.prompt_length, k) + batch.response_length.reshape(-1)
    tokens = jax.vmap(jnp.roll)(tokens, -padding)[:, :total]  # right-padded, as trainers have it

    def hidden(model: Transformer, tokens: Array) -> Array:
        position = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        view = View(
            **model._angles(position),
            prompt_mask=position < length[:, None],
            prompt_tokens=tokens.shape[1],
            responses=1,
        )
        return model.norm(model._through(tokens, view, None)[0])

    x = Transformer(config).apply({"params": params}, tokens, method=hidden)
    logits = jnp.einsum("btd,vd->btv", x, unembedding(params, config).astype(x.dtype)).astype(
        jnp.float32
    )
    logits = soft_cap(logits, config.logit_softcap)
    logps = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    picked = jnp.take_along_axis(logps, tokens[:, 1:, None], axis=-1)[..., 0]
    at = jnp.arange(1, tokens.shape[1])
    mask = (at >= (length - batch.response_length.reshape(-1))[:, None]) & (at < length[:, None])
    return jnp.where(mask, picked, 0.0).sum(axis=1).reshape(b, k)
