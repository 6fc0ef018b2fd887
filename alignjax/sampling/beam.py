"""Beam search: the likeliest responses that a search of limited width finds; nothing is drawn."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, each_policy
from alignjax.runtime.sharding import unshard_weights
from alignjax.sampling.decode import Caches, Hidden, decode, logits_of, prefill
from alignjax.types import Array, Params


class Beams(NamedTuple):
    """Responses that may still grow, and the best complete ones."""

    ids: Array  # [B, W, R] int32, in the order of their log-probability
    nats: Array  # [B, W] float32; -inf: no such response
    best: Array  # [B, K, R] int32, in the order of their score
    length: Array  # [B, K] int32
    total: Array  # [B, K] float32 nats
    score: Array  # [B, K] float32; -inf: not found yet


@functools.partial(
    jax.jit,
    static_argnames=(
        *("config", "samples", "num_beams", "max_new_tokens", "eos", "length_penalty"),
        "gather_weights",
    ),
)
def beam_search(
    params: Params | Mixture,
    prompt: Array,
    prompt_length: Array,
    *,
    config: ModelConfig,
    samples: int,
    num_beams: int,
    max_new_tokens: int,
    eos: int,
    length_penalty: float = 1.0,
    gather_weights: bool = True,
) -> tuple[Array, Array, Array]:
    """The K best responses to each prompt that W beams find, best first.

    What is best is the score ``log pi(y | x) / |y| ** length_penalty``, where |y| counts the
    end-of-sequence: 0 compares probabilities, 1 means per token, more favours longer ones. At each
    token every beam may end, and the W likeliest continuations that do not end go on. Beams that
    fill the room are responses, too. The search stops when no beam can reach a better score any
    more; that changes no result.

    Args:
      params: the policy, or a mixture of policies.
      prompt: ``[B, P]`` int32, left-padded.
      prompt_length: ``[B]`` int32; 0: a row of padding, for which nothing is searched.
      config: the policy's shape.
      samples: K, at most W.
      num_beams: W.
      max_new_tokens: R, the room for a response, end-of-sequence included.
      eos: id that ends a response.
      length_penalty: see above.
      gather_weights: as for `decode.sample`.

    Returns:
      ``[B, K, R]`` int32 responses (0 after their end), ``[B, K]`` int32 lengths with the
      end-of-sequence counted, and ``[B, K]`` float32 log-probabilities in nats. Where there are
      fewer than K responses at all, the length is 0 and the log-probability -inf.
    """
    if gather_weights:
        params = each_policy(functools.partial(unshard_weights, config=config), params)
    b, k, w, r = len(prompt), samples, num_beams, max_new_tokens

    def score(nats: Array, length: Array) -> Array:
        return nats / length.astype(jnp.float32) ** length_penalty

    def keep(found: Beams, ids: Array, nats: Array, length: Array) -> Beams:
        """The best of those kept and of W more responses of one length."""
        scores = jnp.concatenate([found.score, score(nats, length)], axis=1)
        top, place = jax.lax.top_k(scores, k)
        lengths = jnp.where(jnp.isfinite(nats), length, 0)
        return found._replace(
            best=_pick(jnp.concatenate([found.best, ids], axis=1), place),
            length=_pick(jnp.concatenate([found.length, lengths], axis=1), place),
            total=_pick(jnp.concatenate([found.total, nats], axis=1), place),
            score=top,
        )

    def extend(t: Array, hidden: Hidden, found: Beams) -> tuple[Beams, Array, Array]:
        """One token more; also which beam each one continues, and with what."""
        logits = logits_of(params, hidden, config)
        logps = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        nats = found.nats[..., None] + logps
        ended = jax.lax.dynamic_update_slice_in_dim(
            found.ids, jnp.full((b, w, 1), eos, jnp.int32), t, axis=2
        )
        after = keep(found, ended, nats[..., eos], t + 1)
        going = nats.at[..., eos].set(-jnp.inf).reshape(b, -1)
        top, place = jax.lax.top_k(going, w)
        parent, token = place // config.vocab_size, place % config.vocab_size
        ids = jax.lax.dynamic_update_slice_in_dim(
            _pick(found.ids, parent), token[:, :, None], t, axis=2
        )
        after = after._replace(ids=ids, nats=top)
        full = keep(after, ids, jnp.where(t + 1 == r, top, -jnp.inf), t + 1)
        return full, parent, token

    def go_on(carry: tuple[Array, Beams, Array, Caches]) -> Array:
        t, found, _, _ = carry
        # Nats only fall, so a score is bounded by today's nats over the most favourable length.
        favourable = jnp.asarray(r) if length_penalty >= 0 else t + 1
        hope = score(found.nats.max(axis=1), favourable) > found.score[:, -1]
        return (t < r) & hope.any()

    def body(carry: tuple[Array, Beams, Array, Caches]) -> tuple[Array, Beams, Array, Caches]:
        t, found, token, caches = carry
        hidden, caches = decode(params, token, prompt_length, t - 1, caches, config)
        found, parent, token = extend(t, hidden, found)
        return t + 1, found, token, _reordered(caches, parent)

    hidden, caches = prefill(params, prompt, prompt_length, w, r, config)
    first = (jnp.arange(w) == 0) & (prompt_length[:, None] > 0)  # the beams are one, so far
    nothing = Beams(
        ids=jnp.zeros((b, w, r), jnp.int32),
        nats=jnp.where(first, 0.0, -jnp.inf),
        best=jnp.zeros((b, k, r), jnp.int32),
        length=jnp.zeros((b, k), jnp.int32),
        total=jnp.full((b, k), -jnp.inf),
        score=jnp.full((b, k), -jnp.inf),
    )
    found, _, token = extend(jnp.zeros((), jnp.int32), hidden, nothing)
    carry = (jnp.ones((), jnp.int32), found, token, caches)
    _, found, _, _ = jax.lax.while_loop(go_on, body, carry)
    return found.best, found.length, found.total


def _pick(x: Array, place: Array) -> Array:
    """``x[i, place[i]]`` for every row i: ``[B, N, ...]`` and ``[B, W]`` to ``[B, W, ...]``."""
    return jnp.take_along_axis(x, place.reshape(*place.shape, *[1] * (x.ndim - 2)), axis=1)


def _reordered(caches: Caches, parent: Array) -> Caches:
    """Every beam's keys and values are those of the beam that it continues."""

    def pick(x: Array) -> Array:
        return jax.vmap(lambda layer: _pick(layer, parent))(x)

    return tuple(
        dataclasses.replace(cache, key=pick(cache.key), value=pick(cache.value)) for cache in caches
    )
