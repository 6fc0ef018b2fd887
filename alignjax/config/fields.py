"""Parses, checks and describes the fields of a config by their annotations."""

import ast
import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.errors import UserError


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function under a partial, or the function itself."""
    return function.func if isinstance(function, functools.partial) else function


def name_of(function: Callable[..., Any]) -> str:
    """Names a function, or the one under a partial, as ``module.name``."""
    return f"{plain(function).__module__}.{plain(function).__name__}"


def is_marked(function: Callable[..., Any], mark: str) -> bool:
    """Tells whether a function, or one bound to it, has a mark of `types`: ``compares_rows``."""
    bound = [parameter.default for parameter in keywords(function).values()]
    inner = [x for value in bound for x in (value if isinstance(value, tuple) else (value,))]
    return getattr(plain(function), mark, False) or any(
        is_marked(x, mark)
        for x in inner
        if inspect.isfunction(x) or isinstance(x, functools.partial)
    )


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Finds the keyword-only parameters of a function; their annotations are types, not text."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # an annotation names something that only type checkers import
        signature = inspect.signature(function)
    return {n: p for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def _options(hint: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or else the annotation itself without `Annotated`."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def takes_function(hint: Any) -> bool:
    """Tells whether a parameter with this annotation takes a function."""
    return any(typing.get_origin(o) is collections.abc.Callable for o in _options(hint))


def type_name(hint: Any) -> str:
    """Writes an annotation in short form, such as ``float | None``."""

    def name(option: Any) -> str:
        if option is type(None):
            return "None"
        if typing.get_origin(option) is collections.abc.Callable:
            return "a function"
        return str(option) if typing.get_args(option) else getattr(option, "__name__", str(option))

    return " | ".join(name(option) for option in _options(hint))


def fits(value: Any, hint: Any) -> bool:
    """Tells whether a value has the annotated type. An int is also a float; a bool is neither."""
    for option in _options(hint):
        plain = typing.get_origin(option) or option
        if plain in (int, float):
            wanted = numbers.Integral if plain is int else numbers.Real
            ok = isinstance(value, wanted) and not isinstance(value, bool)
        elif plain in (None, type(None)):
            ok = value is None
        elif plain is tuple:
            ok = isinstance(value, tuple) and all(
                fits(x, h) for x, h in zip(value, _items(option, len(value)), strict=True)
            )
        elif plain is collections.abc.Callable:
            ok = callable(value)
        elif inspect.isclass(plain) and plain not in (Any, inspect.Parameter.empty):
            ok = isinstance(value, plain)
        else:  # Any, no annotation, or an annotation as text: any value
            ok = plain is not typing.Never
        if ok:
            return True
    return False


def _items(hint: Any, count: int) -> list[Any]:
    """Returns the annotations of a tuple's items; for a wrong number, ones that no value fits."""
    args = typing.get_args(hint)
    if not args:
        return [Any] * count
    if args[-1] is Ellipsis:
        return [args[0]] * count
    return list(args) if len(args) == count else [typing.Never] * count


def parse(text: str, hint: Any, path: str) -> Any:
    """Reads a value of the annotated type: numbers, booleans, None, text and tuples.

    Raises:
      UserError: the text is no such value; names the field ``path``.
    """
    text = text.strip()
    for option in sorted(_options(hint), key=lambda option: option is str):  # str fits anything
        try:
            return _parse(text, option)
        except (ValueError, SyntaxError):
            continue
    raise UserError(f"--set {path}: wanted {type_name(hint)}, found {text!r}")


def _parse(text: str, option: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):  # TypeError: a list as a key, {[]: 1}
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    plain = typing.get_origin(option) or option
    if plain is str:
        return value if isinstance(value, str) else text
    if plain is tuple and isinstance(value, list | tuple):
        value = tuple(
            float(x) if h is float and fits(x, float) else x
            for x, h in zip(value, _items(option, len(value)), strict=True)
        )
    if plain is collections.abc.Callable or dataclasses.is_dataclass(plain):
        raise ValueError("a function or a group of fields has no text")
    if not fits(value, option):
        raise ValueError(text)
    return float(value) if plain is float else value


def describe(value: Any) -> Any:
    """Describes a config as JSON data: dataclasses as dicts, functions by name and keywords.

    Configs that train differently have different descriptions. A closure, such as an optax
    schedule, is described by its name and the values it closes over.
    """
    from alignjax.types import RunSchedule, Schedule  # imports JAX: slow

    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such number
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Schedule):
        return describe(value.at)
    if isinstance(value, RunSchedule):
        return describe(value.over)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, functools.partial):
        args = {"args": describe(value.args)} if value.args else {}
        bound = {k: describe(v) for k, v in value.keywords.items()}
        return {**describe(value.func), **args, **bound}
    if inspect.ismethod(value):
        return {**describe(value.__func__), "self": describe(value.__self__)}
    if inspect.isfunction(value):
        name = {"function": f"{value.__module__}.{value.__qualname__}"}
        closed = inspect.getclosurevars(value).nonlocals
        return {**name, **{k: describe(v) for k, v in sorted(closed.items())}}
    if hasattr(value, "__wrapped__"):  # jitted, cached
        return describe(value.__wrapped__)
    if isinstance(value, type) or inspect.isbuiltin(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # an array, whose repr omits digits and items
        return describe(value.tolist())
    # Not by repr, which may contain an address that differs in every process.
    return {"object": describe(type(value)), **describe(getattr(value, "__dict__", {}))}


def sections(config: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dataclass of a config with its path, also those that its recipe binds."""
    yield at, config
    for field in dataclasses.fields(config):
        path, value = f"{at}.{field.name}" if at else field.name, getattr(config, field.name)
        binds = field.name == "recipe" and isinstance(value, functools.partial)
        inside = value.keywords if binds else {}
        named = {path: value, **{f"{path}.{name}": x for name, x in inside.items()}}
        for name, section in named.items():
            if dataclasses.is_dataclass(section) and not isinstance(section, type):
                yield from sections(section, name)


def identity(section: Any) -> dict[str, Any]:
    """Describes a section without the fields that may change when a run is resumed."""
    free = {f.name for f in dataclasses.fields(section) if not f.metadata.get("identity", True)}
    return {name: x for name, x in describe(section).items() if name not in free}


def identity_changes(old: dict[str, Any], config: Any) -> list[str]:
    """Lists ``field: old -> new`` for changes that make it another run."""
    free = [
        f"{at}.{field.name}" if at else field.name
        for at, section in sections(config)
        for field in dataclasses.fields(section)
        if not field.metadata.get("identity", True)
    ]

    def is_free(change: str) -> bool:
        path = change.partition(": ")[0]
        return any(path == field or path.startswith(f"{field}.") for field in free)

    return [x for x in differences(old, describe(config)) if not is_free(x)]


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Lists ``field: old -> new`` for every leaf at which two descriptions differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in sorted(set(old) | set(new)):
            path = f"{at}.{name}" if at else name
            out += differences(old.get(name), new.get(name), path)
        return out
    return [] if old == new else [f"{at}: {old!r} -> {new!r}"]
