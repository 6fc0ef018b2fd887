"""The types every other file speaks in. Read this file first.

Axes, everywhere in alignjax:

    B  prompts in a batch          P  prompt tokens (left-padded)
    K  responses per prompt        R  response tokens (right-padded)
    M  objectives a response is scored on

Every objective sees ``[B, K]``: pairs are ``K = 2``, lists ``K = n``, unpaired data and
supervised fine-tuning ``K = 1``. Where the data are pairs, **index 0 is the chosen response and
index 1 the rejected one**; where they are lists, the order means nothing and ``scores`` decides.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any  # a nested dict of arrays, as flax.linen's ``init`` returns it
Metrics = dict[str, Array]  # name -> [B], one value per prompt; averaged by the step


@flax.struct.dataclass(kw_only=True)
class Batch:
    """B prompts, each stored once, with K responses beside it.

    Masks come from lengths, never from ``ids != pad``: a tokenizer may use one id for both
    padding and end-of-sequence.
    """

    prompt: Array  # [B, P] int32, left-padded; exactly one BOS where the tokenizer has one
    prompt_length: Array  # [B] int32
    response: Array  # [B, K, R] int32, right-padded; ends with EOS unless it was cut
    response_length: Array  # [B, K] int32, EOS included; 0 marks an absent response
    weight: Array  # [B] float32; 0 for the rows that only fill up the batch
    prompt_id: Array  # [B] int32, index in the dataset; seeds per-prompt randomness
    scores: Array | None = None  # [B, K] or [B, K, M] float32, larger is better; None: no scores
    desirable: Array | None = None  # [B, K] bool, unpaired label; None: no labels
    ref_logps: Array | None = None  # [B, K] nats, when taken from the cache
    drawn_from: Array | None = None  # [B] int32, responses that index 1 was drawn from; by a select
    baseline: Array | None = None  # [B] one number in all rows: see `Baseline`; by the step
    running_baseline: Array | None = None  # [B] the same, mean over all steps so far, this included
    adversarial: Array | None = None  # [B] bool, a golden response and the policy's samples

    @property
    def present(self) -> Array:
        """``[B, K]`` bool: which responses exist (lists may be shorter than K)."""
        return self.response_length > 0


@flax.struct.dataclass(kw_only=True)
class Logps:
    """Log-probabilities of whole responses, in nats, summed over their tokens.

    Absent responses (length 0) have 0 in both arrays.
    """

    policy: Array  # [B, K] float32; gradients flow through this one
    reference: Array | None  # [B, K] float32, no gradient; None when no reference is used
    length: Array  # [B, K] int32 response tokens, EOS included

    @property
    def log_ratio(self) -> Array:
        """``[B, K]`` log pi/pi_ref in nats; 0, without gradient, for absent responses.

        Raises:
          ValueError: the run has no reference (config field ``reference.mode``).
        """
        if self.reference is None:
            raise ValueError(
                "this loss compares the policy with a reference, and the run has none: "
                "set reference.mode to 'auto', 'cache' or 'live'"
            )
        log_ratio = self.policy - jax.lax.stop_gradient(self.reference)
        return jnp.where(self.length > 0, log_ratio, 0.0)

    @property
    def per_token(self) -> Array:
        """``[B, K]`` mean log-probability of a response's tokens, nats; 0 for absent responses."""
        return jnp.where(self.length > 0, self.policy / jnp.maximum(self.length, 1), 0.0)


@flax.struct.dataclass(kw_only=True)
class TrainState:
    """One network being optimised. The reference model is not part of it."""

    step: Array  # int32 scalar, optimizer steps taken (skipped ones included)
    params: Params
    opt_state: Any
    key: Array  # the root PRNG key, never split: step keys are ``fold_in(key, step)``
    skipped: Array  # int32 scalar, steps skipped so far because loss or gradient was not finite
    baseline: Array  # float32 scalar, mean of the baseline over all rows so far; 0 without one
    baseline_weight: Array  # float32 scalar, the weight of those rows


@flax.struct.dataclass(kw_only=True)
class GameState:
    """A policy and the reward model it plays against, each with an optimizer of its own."""

    policy: TrainState
    reward: TrainState

    @property
    def step(self) -> Array:
        """int32 scalar, turns taken by either player: what `game.player` decides by."""
        return self.policy.step + self.reward.step

    @property
    def skipped(self) -> Array:
        """int32 scalar, turns of either player that were not finite."""
        return self.policy.skipped + self.reward.skipped


Loss = Callable[[Logps, Batch], tuple[Array, Metrics]]  # -> ([B] losses, {name: [B]})
RewardLoss = Callable[[Array, Batch], tuple[Array, Metrics]]  # the same of [B, K] scores
Select = Callable[[Array, Batch], Batch]  # (key, batch with K responses) -> batch with K'
Implicit = Callable[[Logps], Array]  # -> [B, K] implicit rewards per unit of beta, nats
# -> [B]; the step averages it over the whole global batch, without gradient, for the loss to read
Baseline = Callable[[Logps, Batch], Array]


def take_responses(batch: Batch, index: Array) -> Batch:
    """Keeps the responses ``index[b, j]`` of every prompt, in that order.

    Args:
      batch: a batch with K responses per prompt.
      index: ``[B, K']`` int, each in ``[0, K)``.

    Returns:
      The batch with K' responses; every per-response field is gathered alike.
    """

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)

    return dataclasses.replace(
        batch,
        response=take(batch.response),
        response_length=take(batch.response_length),
        scores=None if batch.scores is None else take(batch.scores),
        desirable=None if batch.desirable is None else take(batch.desirable),
        ref_logps=None if batch.ref_logps is None else take(batch.ref_logps),
    )


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
) -> tuple[Logps, Batch]:
    """The two arguments of a loss from plain numbers: for notebooks, docstrings and tests.

    Args:
      policy: ``[B, K]`` log-probabilities of the responses, nats.
      reference: ``[B, K]`` nats, or None for no reference.
      length: ``[B, K]`` response tokens, 0 for an absent response; None: one token each.
      scores: ``[B, K]`` or ``[B, K, M]``.
      desirable: ``[B, K]`` bool.
      drawn_from: ``[B]``.
      baseline, running_baseline: the number in every row.
      adversarial: ``[B]`` bool.

    Returns:
      Logps and a batch with one token id 0 instead of the tokens, which a loss never reads.
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
    )
    return Logps(policy=policy, reference=array(reference, float), length=length), batch
