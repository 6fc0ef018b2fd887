"""Writes a config as a Python file."""

import dataclasses
import functools
import importlib
import inspect
import math
from typing import Any

from alignjax.config.fields import describe, plain

WIDTH = 88  # characters of a line at most; longer ones are broken
# Fields that users often change: written even if they have their default.
SHOWN = (
    *("epochs", "batch_size", "learning_rate", "rank", "alpha", "max_prompt_tokens"),
    *("max_response_tokens", "eval_fraction"),
)


def source(config: Any, about: str) -> str:
    """Writes a config file whose config has the same description as ``config``.

    Args:
      config: its functions must be functions of modules of alignjax, not closures.
      about: docstring of the file.
    """
    imports: set[tuple[str, str]] = set()
    made = _dataclass(config, imports, indent=4, broken=True)
    modules = sorted({module for module, _ in imports})
    lines = [
        _import(module, sorted(n for m, n in imports if m == module))
        for module in sorted(modules, key=lambda name: (name.startswith("alignjax"), name))
    ]
    split = next(i for i, line in enumerate(lines) if line.startswith("from alignjax"))
    if split:
        lines.insert(split, "")
    body = f"def get_config() -> Config:\n    return {made}\n"
    about = about.replace("\\", "\\\\").replace('"', "'")
    return f'"""{about}"""\n\n' + "\n".join(lines) + "\n\n\n" + body


def _import(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH + 12:
        return line
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


def _write(value: Any, imports: set[tuple[str, str]], indent: int) -> str:
    from alignjax.types import RunSchedule  # imports JAX: slow

    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if value is None or isinstance(value, bool | int | float | str):
        return _text(value)
    if isinstance(value, RunSchedule):
        return _schedule(value, imports)
    if isinstance(value, tuple):
        inside = ", ".join(_write(x, imports, indent) for x in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, functools.partial):
        imports.add(("functools", "partial"))
        named = {name: _write(x, imports, indent + 4) for name, x in value.keywords.items()}
        return _call("partial", [_name(value.func, imports)], named, indent)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dataclass(value, imports, indent)
    assert inspect.isfunction(value), value
    return _name(value, imports)


def _text(value: Any) -> str:
    """Writes a literal, with double quotes if they need no escape."""
    if not isinstance(value, str) or '"' in value or "\\" in repr(value):
        return repr(value)
    return f'"{value}"'


def _dataclass(
    value: Any, imports: set[tuple[str, str]], indent: int, *, broken: bool = False
) -> str:
    """Writes the fields that differ from their defaults, and those of `SHOWN`."""
    module = type(value).__module__
    imports.add((module.removesuffix(".schema"), type(value).__name__))
    named = {}
    for field in dataclasses.fields(value):
        now, default = getattr(value, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = default is dataclasses.MISSING or field.name in SHOWN
        if shown or describe(now) != describe(default):
            named[field.name] = _write(now, imports, indent + 4)
    return _call(type(value).__name__, [], named, indent, broken=broken)


def _name(function: Any, imports: set[tuple[str, str]]) -> str:
    """Names a function as ``module.name``; imports it from the package if that has it."""
    module, name = function.__module__, function.__name__
    package = importlib.import_module(module.rpartition(".")[0])
    if getattr(package, name, None) is function:
        module = package.__name__
    folder, _, last = module.rpartition(".")
    imports.add((folder, last))
    return f"{last}.{name}"


def _schedule(value: Any, imports: set[tuple[str, str]]) -> str:
    """Writes the call without arguments that makes a schedule."""
    module = importlib.import_module(plain(value.over).__module__)
    for make in vars(module).values():
        makes = getattr(make, "__annotations__", {}).get("return")
        if makes is type(value) and describe(make()) == describe(value):
            return f"{_name(make, imports)}()"
    raise AssertionError(f"{describe(value)} is made by no function of {module.__name__}")


def _call(
    name: str, first: list[str], named: dict[str, str], indent: int, *, broken: bool = False
) -> str:
    """Writes a call on one line, or if that is too long with one argument per line."""
    arguments = [*first, *(f"{key}={text}" for key, text in named.items())]
    line = f"{name}({', '.join(arguments)})"
    if not broken and "\n" not in line and indent + len(line) <= WIDTH:
        return line
    pad = " " * (indent + 4)
    inside = "".join(f"{pad}{argument},\n" for argument in arguments)
    return f"{name}(\n{inside}{' ' * indent})"
