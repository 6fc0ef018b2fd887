"""Finds the implicit reward of a loss, for evaluation."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax.config.fields import keywords, plain
from alignjax.training.schedules import resolve
from alignjax.types import Array, Logps


def implicit_reward(loss: Callable[..., Any]) -> Callable[[Logps], Array]:
    """Makes a function from `Logps` to the ``[B, K]`` rewards that the loss trains.

    They are ``beta * implicit(logps)`` with the loss's keywords; schedules have their last value.
    Without ``beta`` it is 1. Without ``implicit`` it is that of `types.trains`, with the keywords
    that it shares with the loss; else the log-ratio, or without a reference the log-probability.
    Of a loss that is given another one (``loss``) they are the rewards of that one.
    """
    # After the end of a long run: schedules have their last value, and their products fit int32.
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
    inner = hyperparameter("loss", None)  # of a loss that weighs another one
    if callable(inner):
        return implicit_reward(inner)
    beta, implicit = hyperparameter("beta", 1.0), hyperparameter("implicit", own or _log_ratio)
    return lambda logps: beta * implicit(logps)


def _log_ratio(logps: Logps) -> Array:
    return logps.policy if logps.reference is None else logps.log_ratio
