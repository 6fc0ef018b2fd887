"""Checks a config when it is made: types, ranges, and rules across fields.

Ranges are metadata of the fields. Rules across the fields of a section are in its method ``rules``;
a recipe's section has rules across the whole config in its method ``rules_of_run``. `Config` calls
this module, which imports none of the dataclasses.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config.fields import fits, keywords, sections, takes_function, type_name
from alignjax.config.ranges import FINITE, KEYWORDS, WHOLE, Rule
from alignjax.errors import UserError, did_you_mean


def check(config: Any) -> None:
    """Refuses a config that cannot run.

    Raises:
      UserError: names the field, what was wanted and what was found.
    """
    _check_types(config, "")
    for at, section in _sections_of_recipe(config):
        _check_types(section, at)
    if config.recipe is not None:
        check_keywords(config.recipe, "recipe")
    _check_task(config)
    _check_best(config)
    _check_follow(config)
    for at, section in sections(config):
        _check(section, at, _ranges(section))
        if hasattr(section, "rules"):
            _check(section, at, section.rules())
    _check(config, "", _row_rules(config))
    for _, section in _sections_of_recipe(config):
        _check(config, "", section.rules_of_run(config))
    for at, section in sections(config):
        _check_functions(section, at)


def _check(section: Any, at: str, rules: typing.Iterable[Rule]) -> None:
    for holds, field, wanted, found in rules:
        if not holds:
            path = f"{at}.{field}" if at else field
            value = get(section, field) if found is dataclasses.MISSING else found
            # Not the whole section, which would fill the line.
            text = type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
            raise UserError(f"{path}: wanted {wanted}, found {text}")


def _sections_of_recipe(config: Any) -> Iterator[tuple[str, Any]]:
    for at, section in sections(config):
        if hasattr(section, "rules_of_run"):
            yield at, section


def _check_task(config: Any) -> None:
    """Checks that either a policy or a reward model is trained, unless the recipe has settings."""
    if any(_sections_of_recipe(config)):
        return
    if (config.loss is None) == (config.reward_loss is None):
        raise UserError(
            "loss, reward_loss: wanted one of them (loss trains a policy, reward_loss a reward "
            f"model; a game both), found {'both' if config.loss is not None else 'none'}"
        )
    if config.reward_loss is not None:
        wanted = "none with reward_loss; it is for policies, and would not be read"
        unread = ("baseline", "candidates", "evaluate.judge", "evaluate.scorers")
        _check(config, "", (Rule(not get(config, field), field, wanted) for field in unread))


def _check_best(config: Any) -> None:
    """Refuses ``keep_best`` where it has no effect."""
    for at, section in sections(config):
        if not getattr(section, "keep_best", ""):
            continue
        alone = at == "train" and _trains_one_policy(config)
        measured = config.evaluate.held_out and section.eval_every != 0
        wanted = "empty: only a run of one policy with one loss reads it"
        _check(section, at, [Rule(alone, "keep_best", wanted)])
        wanted = "empty where nothing is evaluated (evaluate.held_out, train.eval_every)"
        _check(section, at, [Rule(measured, "keep_best", wanted)])


def _check_follow(config: Any) -> None:
    """Refuses a reference that follows the policy where that is not one whole network."""
    if config.reference.follow is None:
        return
    one = "none: only the reference of one policy with one loss can follow it"
    whole = (
        "none with lora: the reference is the adapters' base, and no adapters of one rank are the "
        "mean of others (lora=none trains all parameters)"
    )
    rules = (_trains_one_policy(config), one), (config.lora is None, whole)
    _check(config, "", (Rule(holds, "reference.follow", wanted) for holds, wanted in rules))


def _trains_one_policy(config: Any) -> bool:
    return config.loss is not None and not any(_sections_of_recipe(config))


def _check_types(value: Any, at: str) -> None:
    """Checks the fields' types, because wrong ones would fail far from the config."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        path = f"{at}.{field.name}" if at else field.name
        found, wanted = getattr(value, field.name), hints[field.name]
        if not fits(found, wanted):
            raise UserError(f"{path}: wanted {type_name(wanted)}, found {found!r}")
        if dataclasses.is_dataclass(found):
            _check_types(found, path)


