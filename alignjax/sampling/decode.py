"""Samples K responses per prompt from one prefill, with a cache of keys and values.

The prompt runs once; the K responses share its keys and values. Randomness is derived from
``(key, prompt_id, response number, token number)``, so the samples for a prompt depend neither on
its batch nor on the number of devices. `sampling.generate.respond` does this for text.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alignjax.config import SamplingConfig
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, each_policy, mix_logits, policies_of
from alignjax.models.transformer import Cache, Transformer, unembedding
from alignjax.runtime.sharding import unshard_weights
from alignjax.sampling.logits import keep_likely, penalise, pick, seen_in
from alignjax.types import Array, Params

Hidden = tuple[Array, ...]  # one [B, K, width] per policy
Caches = tuple[Cache, ...]  # one per policy


class Responses(NamedTuple):
    """K responses to each prompt, while they grow."""

    token: Array  # [B, K] int32, the newest
    ids: Array  # [B, K, R] int32, 0 where there is no token
    length: Array  # [B, K] int32, end-of-sequence included
    nats: Array  # [B, K] float32 log-probabilities
    ended: Array  # [B, K] bool
    seen: Array | None  # [B, K, vocab] bool, earlier ids; None: no repetition penalty


@functools.partial(jax.jit, static_argnames=("config", "settings", "eos"))
def sample(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    prompt_id: Array,
    key: Array,
    *,
    config: ModelConfig,
    settings: SamplingConfig,
    eos: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """Samples K responses for each prompt; stops when all have ended.

    Args:
      params: the policy, or a mixture of policies.
      prompt: ``[B, P]`` int32, left-padded.
      prompt_length: ``[B]`` int32; 0: a padding row, for which nothing is sampled.
      prompt_id: ``[B]`` int32, seeds each prompt's randomness.
      key: PRNG key of the whole call.
      config: the policy's shape.
      settings: how to sample. Its ``samples`` is K, its ``max_new_tokens`` R.
      eos: ids that end a response.

    Returns:
      ``[B, K, R]`` int32 responses (0 after their end), ``[B, K]`` int32 lengths with the
      end-of-sequence, and ``[B, K]`` float32 log-probabilities of the samples in nats, under the
      policy (or mixture) at temperature 1 with no id cut or penalised.
    """
    if settings.gather_weights:  # else the loop gathers them at every token
        params = each_policy(functools.partial(unshard_weights, config=config), params)
    k, r = settings.samples, settings.max_new_tokens
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(prompt_id)
    keys = jax.vmap(lambda q: jax.vmap(lambda j: jax.random.fold_in(q, j))(jnp.arange(k)))(keys)

    def extend(t: Array, hidden: Hidden, responses: Responses) -> Responses:
        logits = logits_of(params, hidden, config)
        token = _draw(logits, responses.seen, keys, t, settings)
        return _append(responses, t, token, logits, eos)

    def unfinished(carry: tuple[Array, Responses, Caches]) -> Array:
        t, responses, _ = carry
        return (t < r) & ~responses.ended.all()

    def body(carry: tuple[Array, Responses, Caches]) -> tuple[Array, Responses, Caches]:
        t, responses, caches = carry
        hidden, caches = decode(params, responses.token, prompt_length, t - 1, caches, config)
        return t + 1, extend(t, hidden, responses), caches

    hidden, caches = prefill(params, prompt, prompt_length, k, r, config)
    empty = _no_tokens(prompt, prompt_length, config.vocab_size, settings)
    # The first token needs only the prefill: a response of n tokens takes n - 1 decoding steps.
    first = extend(jnp.zeros((), jnp.int32), hidden, empty)
    _, last, _ = jax.lax.while_loop(unfinished, body, (jnp.ones((), jnp.int32), first, caches))
    return last.ids, last.length, last.nats


def _no_tokens(
    prompt: Array, prompt_length: Array, vocab: int, settings: SamplingConfig
) -> Responses:
    b, k, r = len(prompt), settings.samples, settings.max_new_tokens
    seen = None
    if settings.repetition_penalty != 1.0:
        seen = seen_in(prompt, prompt_length, vocab)
        seen = jnp.broadcast_to(seen[:, None], (b, k, vocab))
    return Responses(
        token=jnp.zeros((b, k), jnp.int32),
        ids=jnp.zeros((b, k, r), jnp.int32),
        length=jnp.zeros((b, k), jnp.int32),
        nats=jnp.zeros((b, k), jnp.float32),
        ended=jnp.broadcast_to(prompt_length[:, None] == 0, (b, k)),
        seen=seen,
    )


def _draw(
    logits: Array, seen: Array | None, keys: Array, t: Array, settings: SamplingConfig
) -> Array:
    """Draws token number t of every response, ``[B, K]`` int32."""
    scores = logits if seen is None else penalise(logits, seen, settings.repetition_penalty)
    if settings.temperature == 0:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.vmap(lambda q: jax.random.fold_in(q, t)))(keys)
    likely = keep_likely(
        scores / settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
    )
    return jax.vmap(jax.vmap(pick))(keys, likely).astype(jnp.int32)


def _append(
    responses: Responses, t: Array, token: Array, logits: Array, eos: tuple[int, ...]
) -> Responses:
    """Adds a token to all responses that have not ended."""
    _, ids, length, nats, ended, seen = responses
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    logps = chosen - jax.nn.logsumexp(logits, axis=-1)
    token = jnp.where(ended, 0, token)
    if seen is not None:
        rows, places = jnp.arange(len(token))[:, None], jnp.arange(token.shape[1])
        seen = seen.at[rows, places, token].set(True)
    return Responses(
        token=token,
        ids=jax.lax.dynamic_update_slice_in_dim(ids, token[:, :, None], t, axis=2),
        length=length + ~ended,
        nats=nats + jnp.where(ended, 0.0, logps),
        ended=ended | jnp.isin(token, jnp.array(eos, jnp.int32)),
        seen=seen,
    )


def prefill(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    k: int,
    r: int,
    config: ModelConfig,
) -> tuple[Hidden, Caches]:
    """Runs the prompts through every policy; makes room for K responses of R tokens each."""
    outputs: Any = [
        Transformer(config).apply(
            {"params": p}, prompt, prompt_length, k, r, method=Transformer.prefill
        )
        for p in policies_of(params)
    ]
    hidden = [jnp.broadcast_to(h[:, None], (len(prompt), k, h.shape[-1])) for h, _ in outputs]
    return tuple(hidden), tuple(cache for _, cache in outputs)


def decode(
    params: Params | Mixture,
    token: Array,
    prompt_length: Array,
    position: Array,
    caches: Caches,
    config: ModelConfig,
) -> tuple[Hidden, Caches]:
    """Runs ``[B, K]`` tokens, number ``position`` of their responses, through every policy."""
    outputs: Any = [
        Transformer(config).apply(
            {"params": p}, token, prompt_length, position, cache, method=Transformer.decode
        )
        for p, cache in zip(policies_of(params), caches, strict=True)
    ]
    return tuple(h for h, _ in outputs), tuple(cache for _, cache in outputs)


def logits_of(params: Params | Mixture, hidden: Hidden, config: ModelConfig) -> Array:
    """Computes the logits of the next token, ``[B, K, vocab]`` float32."""
    each = []
    for p, h in zip(policies_of(params), hidden, strict=True):
        table = unembedding(p, config).astype(h.dtype)
        logits = jnp.einsum("bkd,vd->bkv", h, table, preferred_element_type=jnp.float32)
        each.append(soft_cap(logits, config.logit_softcap))
    return mix_logits(params, each)
