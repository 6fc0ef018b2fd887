"""One optimizer step. It receives the objective and imports none.

The order of `train_step` is the order of the mathematics: draw responses, score them under the
reference (unless cached) and the policy, differentiate the weighted loss, update. Averages are
carried as numerator and denominator in float32, so splitting a batch into micro-batches changes
nothing but rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.config.fields import keywords, takes_function
from alignjax.models import lora
from alignjax.models.config import LoraConfig
from alignjax.types import (
    Array,
    Baseline,
    Batch,
    Logps,
    Loss,
    Metrics,
    Params,
    RewardLoss,
    Select,
    TrainState,
)

Apply = Callable[[Params, Batch], Array]  # -> [B, K] response log-probabilities, nats; or scores
Forward = Callable[..., Any]  # (params, ref_params, batch, *, apply, key) -> what the loss sees


def init_state(params: Params, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """A state at step 0."""

    def zero() -> Array:  # each counter a buffer of its own: a step donates them all
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(params),
        key=key,
        skipped=zero(),
        baseline=jnp.zeros((), jnp.float32),
        baseline_weight=jnp.zeros((), jnp.float32),
    )


def resolve(function: Callable[..., Any], step: Array) -> Callable[..., Any]:
    """Replaces the schedules among a partial's keywords by their value at ``step``.

    A keyword whose value is callable is taken for a schedule, ``step -> value``; a loss never
    sees one. Where the parameter is annotated as a function it is that function, and only the
    schedules bound to it in turn are replaced.
    """
    if not isinstance(function, functools.partial):
        return function
    known = keywords(function.func)

    def at_step(name: str, value: Any) -> Any:
        if name in known and takes_function(known[name].annotation):
            return resolve(value, step)
        return value(step) if callable(value) else value

    bound = {name: at_step(name, value) for name, value in function.keywords.items()}
    return functools.partial(function.func, *function.args, **bound)


def score(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None = None,
) -> Logps:
    """Log-probabilities under policy and reference; the cache wins over the reference's weights."""
    del key  # nothing is drawn
    reference = batch.ref_logps
    if reference is None and ref_params is not None:
        reference = apply(ref_params, batch)
    if reference is not None:
        reference = jax.lax.stop_gradient(reference)
    return Logps(policy=apply(params, batch), reference=reference, length=batch.response_length)


def reward_scores(
    params: Params,
    ref_params: Params | None,
    batch: Batch,
    *,
    apply: Apply,
    key: Array | None = None,
) -> Array:
    """What the loss of a reward model sees: ``[B, K]`` scores; there is no reference."""
    del ref_params, key
    return apply(params, batch)


def with_adapters(
    params: Params,
    base: Params,
    batch: Batch,
    *,
    apply: Apply,
    key: Array,
    forward: Forward,
    config: LoraConfig,
    live: bool,
) -> Any:
    """`score` or `reward_scores` of a base with adapters; the reference is the base itself.

    Args:
      params: the adapters, which are all that is trained.
      base: in the place of the reference; a step differentiates and changes none of it.
      key: of the adapters' dropout; the reference has none.
      forward: `score` or `reward_scores`.
      config: the adapters'.
      live: whether the reference is scored here; else it is in the batch, or there is none.
    """
    policy = lora.join(base, params, config, key=key, rows=batch.prompt_id)
    return forward(policy, base if live else None, batch, apply=apply)


