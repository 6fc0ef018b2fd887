"""Decoding: K responses per prompt from one prefill, with a cache of keys and values.

The prompt runs once; its keys and values are shared by the K responses. Randomness is derived
from ``(key, prompt_id, response number, token number)``, so what is sampled for a prompt depends
neither on the batch it is in nor on the number of devices. `respond` in `sampling.generate` is
what calls this on text.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, each_policy, mixed, policies_of
from alignjax.models.transformer import Cache, Transformer, unembedding
from alignjax.runtime.sharding import unshard_weights
from alignjax.sampling.logits import keep_likely, penalise, pick, seen_in
from alignjax.types import Array, Params


@functools.partial(
    jax.jit,
    static_argnames=(
        *("config", "samples", "max_new_tokens", "eos"),
        *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "gather_weights"),
    ),
)
def sample(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    prompt_id: Array,
    key: Array,
    *,
    config: ModelConfig,
    samples: int,
    max_new_tokens: int,
    eos: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    gather_weights: bool = True,
) -> tuple[Array, Array, Array]:
    """Samples K responses for each prompt; stops when all have ended.

    Args:
      params: the policy, or a mixture of policies.
      prompt: ``[B, P]`` int32, left-padded.
      prompt_length: ``[B]`` int32; 0: a row of padding, to which nothing is sampled.
      prompt_id: ``[B]`` int32, seeds each prompt's randomness.
      key: PRNG key of the whole call.
      config: the policy's shape.
      samples: K.
      max_new_tokens: R, the room for a response, end-of-sequence included.
      eos: id that ends a response.
      temperature: 0 takes the likeliest id, after the repetition penalty.
      top_k, top_p, min_p, repetition_penalty: see `alignjax.sampling.logits`.
      gather_weights: once, before the first token (`sharding.unshard_weights`), not at every token;
        what is sampled is the same, up to the rounding of logits.

    Returns:
      ``[B, K, R]`` int32 responses (0 after their end), ``[B, K]`` int32 lengths with the
      end-of-sequence counted, and ``[B, K]`` float32 log-probabilities in nats of what was
      sampled, under the policy (or the mixture) itself: temperature 1, nothing cut or penalised.
    """
    if gather_weights:
        params = each_policy(functools.partial(unshard_weights, config=config), params)
    b, k, r = len(prompt), samples, max_new_tokens
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(prompt_id)
    keys = jax.vmap(lambda q: jax.vmap(lambda j: jax.random.fold_in(q, j))(jnp.arange(k)))(keys)
    penalised = repetition_penalty != 1.0

    def draw(hidden: Hidden, t: Array, seen: Array | None) -> tuple[Array, Array]:
        logits = logits_of(params, hidden, config)
        scores = logits if seen is None else penalise(logits, seen, repetition_penalty)
        if temperature == 0:
            token = jnp.argmax(scores, axis=-1)
        else:
            step_keys = jax.vmap(jax.vmap(lambda q: jax.random.fold_in(q, t)))(keys)
            kept = keep_likely(scores / temperature, top_k=top_k, top_p=top_p, min_p=min_p)
            token = jax.vmap(jax.vmap(pick))(step_keys, kept)
        token = token.astype(jnp.int32)
        chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
        return token, chosen - jax.nn.logsumexp(logits, axis=-1)

    Drawn = tuple[Array, Array, Array, Array, Array, Array | None]

    def extend(t: Array, hidden: Hidden, drawn: Drawn) -> Drawn:
        _, out, length, total, done, seen = drawn
        token, logps = draw(hidden, t, seen)
        token = jnp.where(done, 0, token)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, :, None], t, axis=2)
        length = length + ~done
        total = total + jnp.where(done, 0.0, logps)
        done = done | (token == eos)
        if seen is not None:
            rows, places = jnp.arange(b)[:, None], jnp.arange(k)
            seen = seen.at[rows, places, token].set(True)
        return token, out, length, total, done, seen

    def go_on(carry: tuple[Array, Drawn, Caches]) -> Array:
        t, (*_, done, _), _ = carry
        return (t < r) & ~done.all()

    def body(carry: tuple[Array, Drawn, Caches]) -> tuple[Array, Drawn, Caches]:
        t, drawn, caches = carry
        hidden, caches = decode(params, drawn[0], prompt_length, t - 1, caches, config)
        return t + 1, extend(t, hidden, drawn), caches

    hidden, caches = prefill(params, prompt, prompt_length, k, r, config)
    seen = None
    if penalised:
        seen = seen_in(prompt, prompt_length, config.vocab_size)
        seen = jnp.broadcast_to(seen[:, None], (b, k, config.vocab_size))
    nothing: Drawn = (
        jnp.zeros((b, k), jnp.int32),
        jnp.zeros((b, k, r), jnp.int32),
        jnp.zeros((b, k), jnp.int32),
        jnp.zeros((b, k), jnp.float32),
        jnp.broadcast_to(prompt_length[:, None] == 0, (b, k)),
        seen,
    )
    # The first token needs the prefill alone: a response of n tokens takes n - 1 decoding steps.
    first = extend(jnp.zeros((), jnp.int32), hidden, nothing)
    _, last, _ = jax.lax.while_loop(go_on, body, (jnp.ones((), jnp.int32), first, caches))
    _, out, length, total, _, _ = last
    return out, length, total


Hidden = tuple[Array, ...]  # one [B, K, width] per policy
Caches = tuple[Cache, ...]


def prefill(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    k: int,
    r: int,
    config: ModelConfig,
) -> tuple[Hidden, Caches]:
    """Runs the prompts by every policy; makes room for K responses of R tokens each."""
    found: Any = [
        Transformer(config).apply(
            {"params": p}, prompt, prompt_length, k, r, method=Transformer.prefill
        )
        for p in policies_of(params)
    ]
    hidden = [jnp.broadcast_to(h[:, None], (len(prompt), k, h.shape[-1])) for h, _ in found]
    return tuple(hidden), tuple(cache for _, cache in found)


def decode(
    params: Params | Mixture,
    token: Array,
    prompt_length: Array,
    position: Array,
    caches: Caches,
    config: ModelConfig,
) -> tuple[Hidden, Caches]:
    """Runs ``[B, K]`` tokens, number ``position`` of their responses, by every policy."""
    found: Any = [
        Transformer(config).apply(
            {"params": p}, token, prompt_length, position, cache, method=Transformer.decode
        )
        for p, cache in zip(policies_of(params), caches, strict=True)
    ]
    return tuple(h for h, _ in found), tuple(cache for _, cache in found)


def logits_of(params: Params | Mixture, hidden: Hidden, config: ModelConfig) -> Array:
    """``[B, K, vocab]`` float32."""
    each = []
    for p, h in zip(policies_of(params), hidden, strict=True):
        table = unembedding(p, config).astype(h.dtype)
        logits = jnp.einsum("bkd,vd->bkv", h, table, preferred_element_type=jnp.float32)
        each.append(soft_cap(logits, config.logit_softcap))
    return mixed(params, each)
