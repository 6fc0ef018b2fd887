"""Every loss of every file in alignjax/losses passes every check; each mutant fails its own.

A new file is found by itself: each function called ``loss``, ``loss_*`` or ``reward_loss*`` is run
with its default hyperparameters on the batches that it accepts. The losses of reward models see the
model's scores where the others see the policy's log-probabilities.
"""

import functools
import importlib
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignjax.losses
from alignjax.losses import bradley_terry, dpo, plackett_luce
from alignjax.types import Array, Batch, Logps, Loss, Metrics
from tests.losses import checks

FOLDER = Path(alignjax.losses.__file__).parent
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "__init__")
CHECKS = [f for name, f in vars(checks).items() if name.startswith("check_")]


def losses_of(name: str) -> dict[str, Callable[..., Any]]:
    """The losses that one file of the folder defines, by ``file.function``."""
    module = importlib.import_module(f"alignjax.losses.{name}")
    return {
        f"{name}.{key}": value
        for key, value in vars(module).items()
        if callable(value) and (key == "loss" or key.startswith(("loss_", "reward_loss")))
    }


def as_run(loss: Loss) -> Loss:
    """The loss as a run has it: the recipe binds what it reads off the data and the preference."""
    known = {"desirable_fraction": 0.3, "preference": (0.5, 0.5)}
    bound = {k: v for k, v in known.items() if k in inspect.signature(loss).parameters}
    return functools.partial(loss, **bound) if bound else loss


DEFINED = {key: value for name in MODULES for key, value in losses_of(name).items()}
LOSSES: dict[str, Loss] = {
    key: checks.of_scores(value) if ".reward_loss" in key else value
    for key, value in DEFINED.items()
}
RUNS = {key: as_run(loss) for key, loss in LOSSES.items()}  # made once: what they compile is kept


@pytest.mark.parametrize("name", MODULES)
def test_every_file_has_a_loss(name):
    assert f"{name}.loss" in LOSSES


# What a paper's formula itself does not satisfy, as its docstring says.
EXEMPT = {
    "discopop.loss": checks.check_direction,  # its slope at a margin of 0 is positive
    "anchored.loss_down": checks.check_direction,  # there the chosen response has no gradient
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_conformance(check, name):
    if check is EXEMPT.get(name):
        with pytest.raises(AssertionError, match="a good response is not raised"):
            check(RUNS[name])
    elif check is checks.check_docstring:
        module = importlib.import_module(f"alignjax.losses.{name.split('.')[0]}")
        check(DEFINED[name], module.__doc__ or "")
    elif check is checks.check_signature:
        check(DEFINED[name])
    else:
        check(RUNS[name])


def test_reward_losses_are_found():
    files = ("apo", "bradley_terry", "plackett_luce")
    assert {f"{name}.reward_loss" for name in files} | {"apo.reward_loss_diff"} <= set(LOSSES)


# Mutants: each breaks one property that a hand-written loss easily breaks.


def flipped_sign(logps: Logps, batch: Batch, *, beta: float = 0.1) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch, beta=beta)
    return -losses, metrics


