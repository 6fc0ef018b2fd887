"""Computes log-probabilities of responses, and exact divergences, in nats.

The prompt runs once per row, for any K. The projection to the vocabulary runs over
``logits_chunk`` positions of each response at a time and is recomputed in the backward pass, so
that the ``[tokens, vocab]`` array of a batch never exists.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models import kernels, layout, stream
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.mixture import Mixture, mix_logits, policies_of
from alignjax.models.stream import Stream
from alignjax.models.transformer import Transformer, unembedding
from alignjax.types import Array, Batch, Params, check_shapes


def response_logps(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Sums the log-probability of every response, ``log pi(response | prompt)``.

    Args:
      params: the network's parameters.
      batch: B prompts with K responses each.
      config: the network's shape; ``logits_chunk`` positions are projected at a time.

    Returns:
      ``[B, K]`` float32 nats; 0 for absent responses (length 0).
    """
    return token_logps(params, batch, config=config).sum(axis=-1)


@functools.partial(jax.jit, static_argnames="config")
def score_responses(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Computes `response_logps` outside a training step, as a program of its own."""
    return in_parts(functools.partial(response_logps, params, config=config), batch, config)


def in_parts(function: Callable[[Batch], Any], batch: Batch, config: ModelConfig) -> Any:
    """Applies a function to a batch, a few rows at a time; without a gradient.

    Args:
      function: returns a tree of ``[B, K, ...]`` arrays that are 0 for absent responses.
      batch: B rows.
      config: the network; with other kernels than tiles, all rows run at once.
    """
    if kernels.of_array(config, batch.prompt) != "tiles":
        return function(batch)
    return stream.in_parts(function, batch)


def token_logps(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Computes the log-probability of every response token.

    Returns:
      ``[B, K, R]`` float32 nats; 0 at padding.
    """
    logps: Array = _of_tokens(_logps_of, params, batch, config)
    return logps


def logps_and_squares(params: Params, batch: Batch, *, config: ModelConfig) -> tuple[Array, Array]:
    """Computes `response_logps`, and ``log_squares`` of `Logps`, which has no gradient.

    Returns:
      Twice ``[B, K]`` float32; 0 for absent responses.
    """
    logps, squares = _of_tokens(_logps_and_squares_of, params, batch, config)
    return logps.sum(axis=-1), squares.sum(axis=-1)


def _of_tokens(of: Callable[..., Any], params: Params, batch: Batch, config: ModelConfig) -> Any:
    """Computes what a function such as `_logps_of` makes of logits, 0 at padding."""
    check_shapes(batch)
    if kernels.of_array(config, batch.prompt) == "tiles":
        return _of_stream(of, params, batch, config)
    mask, target = _targets(batch)
    states = _states(params, batch, target, config)
    table = _table(params, states, config)
    values = _chunked(of, states, table, target, config.logits_chunk, config.logit_softcap)
    return jax.tree.map(lambda x: jnp.where(mask, x, 0.0), values)


def _of_stream(of: Callable[..., Any], params: Params, batch: Batch, config: ModelConfig) -> Any:
    """Computes `_of_tokens` without padding."""
    packed = stream.pack(batch)
    states = _stream_states(params, packed, config)
    places = len(packed.token)
    tables = layout.copies(_table(params, states, config), places)
    project = functools.partial(of, softcap=config.logit_softcap)
    size = _positions(batch, places, config)
    values = stream.over_filled(project, tables, states, packed.target, packed.scored, size)
    return jax.tree.map(lambda x: stream.by_response(x, packed, batch), values)


def _stream_states(params: Params, packed: Stream, config: ModelConfig) -> Array:
    states: Any = Transformer(config).apply(
        {"params": params}, packed, "before", method=Transformer.stream
    )
    return states


def _positions(batch: Batch, places: int, config: ModelConfig) -> int:
    """Returns how many positions of a stream are projected to the vocabulary at a time."""
    b, k, _ = batch.response.shape
    return config.logits_chunk * k * (b // places)


def _logps_of(tables: Array, states: Array, target: Array, softcap: float | None) -> Array:
    logits = _logits(states, tables, softcap)
    return _pick(logits, target) - jax.nn.logsumexp(logits, axis=-1)


def _logps_and_squares_of(
    tables: Array, states: Array, target: Array, softcap: float | None
) -> tuple[Array, Array]:
    logits = _logits(states, tables, softcap)
    total, fixed = jax.nn.logsumexp(logits, axis=-1), jax.lax.stop_gradient(logits)
    squares = jax.nn.logsumexp(2 * fixed, axis=-1) - 2 * jax.lax.stop_gradient(total)
    return _pick(logits, target) - total, squares


def chunked_logps(
    hidden: Array, table: Array, target: Array, chunk: int, softcap: float | None = None
) -> Array:
    """Computes ``log softmax(hidden @ table.T)[target]``, a chunk of positions at a time.

    Args:
      hidden: ``[B, K, R, width]``.
      table: ``[vocab, width]``.
      target: ``[B, K, R]`` int32.
      chunk: positions along R at a time; at most ``[B, K, chunk, vocab]`` exists at once.
      softcap: cap of the logits, see `attention.soft_cap`.

    Returns:
      ``[B, K, R]`` float32 nats.
    """
    out: Array = _chunked(_logps_of, hidden, table, target, chunk, softcap)
    return out


def _chunked(
    of: Callable[..., Any],
    hidden: Array,
    table: Array,
    target: Array,
    chunk: int,
    softcap: float | None,
) -> Any:
    tables = layout.copies(table, len(hidden))

    @jax.checkpoint  # the logits of a chunk are cheaper to recompute than to keep
    def project(hidden: Array, target: Array) -> Any:
        return of(tables, hidden, target, softcap=softcap)

    return _over_chunks(project, (hidden, target), chunk)


@functools.partial(jax.jit, static_argnames="config")
def exact_kl(
    params: Params | Mixture, ref_params: Params, batch: Batch, *, config: ModelConfig
) -> tuple[Array, Array]:
    """Computes the policy's KL divergence along responses, and the reference's log-probabilities.

    For responses sampled from the policy at temperature 1::

        KL(pi || ref) = E_y sum_t KL(pi(. | x, y_<t) || ref(. | x, y_<t))

    The inner divergences are exact sums over the vocabulary. The estimate is unbiased like the mean
    of ``log pi(y) - log ref(y)``, but never negative, and of much smaller variance.

    Args:
      params: the policy, or a mixture of policies.
      ref_params: the reference, of the same shape.
      batch: B prompts with K responses each.
      config: the networks' shape; ``logits_chunk`` positions are projected at a time.

    Returns:
      ``log ref(y)`` and the divergence summed over y's tokens, both ``[B, K]`` float32 nats.
    """
    check_shapes(batch)
    function = functools.partial(_exact_kl, params, ref_params, config=config)
    result: tuple[Array, Array] = in_parts(function, batch, config)
    return result


def _exact_kl(
    params: Params | Mixture, ref_params: Params, batch: Batch, *, config: ModelConfig
) -> tuple[Array, Array]:
    """Computes `exact_kl` of all rows at once."""
    networks = (*policies_of(params), ref_params)
    mixed = dataclasses.replace(params, policies=()) if isinstance(params, Mixture) else None
    tiles = kernels.of_array(config, batch.prompt) == "tiles"
    packed, (mask, target) = stream.pack(batch), _targets(batch)
    states = tuple(
        _stream_states(p, packed, config) if tiles else _states(p, batch, target, config)
        for p in networks
    )
    tables = tuple(
        layout.copies(_table(p, h, config), len(h)) for p, h in zip(networks, states, strict=True)
    )

    def compare(shared: Any, states: tuple[Array, ...], target: Array) -> tuple[Array, Array]:
        tables, mixed = shared
        logits = [_logits(h, t, config.logit_softcap) for h, t in zip(states, tables, strict=True)]
        return _divergence(mixed, logits, target)

    if not tiles:
        chunk = functools.partial(compare, (tables, mixed))
        values = _over_chunks(lambda y, *h: chunk(h, y), (target, *states), config.logits_chunk)
        logps, kl = (jnp.where(mask, x, 0.0).sum(-1) for x in values)
        return logps, kl
    size = _positions(batch, len(packed.token), config)
    values = stream.over_filled(
        compare, (tables, mixed), states, packed.target, packed.scored, size
    )
    logps, kl = (stream.by_response(x, packed, batch).sum(-1) for x in values)
    return logps, kl


def _divergence(
    mixed: Mixture | None, logits: Sequence[Array], target: Array
) -> tuple[Array, Array]:
    """Compares a policy, or a mixture, with the reference, whose logits are the last."""
    *each, reference = logits
    logps, ref = jax.nn.log_softmax(mix_logits(mixed, each)), jax.nn.log_softmax(reference)
    return _pick(ref, target), jnp.sum(jnp.exp(logps) * (logps - ref), axis=-1)


def _targets(batch: Batch) -> tuple[Array, Array]:
    """Returns the mask of response tokens, and their ids.

    Padding may hold any id. Ids outside the vocabulary would give NaN, so padding becomes id 0.
    """
    mask = jnp.arange(batch.response.shape[-1]) < batch.response_length[..., None]
    return mask, jnp.where(mask, batch.response, 0)


def _states(params: Params, batch: Batch, target: Array, config: ModelConfig) -> Array:
    """Computes the states that predict each response token, ``[B, K, R, width]``."""
    states: Any = Transformer(config).apply(
        {"params": params}, batch.prompt, batch.prompt_length, target
    )
    return states


def _table(params: Params, states: Array, config: ModelConfig) -> Array:
    """Gathers the output projection once, outside the loop over chunks."""
    return layout.move(unembedding(params, config).astype(states.dtype), *layout.LINES)


def _logits(states: Array, tables: Array, softcap: float | None) -> Array:
    """Computes logits ``[B, ..., vocab]`` of states ``[B, ..., width]`` with `layout.copies`."""
    places = tables.shape[0]
    split = states.reshape(places, len(states) // places, *states.shape[1:])
    logits = jnp.einsum("fb...d,fvd->fb...v", split, tables, preferred_element_type=jnp.float32)
    return soft_cap(logits.reshape(*states.shape[:-1], -1), softcap)


def _pick(values: Array, ids: Array) -> Array:
    """Takes the value of one id of the vocabulary at each position: ``values[..., ids]``."""
    return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def _over_chunks(function: Callable[..., Any], arrays: tuple[Array, ...], chunk: int) -> Any:
    """Applies a function to ``chunk`` positions of ``[B, K, R, ...]`` arrays at a time.

    Args:
      function: maps ``[B, K, chunk, ...]`` arrays to a tree of ``[B, K, chunk]`` arrays.
      arrays: its arguments.
      chunk: positions; the last chunk is filled up with zeros.

    Returns:
      A tree of ``[B, K, R]`` arrays.
    """
    b, k, r = arrays[0].shape[:3]
    size = min(chunk, r)
    if size == r:
        return function(*arrays)
    parts = -(-r // size)

    def split(x: Array) -> Array:  # [parts, B, K, size, ...]
        fill = [(0, 0), (0, 0), (0, parts * size - r), *[(0, 0)] * (x.ndim - 3)]
        return jnp.moveaxis(jnp.pad(x, fill).reshape(b, k, parts, size, *x.shape[3:]), 2, 0)

    out = jax.lax.map(lambda each: function(*each), tuple(map(split, arrays)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(b, k, parts * size)[..., :r], out)
