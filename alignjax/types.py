"""The types that every other file uses. Read this file first.

Axes, everywhere in alignjax:

    B  prompts in a batch          P  prompt tokens (left-padded)
    K  responses per prompt        R  response tokens (right-padded)
    M  objectives a response is scored on

Every loss gets ``[B, K]``: pairs have ``K = 2``, lists ``K = n``, unpaired data and supervised
fine-tuning ``K = 1``. In pairs **index 0 is the chosen response and index 1 the rejected one**; in
lists the order does not matter, only ``scores``.

A loss is a plain function ``(logps, batch) -> ([B] losses, {name: [B]} metrics)``; `testing`
makes its arguments from plain numbers:

    logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    losses, metrics = dpo.loss(logps, batch, beta=0.1)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import chex
import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array
Params = Any  # a nested dict of arrays, as flax.linen's ``init`` returns it
Metrics = dict[str, Array]  # name -> [B], one value per prompt; averaged by the step


@flax.struct.dataclass(kw_only=True)
class Batch:
    """B prompts, each stored once, with its K responses.

    Masks are made from lengths, never from ``ids != pad``, because a tokenizer may use the same id
    for padding and end-of-sequence.
    """

    prompt: Array  # [B, P] int32, left-padded; exactly one BOS if the tokenizer has one
    prompt_length: Array  # [B] int32
    response: Array  # [B, K, R] int32, right-padded; ends with EOS unless it was cut
    response_length: Array  # [B, K] int32, EOS included; 0 marks an absent response
    weight: Array  # [B] float32; 0 for rows that only fill up the batch
    prompt_id: Array  # [B] int32, index in the dataset; seeds per-prompt randomness
    scores: Array | None = None  # [B, K] or [B, K, M] float32, larger is better; None: no scores
    desirable: Array | None = None  # [B, K] bool, unpaired label; None: no labels
    ref_logps: Array | None = None  # [B, K] nats, from the cache; None: the step computes them
    # Of samples: nats under the policy that drew them; None: the current policy drew them.
    drawn_logps: Array | None = None  # [B, K]
    # Set by a `Select`: the number of responses that index 1 was drawn from.
    drawn_from: Array | None = None  # [B] int32
    select_metrics: Metrics | None = None  # metrics of its choice, logged with those of the loss
    # Set by the step, the same number in every row: the mean of a `Baseline` over this global
    # batch, and over all batches up to and including this one.
    baseline: Array | None = None  # [B] float32
    running_baseline: Array | None = None  # [B] float32
    # APO: the row has a golden response and samples of the policy, not a human comparison.
    adversarial: Array | None = None  # [B] bool
    # Maximum number of tokens in a device's rows, without padding; 0: unknown. See `stream`.
    room: int = flax.struct.field(pytree_node=False, default=0)

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
    # Only for losses marked with `reads_tail`. The tail of a response are its tokens beyond the
    # length of the shortest response to its prompt.
    policy_tail: Array | None = None  # [B, K] float32 nats of the tail, part of `policy`
    reference_tail: Array | None = None  # [B, K] float32, no gradient; None without a reference
    # Only for losses marked with `reads_squares`: the log of the policy's sum of squared
    # probabilities over the vocabulary, summed over the tokens of the response.
    log_squares: Array | None = None  # [B, K] float32, no gradient

    @property
    def log_ratio(self) -> Array:
        """Computes ``[B, K]`` log pi / pi_ref, nats; 0, without gradient, for absent responses.

        Raises:
          ValueError: the run has no reference (config field ``reference.mode``).
          AssertionError: the three arrays differ in shape.
        """
        if self.reference is None:
            raise ValueError(
                "wanted a reference, which this loss compares the policy with, found none: set "
                "reference.mode to 'auto', 'cache' or 'live'"
            )
        chex.assert_equal_shape([self.policy, self.reference, self.length])  # [B] would broadcast
        log_ratio = self.policy - jax.lax.stop_gradient(self.reference)
        return jnp.where(self.length > 0, log_ratio, 0.0)

    @property
    def per_token(self) -> Array:
        """Computes ``[B, K]`` mean log-probabilities per token, nats; 0 for absent responses."""
        chex.assert_equal_shape([self.policy, self.length])
        return jnp.where(self.length > 0, self.policy / jnp.maximum(self.length, 1), 0.0)


@flax.struct.dataclass(kw_only=True)
class TrainState:
    """One network in training. Only a reference that follows the policy is part of it."""

    step: Array  # int32 scalar, optimizer steps taken, skipped ones included
    params: Params
    opt_state: Any
    key: Array  # the root PRNG key, never split: a step's key is ``fold_in(key, step)``
    skipped: Array  # int32 scalar, steps skipped because loss or gradient was not finite
    baseline: Array  # float32 scalar, mean of the `Baseline` over all rows so far; 0 without one
    baseline_weight: Array  # float32 scalar, the total weight of those rows
    reference: Params | None = None  # of ``reference.follow``; None: the reference stays as it is


@flax.struct.dataclass(kw_only=True)
class GameState:
    """A policy and the reward model it plays against, each with its own optimizer."""

    policy: TrainState
    reward: TrainState

    @property
    def step(self) -> Array:
        """int32 scalar, turns of both players; `game.Cycle` finds the next player from it."""
        return self.policy.step + self.reward.step

    @property
    def skipped(self) -> Array:
        """int32 scalar, skipped turns of both players."""
        return self.policy.skipped + self.reward.skipped


# The functions that a config names. Hyperparameters are keyword-only, bound by `partial`.
Loss = Callable[[Logps, Batch], tuple[Array, Metrics]]  # -> ([B] losses, {name: [B]})
RewardLoss = Callable[[Array, Batch], tuple[Array, Metrics]]  # the same, of [B, K] scores
Implicit = Callable[[Logps], Array]  # -> [B, K] implicit rewards per unit of beta, nats
# (key, batch with K responses) -> batch with K' responses, chosen before the forward pass
Select = Callable[[Array, Batch], Batch]
# -> [B], averaged by the step over the global batch, without gradient, into ``batch.baseline``
Baseline = Callable[[Logps, Batch], Array]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A hyperparameter that depends on the step: ``partial(dpo.loss, beta=Schedule(...))``.

    The step replaces it by its value; a loss never gets a schedule.
    """

    at: Callable[[Array], Any]  # optimizer steps taken -> value, like optax's schedules; traced


