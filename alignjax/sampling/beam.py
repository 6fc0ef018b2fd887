"""Beam search for the likeliest responses; nothing is random."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.config import SamplingConfig
from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, each_policy
from alignjax.runtime.sharding import unshard_weights
from alignjax.sampling.decode import Caches, decode, logits_of, prefill
from alignjax.types import Array, Params


class Beams(NamedTuple):
    """Responses that may still grow, and the best complete ones."""

    ids: Array  # [B, W, R] int32, likeliest first
    nats: Array  # [B, W] float32 log-probabilities; -inf: no such response
    best: Array  # [B, K, R] int32, highest score first
    length: Array  # [B, K] int32
    total: Array  # [B, K] float32 log-probabilities, nats
    score: Array  # [B, K] float32; -inf: not found yet


@functools.partial(jax.jit, static_argnames=("config", "settings", "eos"))
def beam_search(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    *,
    config: ModelConfig,
    settings: SamplingConfig,
    eos: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """Searches with W beams for the K best responses to each prompt, best first.

    The best response has the highest score ``log pi(y | x) / |y| ** length_penalty``, where |y|
    includes the end-of-sequence: 0 compares probabilities, 1 means per token, larger values favour
    longer responses. At each token every beam may end, and the W likeliest continuations that do
    not end are kept. Beams of R tokens are responses too. The search stops as soon as no beam can
    reach a better score.

    Args:
      params: the policy, or a mixture of policies.
      prompt: ``[B, P]`` int32, left-padded.
      prompt_length: ``[B]`` int32; 0: a padding row, for which nothing is searched.
      config: the policy's shape.
      settings: its ``samples`` is K, ``num_beams`` W, at least K, and ``max_new_tokens`` R.
      eos: ids that end a response.

    Returns:
      ``[B, K, R]`` int32 responses (0 after their end), ``[B, K]`` int32 lengths with the
      end-of-sequence, and ``[B, K]`` float32 log-probabilities in nats. Where fewer than K
      responses exist, the length is 0 and the log-probability -inf.
    """
    if settings.gather_weights:  # else the loop gathers them at every token
        params = each_policy(functools.partial(unshard_weights, config=config), params)
    eos = tuple(i for i in eos if i < config.vocab_size)  # others have no logit
    w, r, penalty = settings.num_beams, settings.max_new_tokens, settings.length_penalty

    def can_improve(carry: tuple[Array, Beams, Array, Caches]) -> Array:
        t, beams, _, _ = carry
        # Log-probabilities only fall, so no beam can exceed its score at the best possible length.
        length = jnp.asarray(r) if penalty >= 0 else t + 1
        better = _score(beams.nats.max(axis=1), length, penalty) > beams.score[:, -1]
        return (t < r) & better.any()

    def body(carry: tuple[Array, Beams, Array, Caches]) -> tuple[Array, Beams, Array, Caches]:
        t, beams, token, caches = carry
        hidden, caches = decode(params, token, prompt_length, t - 1, caches, config)
        beams, parent, token = _extend(beams, t, logits_of(params, hidden, config), eos, penalty)
        return t + 1, beams, token, _reorder(caches, parent)

    hidden, caches = prefill(params, prompt, prompt_length, w, r, config)
    empty = _no_tokens(prompt_length, settings)
    zero, logits = jnp.zeros((), jnp.int32), logits_of(params, hidden, config)
    beams, _, token = _extend(empty, zero, logits, eos, penalty)
    carry = (jnp.ones((), jnp.int32), beams, token, caches)
    _, beams, _, _ = jax.lax.while_loop(can_improve, body, carry)
    return beams.best, beams.length, beams.total


def _no_tokens(prompt_length: Array, settings: SamplingConfig) -> Beams:
    b, k = len(prompt_length), settings.samples
    w, r = settings.num_beams, settings.max_new_tokens
    # All beams are equal before the first token, so only the first one is continued.
    first = (jnp.arange(w) == 0) & (prompt_length[:, None] > 0)
    return Beams(
        ids=jnp.zeros((b, w, r), jnp.int32),
        nats=jnp.where(first, 0.0, -jnp.inf),
        best=jnp.zeros((b, k, r), jnp.int32),
        length=jnp.zeros((b, k), jnp.int32),
        total=jnp.full((b, k), -jnp.inf),
        score=jnp.full((b, k), -jnp.inf),
    )


def _extend(
    beams: Beams, t: Array, logits: Array, eos: tuple[int, ...], penalty: float
) -> tuple[Beams, Array, Array]:
    """Adds token number t; also returns which beam each one continues, and with which token."""
    b, w, r = beams.ids.shape
    logps = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    nats = beams.nats[..., None] + logps
    complete = beams
    for end in eos:
        ended = jax.lax.dynamic_update_slice_in_dim(
            beams.ids, jnp.full((b, w, 1), end, jnp.int32), t, axis=2
        )
        complete = _keep_best(complete, ended, nats[..., end], t + 1, penalty)
    not_ended = nats.at[..., jnp.array(eos, jnp.int32)].set(-jnp.inf).reshape(b, -1)
    top, place = jax.lax.top_k(not_ended, w)
    parent, token = place // logits.shape[-1], place % logits.shape[-1]
    ids = jax.lax.dynamic_update_slice_in_dim(
        _pick(beams.ids, parent), token[:, :, None], t, axis=2
    )
    growing = complete._replace(ids=ids, nats=top)
    full = jnp.where(t + 1 == r, top, -jnp.inf)
    return _keep_best(growing, ids, full, t + 1, penalty), parent, token


def _keep_best(beams: Beams, ids: Array, nats: Array, length: Array, penalty: float) -> Beams:
    """Keeps the K best of the complete responses so far and W new ones of one length."""
    scores = jnp.concatenate([beams.score, _score(nats, length, penalty)], axis=1)
    top, place = jax.lax.top_k(scores, beams.score.shape[1])
    lengths = jnp.where(jnp.isfinite(nats), length, 0)
    return beams._replace(
        best=_pick(jnp.concatenate([beams.best, ids], axis=1), place),
        length=_pick(jnp.concatenate([beams.length, lengths], axis=1), place),
        total=_pick(jnp.concatenate([beams.total, nats], axis=1), place),
        score=top,
    )


def _score(nats: Array, length: Array, penalty: float) -> Array:
    return nats / length.astype(jnp.float32) ** penalty


def _pick(x: Array, place: Array) -> Array:
    """``x[i, place[i]]`` for every row i: ``[B, N, ...]`` and ``[B, W]`` to ``[B, W, ...]``."""
    return jnp.take_along_axis(x, place.reshape(*place.shape, *[1] * (x.ndim - 2)), axis=1)


def _reorder(caches: Caches, parent: Array) -> Caches:
    """Gives every beam the keys and values of the beam that it continues."""

    def pick(x: Array) -> Array:
        return jax.vmap(lambda layer: _pick(layer, parent))(x)

    return tuple(
        dataclasses.replace(cache, key=pick(cache.key), value=pick(cache.value)) for cache in caches
    )
