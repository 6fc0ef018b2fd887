"""How far a policy is from the reference on responses that it sampled itself."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, mixed, policies_of
from alignjax.models.transformer import Transformer, unembedding
from alignjax.types import Array, Batch, Params


@functools.partial(jax.jit, static_argnames="config")
def against(
    params: Params | Mixture, ref_params: Params, batch: Batch, *, config: ModelConfig
) -> tuple[Array, Array]:
    """The reference's log-probability of responses, and the policy's divergence along them.

    For responses sampled from the policy at temperature 1::

        KL(pi || ref) = E_y sum_t KL(pi(. | x, y_<t) || ref(. | x, y_<t))

    The inner divergences are exact, over the whole vocabulary: the estimate is unbiased like the
    mean of ``log pi(y) - log ref(y)``, never negative, and varies much less.

    Args:
      params: the policy, or a mixture of policies.
      ref_params: the reference, of the same shape.
      batch: B prompts with K responses each.
      config: the networks' shape; ``logits_chunk`` positions are projected at a time.

    Returns:
      Twice ``[B, K]`` float32 nats: ``log ref(y)``, and the sum over y's tokens.
    """
    r = batch.response.shape[-1]
    mask = jnp.arange(r) < batch.response_length[..., None]
    target = jnp.where(mask, batch.response, 0)
    size = min(config.logits_chunk, r)
    parts = -(-r // size)

    def hidden(p: Params) -> Array:
        out: Any = Transformer(config).apply(
            {"params": p}, batch.prompt, batch.prompt_length, target
        )
        return chunks(out)

    def chunks(x: Array) -> Array:  # [parts, B, K, size, ...]
        fill = [(0, 0)] * x.ndim
        fill[2] = (0, parts * size - r)
        x = jnp.pad(x, fill)
        return jnp.moveaxis(x.reshape(*x.shape[:2], parts, size, *x.shape[3:]), 2, 0)

    networks = (*policies_of(params), ref_params)

    def one(part: tuple[Array, ...]) -> tuple[Array, Array]:
        *states, ids = part
        *each, reference = (logits(h, p) for h, p in zip(states, networks, strict=True))
        ours, theirs = jax.nn.log_softmax(mixed(params, each)), jax.nn.log_softmax(reference)
        chosen = jnp.take_along_axis(theirs, ids[..., None], axis=-1)[..., 0]
        return chosen, jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)

    def logits(h: Array, p: Params) -> Array:
        table = unembedding(p, config).astype(h.dtype)
        out = jnp.einsum("bkrd,vd->bkrv", h, table, preferred_element_type=jnp.float32)
        return soft_cap(out, config.logit_softcap)

    found = jax.lax.map(one, (*map(hidden, networks), chunks(target)))
    b, k = target.shape[:2]
    logps, kl = (jnp.moveaxis(x, 0, 2).reshape(b, k, parts * size)[..., :r] for x in found)
    return jnp.where(mask, logps, 0.0).sum(-1), jnp.where(mask, kl, 0.0).sum(-1)
