"""Changes to logits before an id is drawn from them.

The settings have the names of Hugging Face's generation config, and apply in its order:
repetition_penalty, temperature, top_k, top_p, min_p. The log-probabilities that are reported of
samples do not depend on them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax.types import Array

_BLOCK = 256


def seen_in(ids: Array, length: Array, vocab: int) -> Array:
    """Finds which ids a left-padded prompt holds.

    Args:
      ids: ``[B, P]`` int32.
      length: ``[B]`` int32; ids before the last ``length`` ones are padding.
      vocab: number of ids.

    Returns:
      ``[B, vocab]`` bool.
    """
    b, p = ids.shape
    real = jnp.arange(p) >= p - length[:, None]
    at = jnp.where(real, ids, vocab)  # padding has an index outside, which is dropped
    return jnp.zeros((b, vocab), bool).at[jnp.arange(b)[:, None], at].set(True, mode="drop")


def penalise(logits: Array, seen: Array, penalty: float) -> Array:
    """Penalises repetition: divides positive logits of earlier ids, multiplies negative ones.

    Args:
      logits: ``[..., vocab]`` float32.
      seen: ``[..., vocab]`` bool; ids of the prompt count too, as for Hugging Face.
      penalty: > 0; above 1 earlier ids become less likely, however often they occurred.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_likely(logits: Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Array:
    """Rules out unlikely ids: sets their logits to the smallest number of their dtype.

    Args:
      logits: ``[..., vocab]`` float32, divided by the temperature.
      top_k: keeps the k likeliest ids; 0 keeps all. Ties at the edge are all kept.
      top_p: of those, keeps the smallest set of likeliest ids whose probability reaches it.
      min_p: drops ids less likely than this share of the likeliest one.
    """
    low = jnp.finfo(logits.dtype).min
    if 0 < top_k < logits.shape[-1]:
        edge = _largest(logits, lambda kept: kept.sum(axis=-1) >= top_k)
        logits = jnp.where(logits < edge, low, logits)
    if top_p < 1.0:
        share = jax.nn.softmax(logits, axis=-1)
        edge = _largest(logits, lambda kept: jnp.where(kept, share, 0.0).sum(axis=-1) >= top_p)
        logits = jnp.where(logits < edge, low, logits)
    if min_p > 0.0:
        edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < edge, low, logits)
    return logits


def _largest(logits: Array, enough: Callable[[Array], Array]) -> Array:
    """Finds the largest threshold such that the logits at or above it are enough, ``[..., 1]``.

    Bisects the float32 numbers, in 32 passes; sorting the vocabulary takes many more. If rounding
    makes even all logits too few, it is the smallest logit.

    Args:
      logits: ``[..., vocab]`` float32, finite.
      enough: ``[..., vocab] bool -> [...] bool``, whether these ids are enough; if they are, so is
        every larger set.
    """
    bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the numbers

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # enough at low; not above high
        # The mean rounded up, without the sum, which overflows.
        middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1)
        reached = enough(order >= middle[..., None])
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle - 1)

    bounds = order.min(axis=-1), order.max(axis=-1)
    edge, _ = jax.lax.fori_loop(0, 32, halve, bounds)
    bits = jnp.where(edge < 0, edge ^ 0x7FFFFFFF, edge)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[..., None]


def pick(key: Array, logits: Array) -> Array:
    """Draws one id from ``softmax(logits)``, ``[vocab]`` float32.

    The first of two random numbers chooses a block of ids by its probability, the second an id in
    the block. `jax.random.categorical` uses a random number for each id of the vocabulary, which
    costs more on a CPU than a token of a small network. An id of probability 0 is never drawn.
    """
    size = min(logits.shape[-1], _BLOCK)
    chances = jnp.exp(logits - logits.max())
    blocks = jnp.pad(chances, (0, -len(chances) % size)).reshape(-1, size)
    first, second = jax.random.uniform(key, (2,))
    block = invert_sum(blocks.sum(axis=-1), first)
    return block * size + invert_sum(blocks[block], second)


def invert_sum(chances: Array, uniform: Array) -> Array:
    """Finds the first index at which the running sum exceeds ``uniform`` in [0, 1) x the total.

    There is one: `jax.random.uniform` is at most 1 - 2^-23, so the product is below the total.
    """
    reached = jnp.cumsum(chances)
    return jnp.argmax(reached > uniform * reached[-1])
