"""What every objective has to satisfy, as functions of its loss.

Each check runs a loss on every kind of batch that it accepts and raises AssertionError where the
loss falls short. `conformance_test.py` applies all of them to all objectives, and shows with
mutants that each of them can fail.
"""

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alignjax.testing import loss_inputs
from alignjax.types import Array, Batch, Logps, Loss, Metrics

B = 8


def make(k: int, m: int | None = None, *, seed: int = 0) -> tuple[Logps, Batch]:
    """B prompts with K responses; response 0 is chosen, desirable and best-scored at once.

    With K=1 every other response is undesirable. ``m`` is the number of objectives scored, None
    for scores ``[B, K]``.
    """
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 7, (B, k))
    reference = -length * rng.uniform(0.5, 2.0, (B, k))
    scores = rng.uniform(-1, 1, (B, k) if m is None else (B, k, m))
    scores[:, 0] = 2.0
    desirable = np.zeros((B, k), bool)
    desirable[:: 2 if k == 1 else 1, 0] = True
    logps, batch = loss_inputs(
        reference + rng.normal(0, 2, (B, k)),
        reference,
        length=length,
        scores=scores,
        desirable=desirable,
        drawn_from=np.full(B, 3),
        baseline=0.3,
        running_baseline=-0.2,
        adversarial=np.arange(B) % 3 == 0,
        policy_tail=reference * rng.uniform(0, 1, (B, k)),
        reference_tail=reference * rng.uniform(0, 1, (B, k)),
        log_squares=reference + length * rng.uniform(0, 1, (B, k)),
    )
    ids = rng.integers(0, 4, (B, k, 6))  # id 0 is a token like any other
    return logps, batch.replace(
        response=jnp.asarray(ids, jnp.int32), prompt_id=jnp.arange(B, dtype=jnp.int32) * 7 + 3
    )


@functools.cache
def of_scores(reward_loss: Callable[..., tuple[Array, Metrics]]) -> Loss:
    """A reward loss as a loss: the model's scores are what the policy's log-probabilities are."""

    def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
        return reward_loss(logps.policy, batch)

    return loss


def cases(loss: Loss) -> Iterator[tuple[Logps, Batch]]:
    """One batch for each K of 1, 2, 4 that the loss accepts, by not raising ValueError.

    Scores are ``[B, K]``, or ``[B, K, 2]`` if the loss refuses those.
    """
    refusals = []
    for k in (1, 2, 4):
        for m in (None, 2):
            case = make(k, m)
            try:
                jax.eval_shape(loss, *case)
            except ValueError as refusal:
                refusals.append(str(refusal))
                continue
            yield case
            break
    assert len(refusals) < 6, f"the loss refuses every batch: {refusals}"


def largest(loss: Loss) -> tuple[Logps, Batch]:
    """The case with the most responses, for what compiles much and sees little in smaller ones."""
    return list(cases(loss))[-1]


class Result(NamedTuple):
    """What a loss gives for one batch."""

    losses: Array  # [B]
    metrics: Metrics
    mean: Array  # the weighted mean loss, which training minimises
    gradient: Array  # [B, K] of the mean with respect to logps.policy


@functools.cache
def compiled(loss: Loss) -> Callable[[Logps, Batch], Result]:
    """The loss and its gradient in one program per shape, shared by the checks."""

    @jax.jit
    def run(logps: Logps, batch: Batch) -> Result:
        def mean(policy: Array) -> tuple[Array, tuple[Array, Metrics]]:
            losses, metrics = loss(logps.replace(policy=policy), batch)
            return jnp.sum(losses * batch.weight) / batch.weight.sum(), (losses, metrics)

        (value, out), gradient = jax.value_and_grad(mean, has_aux=True)(logps.policy)
        return Result(*out, mean=value, gradient=gradient)

    return run


def check_shapes(loss: Loss) -> None:
    """``[B]`` losses and ``[B]`` metrics, finite and of the dtype of the log-probabilities."""
    for logps, batch in cases(loss):
        losses, metrics, *_ = compiled(loss)(logps, batch)
        assert all(isinstance(name, str) for name in metrics)
        for x in (losses, *metrics.values()):
            chex.assert_shape(x, (B,))
            chex.assert_type(x, logps.policy.dtype)
        chex.assert_tree_all_finite((losses, metrics))


def check_finite(loss: Loss) -> None:
    """Finite losses, metrics and gradients for log-ratios of up to 1e4 nats either way."""
    for logps, batch in cases(loss):
        k = logps.policy.shape[1]
        for size, repeat in ((1e4, 1), (1e4, 2), (60.0, 1)):
            signs = itertools.islice(itertools.cycle(itertools.product((1, -1), repeat=k)), 16)
            log_ratio = size * np.asarray(list(signs), np.float32)[::repeat][:B]
            far = logps.replace(
                policy=jnp.asarray(-2e4 + log_ratio / 2),
                reference=jnp.asarray(-2e4 - log_ratio / 2),
            )
            chex.assert_tree_all_finite(compiled(loss)(far, batch))


