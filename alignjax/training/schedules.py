"""Replaces scheduled hyperparameters by their values at a step."""

import functools
from typing import Any

from alignjax.types import Array, RunSchedule, Schedule


def resolve(function: Any, step: Array, steps: int) -> Any:
    """Replaces every schedule among a partial's keywords, at any depth, by its value at ``step``.

    So a loss never gets a schedule. Schedules in tuples are replaced too; other values are returned
    unchanged. A `RunSchedule` goes over ``steps`` steps.
    """
    if isinstance(function, Schedule):
        return function.at(step)
    if isinstance(function, RunSchedule):
        assert steps, "a RunSchedule among the hyperparameters needs Update.steps"
        return function.over(steps)(step)
    if type(function) is tuple:
        return tuple(resolve(each, step, steps) for each in function)
    if not isinstance(function, functools.partial):
        return function
    bound = {name: resolve(value, step, steps) for name, value in function.keywords.items()}
    return functools.partial(function.func, *function.args, **bound)
