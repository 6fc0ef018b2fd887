"""The implicit reward of a loss, for evaluation."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax.config.fields import keywords, plain
from alignjax.training.schedules import resolve
from alignjax.types import Array, Logps


def implicit_reward(loss: Callable[..., Any]) -> Callable[[Logps], Array]:
    """Finds ``[B, K]`` rewards as the loss trains them: its ``beta`` times its ``implicit``.

    Schedules stand at their end. A loss without ``beta`` has 1. One that does not take ``implicit``
    has that of `types.trains`, with those keywords that the two share; else the log-ratio, or the
    log-probability where there is no reference.
    """
    # A run of any length: `RunSchedule`s have ended by then, and none multiplies beyond int32.
    last = resolve(loss, jnp.int32(np.iinfo(np.int32).max), 2**20)
    bound = last.keywords if isinstance(last, functools.partial) else {}
    known = keywords(plain(last))

    def hyperparameter(name: str, otherwise: Any) -> Any:
        default = known[name].default if name in known else otherwise
        return bound.get(name, default)

    own = getattr(plain(last), "implicit", None)  # of `types.trains`
    if own is not None:
        shared = [name for name in keywords(own) if name in known]
        own = functools.partial(own, **{name: hyperparameter(name, None) for name in shared})
    beta, implicit = hyperparameter("beta", 1.0), hyperparameter("implicit", own or _log_ratio)
    return lambda logps: beta * implicit(logps)


def _log_ratio(logps: Logps) -> Array:
    return logps.policy if logps.reference is None else logps.log_ratio