def swapped_pair(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    return dpo.loss(jax.tree.map(lambda x: x[:, ::-1], logps), batch)


def raises_everything(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses - logps.policy.sum(axis=1), metrics


def ignores_undesirable(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    if logps.policy.shape[1] != 1:
        raise ValueError("single responses only")
    weight = jnp.where(batch.desirable[:, 0], 1.0, 0.5)
    return -weight * logps.log_ratio[:, 0], {}


def scalar(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses.mean(), metrics


def integer_metric(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses, metrics | {"right": metrics["rewards/margins"] > 0}


def log_of_sigmoid(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    _, metrics = dpo.loss(logps, batch)
    return -jnp.log(jax.nn.sigmoid(metrics["rewards/margins"])), metrics


def overflowing_gradient(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Finite everywhere, but the branch not taken makes the gradient NaN."""
    margin = dpo.loss(logps, batch)[1]["rewards/margins"]
    return jnp.where(margin < -30, -margin, jnp.log1p(jnp.exp(-margin))), {}


def through_the_reference(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    dpo.check_pairs(logps, "mutant")
    margin = 0.1 * jnp.diff(logps.reference - logps.policy, axis=1)[:, 0]
    return -jax.nn.log_sigmoid(margin), {}


def through_the_scores(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses * jnp.exp(batch.scores[:, 0]), metrics


def ids_as_mask(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    mask = (batch.response != 0).any(axis=-1)
    return -jnp.where(mask, logps.policy, 0.0).sum(axis=1), {}


def absent_is_a_rival(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    everything = jnp.maximum(batch.response_length, 1)
    return plackett_luce.loss_top1(
        logps.replace(length=everything), batch.replace(response_length=everything)
    )


def slot_matters(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses * (1 + jnp.arange(losses.size)), metrics


def padding_in_the_baseline(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses + logps.log_ratio.mean(), metrics


@jax.custom_vjp
def _half(x: Array) -> Array:
    return x


_half.defvjp(lambda x: (x, None), lambda _, g: (0.5 * g,))


def wrong_gradient(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    return dpo.loss(logps.replace(policy=_half(logps.policy)), batch)


def on_the_host(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = dpo.loss(logps, batch)
    return losses * (1.0 if float(losses.sum()) > 0 else 2.0), metrics


def impure() -> Loss:
    """A loss that changes from one evaluation to the next."""
    calls = itertools.count()

    def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
        losses, metrics = dpo.loss(logps, batch)
        return losses + next(calls), metrics

    return loss


def keywords(logps, batch, **hyper):
    return dpo.loss(logps, batch, **hyper)


def positional(logps: Logps, batch: Batch, beta: float = 0.1) -> tuple[Array, Metrics]:
    return dpo.loss(logps, batch, beta=beta)


def no_default(logps: Logps, batch: Batch, *, beta: float) -> tuple[Array, Metrics]:
    return dpo.loss(logps, batch, beta=beta)


def reward_loss_flipped(scores: Array, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = bradley_terry.reward_loss(scores, batch)
    return -losses, metrics


def reward_loss_of_sigmoid(scores: Array, batch: Batch) -> tuple[Array, Metrics]:
    return -jnp.log(jax.nn.sigmoid(scores[:, 0] - scores[:, -1])), {}


def reward_loss_of_absent(scores: Array, batch: Batch) -> tuple[Array, Metrics]:
    everything = jnp.maximum(batch.response_length, 1)
    return bradley_terry.reward_loss(scores, batch.replace(response_length=everything))


def reward_loss_through_labels(scores: Array, batch: Batch) -> tuple[Array, Metrics]:
    losses, metrics = bradley_terry.reward_loss(scores, batch)
    return losses * jnp.exp(batch.scores.max(axis=1)), metrics


def reward_loss_of_logps(logps: Array, batch: Batch) -> tuple[Array, Metrics]:
    return bradley_terry.reward_loss(logps, batch)


def picky(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    raise ValueError("never the right batch")


def without(part: str) -> Callable[..., object]:
    """A function with dpo.loss's docstring less one part."""

    def loss() -> None: ...

    loss.__doc__ = (dpo.loss.__doc__ or "").replace(part, "")
    return loss


MUTANTS = [
    (checks.check_direction, flipped_sign),
    (checks.check_direction, swapped_pair),
    (checks.check_direction, raises_everything),
    (checks.check_direction, ignores_undesirable),
    (checks.check_shapes, scalar),
    (checks.check_shapes, integer_metric),
    (checks.check_shapes, picky),
    (checks.check_finite, log_of_sigmoid),
    (checks.check_finite, overflowing_gradient),
    (checks.check_constants, through_the_reference),
    (checks.check_constants, through_the_scores),
    (checks.check_lengths, ids_as_mask),
    (checks.check_absent, absent_is_a_rival),
    (checks.check_permutation, slot_matters),
    (checks.check_padding, padding_in_the_baseline),
    (checks.check_gradient, wrong_gradient),
    (checks.check_jit, on_the_host),
    (checks.check_jit, impure()),
    (checks.check_sharded, impure()),
    (checks.check_signature, keywords),
    (checks.check_signature, positional),
    (checks.check_signature, no_default),
    (checks.check_direction, checks.of_scores(reward_loss_flipped)),
    (checks.check_finite, checks.of_scores(reward_loss_of_sigmoid)),
    (checks.check_absent, checks.of_scores(reward_loss_of_absent)),
    (checks.check_constants, checks.of_scores(reward_loss_through_labels)),
    (checks.check_signature, reward_loss_of_logps),
    (checks.check_docstring, without("::")),
    (checks.check_docstring, without("Returns:")),
    (checks.check_docstring, without("Differs from the paper:")),
    (checks.check_docstring, without("From the authors' code:")),
    (checks.check_docstring, without(">>> ")),
    (checks.check_docstring, without("arXiv")),
    (checks.check_docstring, without("paper   ")),
]


@pytest.mark.parametrize(
    ("check", "mutant"), MUTANTS, ids=[f"{c.__name__}-{m.__name__}" for c, m in MUTANTS]
)
def test_mutants_are_killed(check, mutant):
    structural = check in (checks.check_signature, checks.check_docstring)
    if not structural and mutant not in (picky, on_the_host):
        assert list(checks.cases(mutant)), "a mutant that no batch reaches proves nothing"
    with pytest.raises((AssertionError, jax.errors.JAXTypeError)):
        check(mutant)


def test_each_check_has_a_mutant():
    assert {check for check, _ in MUTANTS} == set(CHECKS)


def test_gradient_check_takes_stopped_terms_for_constants():
    """A baseline behind stop_gradient is no error in the gradient; the same without it would be."""

    def with_baseline(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
        losses, metrics = dpo.loss(logps, batch)
        return losses * jax.lax.stop_gradient(logps.policy.mean()), metrics

    checks.check_gradient(with_baseline)
    logps, batch = checks.make(2)
    free = jax.grad(lambda p: (dpo.loss(logps.replace(policy=p), batch)[0] * p.mean()).mean())
    held = checks.compiled(with_baseline)(logps, batch).gradient
    assert not np.allclose(free(logps.policy), held, rtol=1e-3)