def check_jit(loss: Loss) -> None:
    """Compiled equals eager, and new numbers do not compile again."""
    logps, batch = largest(loss)
    run = compiled(loss)
    found = run(logps, batch)
    programs = run._cache_size()  # type: ignore[attr-defined]
    run(logps.replace(policy=logps.policy - 0.5), batch)
    assert run._cache_size() == programs  # type: ignore[attr-defined]
    eager = loss(logps, batch)
    chex.assert_trees_all_close((found.losses, found.metrics), eager, rtol=1e-5, atol=1e-6)


def check_gradient(loss: Loss) -> None:
    """The gradient equals central finite differences, in float64.

    What a loss passes through ``jax.lax.stop_gradient`` is held at its value while the
    differences are taken, since autodiff takes it for a constant, too.
    """
    directions = np.random.default_rng(1).normal(size=(3, B, 4))
    h = 1e-5

    @jax.jit  # one program: compiling is what this costs
    def slopes(logps: Logps, batch: Batch) -> tuple[Array, Array]:
        value = _with_constants(loss)
        value(logps, batch)

        def mean(policy: Array, value: Loss = value) -> Array:
            losses, _ = value(logps.replace(policy=policy), batch)
            return jnp.sum(losses * batch.weight) / batch.weight.sum()

        moves = h * directions[:, :, : logps.policy.shape[1]]
        up, down = (jax.vmap(mean)(logps.policy + move) for move in (moves, -moves))
        gradient = jax.grad(mean)(logps.policy, loss)
        return (gradient * moves / h).sum(axis=(1, 2)), (up - down) / (2 * h)

    with jax.enable_x64(True):
        found, wanted = slopes(*largest(loss))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


def _with_constants(loss: Loss) -> Loss:
    """The loss whose stop_gradients return what they returned in the first call."""
    constants: list[Any] = []

    def call(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
        recorded = iter(list(constants)) if constants else None

        def stop_gradient(x: Any) -> Any:
            if recorded is None:
                constants.append(x)
                return x
            return next(recorded)

        with mock.patch.object(jax.lax, "stop_gradient", stop_gradient):
            return loss(logps, batch)

    return call


def check_permutation(loss: Loss) -> None:
    """A prompt's loss does not depend on its slot in the batch."""
    order = np.random.default_rng(2).permutation(B)
    for case in cases(loss):
        moved = compiled(loss)(*jax.tree.map(lambda x: np.asarray(x)[order], case))
        straight = compiled(loss)(*case)
        straight = jax.tree.map(lambda x: np.asarray(x)[order] if x.ndim else x, straight)
        chex.assert_trees_all_close(moved, straight, rtol=1e-5, atol=1e-6)


def check_sharded(loss: Loss) -> None:
    """Losses and gradients on 8 devices equal those on one."""
    devices = np.asarray(jax.devices()[:8])
    assert devices.size == 8, "needs 8 (virtual) devices"
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))

    case = largest(loss)
    # Not `compiled`: that may hand out the program made for one device.
    sharded = compiled.__wrapped__(loss)(*jax.device_put(case, rows))
    assert len(sharded.losses.sharding.device_set) == 8
    chex.assert_trees_all_close(
        jax.device_get(sharded), jax.device_get(compiled(loss)(*case)), rtol=1e-5, atol=1e-6
    )