@dataclasses.dataclass(frozen=True)
class RunSchedule:
    """A `Schedule` over the whole run: ``RunSchedule(partial(optax.linear_schedule, 1, 2))``."""

    over: Callable[[int], Callable[[Array], Any]]  # optimizer steps of the run -> `Schedule.at`


Function = TypeVar("Function", bound=Callable[..., Any])


def trains(implicit: Callable[..., Array]) -> Callable[[Function], Function]:
    """Marks a loss without a keyword ``implicit`` with the implicit reward that it trains.

    Evaluation reports ``implicit(logps)``, with those of its keywords that the loss has too.
    Without this mark it is the log-ratio, or the log-probability if there is no reference.
    """

    def mark(loss: Function) -> Function:
        setattr(loss, "implicit", implicit)  # noqa: B010  (a function's attribute has no type)
        return loss

    return mark


def compares_rows(function: Function) -> Function:
    """Marks a loss that compares the rows of a batch: a step takes them in one part."""
    setattr(function, "compares_rows", True)  # noqa: B010  (as above)
    return function


def corrects_for_older(function: Function) -> Function:
    """Marks a loss that corrects for samples of an older policy: it reads ``drawn_logps``."""
    setattr(function, "corrects_for_older", True)  # noqa: B010  (as above)
    return function


def compares_halves(function: Function) -> Function:
    """Marks a loss that compares the first half of the responses with the second.

    The first half are samples of the policy, the second of its opponent: see `recipes.online`.
    """
    setattr(function, "compares_halves", True)  # noqa: B010  (as above)
    return function


def reads_tail(function: Function) -> Function:
    """Marks a loss that reads the tails of `Logps`, which a step computes and no cache has."""
    setattr(function, "reads_tail", True)  # noqa: B010  (as above)
    return function


def reads_squares(function: Function) -> Function:
    """Marks a loss that reads `Logps.log_squares`, which a step computes from the logits."""
    setattr(function, "reads_squares", True)  # noqa: B010  (as above)
    return function


def check_shapes(batch: Batch) -> None:
    """Asserts that the arrays of a batch have the shapes in `Batch`.

    It reads only shapes, so under ``jax.jit`` it costs nothing at run time.

    Raises:
      AssertionError: an array has another shape.
    """
    chex.assert_rank([batch.prompt, batch.response], [2, 3])
    b, k, _ = batch.response.shape
    per_prompt = [batch.prompt_length, batch.weight, batch.prompt_id, batch.drawn_from]
    means = [batch.baseline, batch.running_baseline, batch.adversarial]
    chex.assert_shape([x for x in per_prompt + means if x is not None], (b,))
    chex.assert_axis_dimension(batch.prompt, 0, b)
    per_response = [batch.response_length, batch.ref_logps, batch.drawn_logps]
    chex.assert_shape([x for x in per_response if x is not None], (b, k))
    if batch.scores is not None:
        chex.assert_shape(batch.scores, (b, k, ...))


def take_responses(batch: Batch, index: Array) -> Batch:
    """Keeps the responses ``index[b, j]`` of every prompt, in that order.

    Args:
      batch: a batch with K responses per prompt.
      index: ``[B, K']`` int, each in ``[0, K)``.

    Returns:
      The batch with K' responses, in every per-response field.
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
        drawn_logps=None if batch.drawn_logps is None else take(batch.drawn_logps),
    )