def weighted_sums(loss: Array, metrics: Metrics, weight: Array) -> tuple[Array, Metrics]:
    """``sum_b weight_b x_b`` of the losses and of every metric, in float32.

    Rows of weight 0 are left out by selection: their values, NaN too, change nothing.
    """

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(weight > 0, x.astype(jnp.float32) * weight, 0.0))

    return total(loss), {name: total(x) for name, x in metrics.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """What one optimizer step does: which numbers of the network, which loss, which optimizer."""

    apply: Apply  # (params, batch) -> [B, K] response log-probabilities, or a reward model's scores
    loss: Loss | RewardLoss  # with its hyperparameters bound; schedules among them are resolved
    optimizer: optax.GradientTransformation
    # Makes the loss's first argument: `score` for a policy, `reward_scores` for a reward model,
    # `with_adapters` of either for adapters. Its key depends on the step and is not `select`'s.
    forward: Forward = score
    # Draws responses before the forward pass, with a key that depends on the step.
    select: Select | None = None
    # Values whose mean over the global batch the loss reads, without gradient. With accumulate = 1
    # it costs no forward pass; else one more over policy and live reference, since the first
    # micro-batch's gradient depends on the last one's value.
    baseline: Baseline | None = None
    accumulate: int = 1  # micro-batches whose gradients are added up; exact for weighted means


def train_step(
    state: TrainState, ref_params: Params | None, batch: Batch, update: Update
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step.

    Args:
      state: the network being trained. Donate it.
      ref_params: the frozen reference, or None when its log-probabilities come with the batch or
        the loss uses none. Never donated.
      batch: B prompts; B is a multiple of ``update.accumulate``.
      update: what the step does.

    Returns:
      The new state and scalars: ``loss``, ``grad_norm``, ``num_tokens`` (not padding; a prompt
      counts once), ``weight`` (rows that count), ``skipped`` (1 if the step was not finite) and
      the averages of the objective's metrics, and with a baseline ``baseline`` and
      ``running_baseline``. A step whose loss or gradient is not finite leaves
      parameters and optimizer state as they were, bit for bit.
    """
    baseline, accumulate = update.baseline, update.accumulate
    loss = resolve(update.loss, state.step)
    if update.select is not None:
        batch = resolve(update.select, state.step)(jax.random.fold_in(state.key, state.step), batch)

    # Steps are below 2^31: no draw of responses has one of these keys.
    key = jax.random.fold_in(state.key, state.step.astype(jnp.uint32) + np.uint32(2**31))
    forward = functools.partial(update.forward, apply=update.apply, key=key)
    whole = None
    if baseline is not None:
        baseline = resolve(baseline, state.step)
        if accumulate > 1:
            whole = _mean_baseline(
                baseline,
                functools.partial(forward, state.params, ref_params),
                batch,
                accumulate,
            )

    def objective(params: Params, part: Batch) -> tuple[Array, Metrics]:
        seen = forward(params, ref_params, part)
        told: Metrics = {}
        if baseline is not None:
            mean = _mean(*_sums(baseline, seen, part)) if whole is None else whole
            mean = jax.lax.stop_gradient(mean)
            so_far = _running(state, mean, batch.weight.sum())
            told = {
                "baseline": jnp.broadcast_to(mean, part.weight.shape),
                "running_baseline": jnp.broadcast_to(so_far, part.weight.shape),
            }
            part = dataclasses.replace(part, **told)
        losses, metrics = loss(seen, part)
        return weighted_sums(losses, metrics | told, part.weight)

    (total, metrics), grads = _accumulated(objective, state.params, batch, accumulate)
    weight = batch.weight.sum()
    grads = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-9), grads)
    norm = optax.tree.norm(grads)
    updates, opt_state = update.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    averages = {name: x / jnp.maximum(weight, 1e-9) for name, x in metrics.items()}
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    if baseline is not None:
        finite &= jnp.isfinite(averages["baseline"])
    before = state
    # Selection, never multiplication by 0: 0 x NaN would write NaN into the weights.
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    bad = jnp.where(finite, 0, 1).astype(jnp.int32)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + bad,
    )
    if baseline is not None:
        so_far = _running(before, averages["baseline"], weight)
        state = dataclasses.replace(
            state,
            baseline=keep(so_far, before.baseline),
            baseline_weight=keep(before.baseline_weight + weight, before.baseline_weight),
        )
    tokens = jnp.where(batch.weight > 0, batch.prompt_length + batch.response_length.sum(1), 0)
    return state, {
        "loss": total / jnp.maximum(weight, 1e-9),
        "grad_norm": norm,
        "num_tokens": tokens.sum(),
        "weight": weight,
        "skipped": bad,
        **averages,
    }


def stacked_step(
    states: TrainState, ref_params: Params | None, batch: Batch, update: Update
) -> tuple[TrainState, dict[str, Array]]:
    """One step of each of P networks, which share the reference (or the adapters' base).

    Args:
      states: every leaf with a leading axis P; the P keys differ, or the networks draw alike.
      ref_params: of all of them, not stacked.
      batch: P x B rows; row i is network i % P's, so that every device has rows of each.
      update: what the step of each does.

    Returns:
      The new states, and the scalars of one step: means over the networks, sums of ``num_tokens``
      and ``weight``; ``skipped`` is 1 if one of them was not finite, which leaves that one as it
      was and moves the others.
    """
    parts = _split(batch, len(states.step))
    step = functools.partial(train_step, update=update)
    states, scalars = jax.vmap(step, in_axes=(0, None, 0))(states, ref_params, parts)
    whole: dict[str, Callable[[Array], Array]]
    whole = {"num_tokens": jnp.sum, "weight": jnp.sum, "skipped": jnp.max}
    return states, {name: whole.get(name, jnp.mean)(x) for name, x in scalars.items()}


def _sums(baseline: Baseline, logps: Logps, batch: Batch) -> tuple[Array, Array]:
    """The baseline's weighted sum over rows, and the weight."""
    total, _ = weighted_sums(baseline(logps, batch), {}, batch.weight)
    return total, batch.weight.sum()


def _mean(total: Array, weight: Array) -> Array:
    return total / jnp.maximum(weight, 1e-9)


def _running(state: TrainState, mean: Array, weight: Array) -> Array:
    """The mean over all rows so far, those of this step included."""
    share = weight / jnp.maximum(state.baseline_weight + weight, 1e-9)
    return state.baseline + share * (mean - state.baseline)


def _mean_baseline(
    baseline: Baseline, score: Callable[[Batch], Logps], batch: Batch, parts: int
) -> Array:
    """The baseline's mean over all micro-batches, without gradient."""

    def body(carry: tuple[Array, Array], part: Batch) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, carry, _sums(baseline, score(part), part)), None

    zeros = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
    return _mean(*jax.lax.scan(body, zeros, _split(batch, parts))[0])


def _split(batch: Batch, parts: int) -> Batch:
    """``[B, ...]`` -> ``[parts, B / parts, ...]``; row i goes to micro-batch i % parts.

    So every device keeps the rows it holds.
    """
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )


def _accumulated(
    objective: Callable[[Params, Batch], tuple[Array, Metrics]],
    params: Params,
    batch: Batch,
    parts: int,
) -> tuple[tuple[Array, Metrics], Params]:
    """Sums of losses, metrics and float32 gradients over ``parts`` micro-batches."""
    gradient = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        return gradient(params, batch)
    split = _split(batch, parts)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "f4")), shapes)

    def body(carry: Any, part: Batch) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry, gradient(params, part)), None

    return jax.lax.scan(body, zeros, split)[0]