def check_padding(loss: Loss) -> None:
    """Rows of weight 0 change neither the weighted mean nor its gradient, whatever they hold.

    Half a batch and rows of weight 0 against the same half twice: the shape of the other checks,
    so that nothing is compiled here.
    """
    half = B // 2
    # In NumPy, which compiles nothing for four rows.
    logps, batch = first = jax.tree.map(lambda x: np.asarray(x)[:half], largest(loss))
    empty = jax.tree.map(np.zeros_like, first)
    wild = (
        logps.replace(policy=logps.policy - np.float32(40.0)),
        batch.replace(weight=np.zeros_like(batch.weight)),
    )

    def with_rows(rows: tuple[Logps, Batch]) -> Result:
        return compiled(loss)(*jax.tree.map(lambda *x: np.concatenate(x), first, rows))

    twice = with_rows(first)
    for filler in (empty, wild):
        filled = with_rows(filler)
        np.testing.assert_allclose(filled.mean, twice.mean, rtol=1e-5)
        wanted = twice.gradient[:half] + twice.gradient[half:]
        np.testing.assert_allclose(filled.gradient[:half], wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(filled.gradient[half:], 0.0)


def check_absent(loss: Loss) -> None:
    """A response of length 0 gets no gradient, and what its slot holds changes nothing."""
    for logps, batch in cases(loss):
        absent = np.zeros(logps.policy.shape, bool)
        absent[1::3, -1] = True

        def with_slot(
            value: float, logps: Logps = logps, batch: Batch = batch, absent: np.ndarray = absent
        ) -> tuple[Logps, Batch]:
            length = jnp.where(absent, 0, logps.length)
            slot = absent.reshape(absent.shape + (1,) * (batch.scores.ndim - 2))
            return (
                logps.replace(
                    policy=jnp.where(absent, value, logps.policy),
                    reference=jnp.where(absent, 0.0, logps.reference),
                    length=length,
                    policy_tail=jnp.where(absent, value, logps.policy_tail),
                    log_squares=jnp.where(absent, value / 2, logps.log_squares),
                ),
                batch.replace(response_length=length, scores=jnp.where(slot, value, batch.scores)),
            )

        first, second = (compiled(loss)(*with_slot(value)) for value in (0.0, 50.0))
        chex.assert_tree_all_finite((first, second))
        np.testing.assert_allclose(second.losses, first.losses, rtol=1e-6)
        for result in (first, second):
            np.testing.assert_array_equal(result.gradient[absent], 0.0)


def check_direction(loss: Loss) -> None:
    """At policy == reference one step raises the good response and raises no other.

    The good response is index 0 (chosen, desirable, best-scored, the others tied below it), and
    with K=1 the one labelled desirable. A loss that takes no notice of any label imitates: it has
    to raise all responses.
    """
    for logps, batch in cases(loss):
        k = logps.policy.shape[1]
        imitates = _ignores_labels(loss, logps, batch)
        tied = jnp.zeros_like(batch.scores).at[:, 0].set(1.0)
        same = logps.replace(policy=logps.reference)
        gradient = np.asarray(compiled(loss)(same, batch.replace(scores=tied)).gradient)
        good = np.asarray(batch.desirable) if k == 1 else np.arange(k) == np.zeros((B, 1))
        good = good | imitates
        assert (gradient[good] < 0).all(), f"K={k}: a good response is not raised: {gradient}"
        assert (gradient[~good] >= -1e-7).all(), f"K={k}: a bad response is raised: {gradient}"


def _ignores_labels(loss: Loss, logps: Logps, batch: Batch) -> bool:
    """Whether neither the order of the responses nor a score nor a label matters."""
    reverse = logps.replace(**{f: getattr(logps, f)[:, ::-1] for f in ("policy", "reference")})
    reverse = reverse.replace(length=logps.length[:, ::-1])
    lengths = batch.replace(response_length=batch.response_length[:, ::-1])
    relabelled = batch.replace(scores=-batch.scores, desirable=~batch.desirable)
    losses = compiled(loss)(logps, batch).losses
    return all(
        np.allclose(losses, compiled(loss)(*other).losses, rtol=1e-5)
        for other in ((reverse, lengths), (logps, relabelled))
    )


def check_constants(loss: Loss) -> None:
    """No gradient reaches the reference or the scores."""
    for logps, batch in cases(loss):

        def mean(constants: tuple[Array, Array], logps: Logps, batch: Batch) -> Array:
            reference, scores = constants
            batch = batch.replace(scores=scores)
            return loss(logps.replace(reference=reference), batch)[0].mean()

        gradients = jax.jit(jax.grad(mean))((logps.reference, batch.scores), logps, batch)
        chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def check_lengths(loss: Loss) -> None:
    """Masks come from lengths: token ids change nothing."""
    for logps, batch in cases(loss):
        other = batch.replace(
            prompt=np.asarray(batch.prompt) + 5,
            response=np.where(batch.response == 0, 9, 0).astype(np.int32),
        )
        chex.assert_trees_all_equal(compiled(loss)(logps, other), compiled(loss)(logps, batch))


def check_signature(loss: Callable[..., object]) -> None:
    """``(logps, batch, *, hyperparameters with defaults)``; ``scores`` first for reward losses."""
    first = "scores" if loss.__name__.startswith("reward_loss") else "logps"
    seen, batch, *hyper = inspect.signature(loss).parameters.values()
    assert (seen.name, batch.name) == (first, "batch")
    for p in hyper:
        assert p.kind is p.KEYWORD_ONLY, f"{p} has to be keyword-only"
        assert p.default is not p.empty, f"{p} has to have a default"
        assert p.annotation is not p.empty, f"{p} has to have a type"


def check_docstring(loss: Callable[..., object], module_doc: str = "") -> None:
    """Equation, symbols, shapes, differences, example; the paper here or in the module's text."""
    doc = loss.__doc__ or ""
    assert re.search(r"::\n\n +loss = ", doc), "no equation: '::', an empty line, '    loss = ...'"
    for part in ("Returns:", "Differs from the paper: ", "From the authors' code: ", ">>> "):
        assert part in doc, f"the docstring lacks {part!r}"
    for part in (r"paper +code\n", r"arXiv\s+\d{4}\.\d{5}"):
        assert re.search(part, doc + module_doc), f"neither docstring has {part!r}"
