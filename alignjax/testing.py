"""Makes the arguments of a loss from plain numbers, for tests, notebooks and docstrings."""

from typing import Any

import jax.numpy as jnp

from alignjax.types import Array, Batch, Logps


def loss_inputs(
    policy: Any,
    reference: Any = None,
    *,
    length: Any = None,
    scores: Any = None,
    desirable: Any = None,
    drawn_from: Any = None,
    baseline: float | None = None,
    running_baseline: float | None = None,
    adversarial: Any = None,
    drawn_logps: Any = None,
    policy_tail: Any = None,
    reference_tail: Any = None,
    log_squares: Any = None,
) -> tuple[Logps, Batch]:
    """Makes the two arguments of a loss, ``loss(*loss_inputs(...))``, from plain numbers.

    Args:
      policy: ``[B, K]`` log-probabilities of the responses, nats.
      reference: ``[B, K]`` nats, or None for no reference.
      length: ``[B, K]`` response tokens, 0 for an absent response; None: one token each.
      scores: ``[B, K]`` or ``[B, K, M]``.
      desirable: ``[B, K]`` bool.
      drawn_from: ``[B]``.
      baseline, running_baseline: the same number in every row.
      adversarial: ``[B]`` bool.
      drawn_logps: ``[B, K]`` nats under the policy that drew the responses.
      policy_tail, reference_tail: ``[B, K]`` nats beyond the shortest response of the prompt.
      log_squares: ``[B, K]``, see `Logps`.

    Returns:
      Logps, and a batch in which every token is id 0, because losses never read tokens.
    """

    def array(x: Any, dtype: Any) -> Array | None:
        return None if x is None else jnp.asarray(x, dtype)

    policy = jnp.asarray(policy, float)
    b, k = policy.shape
    length = jnp.ones((b, k), jnp.int32) if length is None else jnp.asarray(length, jnp.int32)
    batch = Batch(
        prompt=jnp.zeros((b, 1), jnp.int32),
        prompt_length=jnp.ones(b, jnp.int32),
        response=jnp.zeros((b, k, 1), jnp.int32),
        response_length=length,
        weight=jnp.ones(b),
        prompt_id=jnp.arange(b, dtype=jnp.int32),
        scores=array(scores, float),
        desirable=array(desirable, bool),
        drawn_from=array(drawn_from, jnp.int32),
        baseline=None if baseline is None else jnp.full(b, baseline, float),
        running_baseline=None if running_baseline is None else jnp.full(b, running_baseline, float),
        adversarial=array(adversarial, bool),
        drawn_logps=array(drawn_logps, float),
    )
    logps = Logps(
        policy=policy,
        reference=array(reference, float),
        length=length,
        policy_tail=array(policy_tail, float),
        reference_tail=array(reference_tail, float),
        log_squares=array(log_squares, float),
    )
    return logps, batch