def _ranges(section: Any) -> Iterator[Rule]:
    for field in dataclasses.fields(section):
        allowed, value = field.metadata.get("range"), getattr(section, field.name)
        if allowed is not None and value is not None:
            yield Rule(bool(allowed.holds(value)), field.name, allowed.wanted)


def _row_rules(config: Any) -> Iterator[Rule]:
    """Requires that every batch splits evenly over the devices that hold rows."""
    rows = config.mesh.data * config.mesh.fsdp
    for at, section in sections(config):
        size = getattr(section, "batch_size", None)
        if size is None:
            continue
        wanted = f"a multiple of mesh.data x mesh.fsdp ({rows})"
        yield Rule(size % rows == 0, f"{at}.batch_size", wanted)


def _check_functions(section: Any, at: str) -> None:
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        path = f"{at}.{field.name}" if at else field.name
        value, later = getattr(section, field.name), field.metadata.get("later", ())
        for place, function in _functions(value, hints[field.name], path):
            check_keywords(function, place, later)


def _functions(value: Any, hint: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Yields the values that should be functions, alone or in a tuple, with their paths."""
    if isinstance(value, tuple) and any(takes_function(h) for h in _items(hint)):
        yield from ((f"{at}[{i}]", function) for i, function in enumerate(value))
    elif value is not None and takes_function(hint):
        yield at, value


def _items(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is tuple else ()


def check_keywords(function: Callable[..., Any], field: str, later: tuple[str, ...] = ()) -> None:
    """Checks the keywords bound to a function: known, complete, of the right type and range.

    Args:
      function: of the config.
      field: of the config that has it.
      later: keywords that are bound when the function is called.

    Raises:
      UserError: names the field, the function and the keyword, and suggests the closest one.
    """
    from alignjax.types import RunSchedule, Schedule  # imports JAX: slow

    plain, args, bound = function, (), {}
    if isinstance(function, functools.partial):
        plain, args, bound = function.func, function.args, function.keywords
    if not inspect.isfunction(plain):
        raise UserError(f"{field}: wanted a function or a partial of one, found {function!r}")
    if args:
        raise UserError(
            f"{field}: wanted hyperparameters bound by keyword, found {args!r} bound by position "
            f"to {plain.__name__}"
        )
    known = keywords(plain)
    for name, value in bound.items():
        if name not in known:
            takes = ", ".join(known) or "none (keywords are what follows a * in its signature)"
            raise UserError(
                f"{field}.{name}: {plain.__module__}.{plain.__name__} takes no such "
                f"keyword{did_you_mean(name, known)}; it takes {takes}"
            )
        wanted = known[name].annotation
        is_schedule = isinstance(value, Schedule | RunSchedule) and not takes_function(wanted)
        if not is_schedule and fits(value, float):
            allowed = KEYWORDS.get(name, WHOLE if isinstance(value, int) else FINITE)
            # A function's own default is allowed: grpo.loss has beta=0.0, no KL term.
            if not allowed.holds(value) and value != known[name].default:
                raise UserError(f"{field}.{name}: wanted {allowed.wanted}, found {value!r}")
        if not is_schedule and not fits(value, wanted):
            hint = "; for a schedule: types.Schedule(schedule)" if callable(value) else ""
            raise UserError(f"{field}.{name}: wanted {type_name(wanted)}, found {value!r}{hint}")
        for at, inner in _functions(value, wanted, f"{field}.{name}"):
            if inspect.isfunction(inner) or isinstance(inner, functools.partial):
                check_keywords(inner, at)
    for name, parameter in known.items():
        missing = parameter.default is parameter.empty and name not in bound
        if missing and name not in later:
            raise UserError(f"{field}.{name}: {plain.__name__} needs it; bind it with partial")


def get(config: Any, field: str) -> Any:
    """Returns the value at a dotted path; None if a part of the path is None or does not exist."""
    for name in field.split("."):
        if config is None:
            return None
        is_partial = isinstance(config, functools.partial)
        config = config.keywords.get(name) if is_partial else getattr(config, name, None)
    return config
