"""Tries the objective on the data's shapes before anything is compiled."""

import dataclasses
import functools
import inspect
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.config import Config
from alignjax.data.batching import Bucketed, assemble
from alignjax.errors import UserError
from alignjax.fields import keywords
from alignjax.step import resolve
from alignjax.types import Array, Batch, Logps

# What the step and the loop log under these names themselves.
RESERVED = (
    *("step", "loss", "grad_norm", "num_tokens", "weight", "skipped", "learning_rate", "epoch"),
    *("prompts_per_second", "tokens_per_second", "data_wait_seconds"),
)


def check_objectives(config: Config, rows: Bucketed) -> None:
    """Traces ``select`` and ``loss`` once, and the supervised stage's loss, on shapes alone.

    Raises:
      UserError: they do not fit the data (K, scores, labels), need a reference there is not, or
        return something else than ``[B]`` losses and named ``[B]`` metrics.
    """
    batch = _first_rows(config, rows)
    if config.sft is not None:
        drawn = _select("sft.select", config.sft.select, batch)
        _check("sft.loss", config.sft.loss, _logps(drawn, reference=False), drawn)
    drawn = _select("select", config.select, batch)
    if config.reward_loss is None:
        logps = _logps(drawn, reference=config.reference.mode != "none")
        _check("loss", config.objective, logps, drawn)
    else:
        if drawn.scores is not None and drawn.scores.ndim == 3:  # it sees each objective by itself
            one: Any = jax.ShapeDtypeStruct(drawn.scores.shape[:2], jnp.float32)
            drawn = dataclasses.replace(drawn, scores=one)
        scores = jax.ShapeDtypeStruct(drawn.response_length.shape, jnp.float32)
        _check("reward_loss", config.reward_loss, scores, drawn)


def _select(field: str, select: Callable[..., Any] | None, batch: Batch) -> Any:
    if select is None:
        return batch
    resolved = resolve(select, jnp.int32(0))
    drawn = _trace(field, select, resolved, jax.random.key(0), batch)
    if not isinstance(drawn, Batch):
        raise UserError(f"{field}: {_name(select)} returns no Batch")
    return drawn


def _logps(batch: Any, *, reference: bool) -> Logps:
    zeros: Any = jax.ShapeDtypeStruct(batch.response_length.shape, jnp.float32)
    return Logps(policy=zeros, reference=zeros if reference else None, length=batch.response_length)


def _check(field: str, loss: Callable[..., Any], seen: Any, batch: Any) -> None:
    found = _trace(field, loss, resolve(loss, jnp.int32(0)), seen, batch)
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise UserError(f"{field}: {_name(loss)} must return (losses, metrics), two values")
    taken = [name for name in found[1] if name in RESERVED]
    if taken:
        raise UserError(
            f"{field}: {_name(loss)} returns a metric {taken[0]!r}, a name that the step uses "
            "itself; call it something else"
        )
    b = len(batch.response_length)
    shapes = {n: getattr(x, "shape", type(x)) for n, x in {"loss": found[0], **found[1]}.items()}
    wrong = {n: shape for n, shape in shapes.items() if shape != (b,)}
    if wrong:
        raise UserError(
            f"{field}: {_name(loss)}: wanted one value per prompt, [B], found shapes {wrong} for "
            f"B={b}"
        )


def _trace(field: str, function: Callable[..., Any], resolved: Any, *args: Any) -> Any:
    try:
        return jax.eval_shape(resolved, *args)
    except Exception as error:  # a person's own objective may raise anything
        what = " ".join(str(error).split())[:400]
        if not isinstance(error, ValueError):  # ours say all there is to say in ValueErrors
            plain = function.func if isinstance(function, functools.partial) else function
            file = inspect.getsourcefile(plain)
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
            at = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
            what = f"{at}{type(error).__name__}: {what}"
        raise UserError(f"{field}: {_name(function)} on this data: {what}") from error


def drawn_responses(config: Config, rows: Bucketed) -> int:
    """K', the responses per prompt that a step scores."""
    batch = _first_rows(config, rows)
    if config.select is None:
        return batch.response.shape[1]
    select = resolve(config.select, jnp.int32(0))
    return jax.eval_shape(select, jax.random.key(0), batch).response.shape[1]


def _first_rows(config: Config, rows: Bucketed) -> Batch:
    picked = np.flatnonzero(rows.assignment == rows.assignment[0])[:1].repeat(2)
    return assemble(rows.dataset, picked, rows.shapes[rows.assignment[0]])


def _name(function: Callable[..., Any]) -> str:
    plain = function.func if isinstance(function, functools.partial) else function
    return f"{plain.__module__}.{plain.__name__}"


def implicit_reward(loss: Callable[..., Any]) -> Callable[[Logps], Array]:
    """``[B, K]`` rewards as the loss trains them: its ``beta`` times its ``implicit``.

    Schedules stand at their end. A loss without ``beta`` has 1; one without ``implicit`` has the
    log-ratio, or the log-probability where there is no reference.
    """
    last = resolve(loss, jnp.int32(np.iinfo(np.int32).max))
    bound = last.keywords if isinstance(last, functools.partial) else {}
    known = keywords(last.func if isinstance(last, functools.partial) else last)

    def hyperparameter(name: str, otherwise: Any) -> Any:
        default = known[name].default if name in known else otherwise
        return bound.get(name, default)

    beta, implicit = hyperparameter("beta", 1.0), hyperparameter("implicit", _log_ratio)
    return lambda logps: beta * implicit(logps)


def _log_ratio(logps: Logps) -> Array:
    return logps.policy if logps.reference is None else logps.log_ratio
