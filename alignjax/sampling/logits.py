"""Changes to logits before an id is drawn from them.

The settings have the names of Hugging Face's generation config, and apply in its order:
repetition_penalty, temperature, top_k, top_p, min_p. None of them changes the log-probabilities
that are reported of what was drawn.
"""

import jax
import jax.numpy as jnp

from alignjax.types import Array


def seen_in(ids: Array, length: Array, vocab: int) -> Array:
    """Finds which ids a left-padded prompt holds.

    Args:
      ids: ``[B, P]`` int32.
      length: ``[B]`` int32; what is to the left of the last ``length`` ids is padding.
      vocab: number of ids.

    Returns:
      ``[B, vocab]`` bool.
    """
    b, p = ids.shape
    real = jnp.arange(p) >= p - length[:, None]
    at = jnp.where(real, ids, vocab)  # padding writes outside, which is dropped
    return jnp.zeros((b, vocab), bool).at[jnp.arange(b)[:, None], at].set(True, mode="drop")


def penalise(logits: Array, seen: Array, penalty: float) -> Array:
    """Penalises repetition: divides positive logits of ids that came before, multiplies negative.

    Args:
      logits: ``[..., vocab]`` float32.
      seen: ``[..., vocab]`` bool; as in Hugging Face's, ids of the prompt count.
      penalty: > 0; above 1 such ids become less likely, once however often they came.
    """
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_likely(logits: Array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Array:
    """Rules out unlikely ids: sets their logits to the smallest number.

    Args:
      logits: ``[..., vocab]`` float32, divided by the temperature.
      top_k: keeps the k likeliest ids; 0 keeps all. Ties at the edge are all kept.
      top_p: of those, the smallest set of likeliest ids whose probability reaches it.
      min_p: drops ids less likely than this share of the likeliest one.
    """
    low = jnp.finfo(logits.dtype).min
    if 0 < top_k < logits.shape[-1]:
        edge = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < edge, low, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # mass of likelier ids
        edge = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < edge, low, logits)
    if min_p > 0.0:
        edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < edge, low, logits)
    return logits


def pick(key: Array, logits: Array) -> Array:
    """Draws one id from ``softmax(logits)``, ``[vocab]`` float32.

    Id v is the first of exponential clocks with rates ``softmax(logits)[v]`` to ring. These are
    the draws of `jax.random.categorical` with the same key, at less than half the time on a CPU.
    """
    uniform = jax.random.uniform(key, logits.shape, minval=jnp.finfo(logits.dtype).tiny)
    return jnp.argmax(jnp.exp(logits - logits.max()) / -jnp.log(uniform))
