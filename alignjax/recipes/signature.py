"""Tries the objective on the data's shapes before anything is compiled."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.config import Config, keywords
from alignjax.data.batching import Bucketed, assemble
from alignjax.errors import UserError
from alignjax.step import resolve
from alignjax.types import Batch, Logps


def check_loss(config: Config, rows: Bucketed) -> None:
    """Traces ``select`` and ``loss`` once, on shapes alone.

    Raises:
      UserError: they do not fit the data (K, scores, labels), or need a reference there is not.
    """
    batch = _first_rows(config, rows)

    def trace(batch: Batch) -> Any:
        if config.select is not None:
            batch = resolve(config.select, jnp.int32(0))(jax.random.key(0), batch)
        zeros = jnp.zeros(batch.response_length.shape, jnp.float32)
        none = config.reference.mode == "none"
        logps = Logps(policy=zeros, reference=None if none else zeros, length=batch.response_length)
        return resolve(config.loss, jnp.int32(0))(logps, batch)

    try:
        losses, metrics = jax.eval_shape(trace, batch)
    except (ValueError, TypeError) as error:
        raise UserError(f"{_name(config.loss)} on this data: {error}") from error
    wrong = {n: x.shape for n, x in {"loss": losses, **metrics}.items() if x.shape != (2,)}
    if wrong:
        raise UserError(
            f"{_name(config.loss)}: wanted one value per prompt, [B], found shapes {wrong} for B=2"
        )


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


def bound(function: Callable[..., Any], name: str, default: float) -> float:
    """A hyperparameter of a loss as a number: bound, by default, or ``default``; a schedule's end.

    Used for reporting rewards on the scale the loss trains them on.
    """
    keyword = keywords(function.func if isinstance(function, functools.partial) else function)
    found = function.keywords.get(name) if isinstance(function, functools.partial) else None
    if found is None and name in keyword:
        found = keyword[name].default
    if found is None or found is inspect.Parameter.empty:
        return default
    return float(found(jnp.int32(np.iinfo(np.int32).max)) if callable(found) else found)
