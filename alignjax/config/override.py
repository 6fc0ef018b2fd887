"""Applies changes as text to a config: ``--set optim.schedule=cosine``, ``--set loss=kto.loss``."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config.fields import keywords, parse, plain, takes_function
from alignjax.errors import UserError, did_you_mean

# Folders that may be left out in the name of a function: kto.loss, scorers.judged.
PLACES = ("losses", "training", "data", "rewards", "world", "recipes")
ITSELF = ""  # key in a tree of changes: the value of the field itself; other keys are its parts


def tree_of(overrides: list[str]) -> dict[str, Any]:
    """Makes a tree of ``field=value`` texts, by the parts of their dotted fields.

    Raises:
      UserError: a text is not of this form.
    """
    tree: dict[str, Any] = {}
    for change in overrides:
        field, equals, text = change.partition("=")
        if not equals:
            raise UserError(f"--set: wanted field=value, found {change!r}")
        node = tree
        for name in field.strip().split("."):
            node = node.setdefault(name, {})
        node[ITSELF] = text
    return tree


def apply(config: Any, tree: dict[str, Any]) -> Any:
    """Applies changes, all at once: only the result is checked.

    Raises:
      UserError: one of them does not fit.
    """
    return _apply(config, tree, "", config)


def _apply(value: Any, tree: dict[str, Any], at: str, root: Any) -> Any:
    known, current = _fields(value)
    if not known and not callable(value):
        raise UserError(f"--set {at}: it is {value!r} and has no fields")
    changed = {}
    for name, new in tree.items():
        path = f"{at}.{name}" if at else name
        if name not in known:
            has = ", ".join(known) or "none"
            raise UserError(
                f"--set {path}: no such field{_nearest(path, known, root)}; "
                f"{at or 'the config'} has {has}"
            )
        changed[name] = _changed(current[name], known[name], new, path, root)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **changed)
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *value.args, **{**value.keywords, **changed})
    return functools.partial(value, **changed)


def _changed(value: Any, hint: Any, new: dict[str, Any], path: str, root: Any) -> Any:
    """Computes a field's new value: first the field itself, if it is set, then its parts."""
    parts = {name: x for name, x in new.items() if name != ITSELF}
    if ITSELF in new:
        text = new[ITSELF]
        if hasattr(value, "none") and text.strip().lower() == "none":
            value = value.none()
        elif takes_function(hint) and text.strip() not in ("None", "none"):
            value = _function(text.strip(), value, path)
        else:
            value = parse(text, hint, path)
            if parts and not callable(value):
                raise UserError(f"--set {path}: parts of it are set as well ({', '.join(parts)})")
    return _apply(_section(value, hint), parts, path, root) if parts else value


def _fields(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Finds the fields of a dataclass or the keywords of a function: annotations and values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        known: Any = {f.name: hints[f.name] for f in dataclasses.fields(value)}
        return known, {name: getattr(value, name) for name in known}
    if isinstance(value, functools.partial) or inspect.isfunction(value):
        bound = value.keywords if isinstance(value, functools.partial) else {}
        parameters = keywords(plain(value))
        known = {name: p.annotation for name, p in parameters.items()}
        return known, {name: bound.get(name, p.default) for name, p in parameters.items()}
    return {}, {}


def _section(value: Any, hint: Any) -> Any:
    """Returns the group of fields to change; for None the group's defaults, if it has any."""
    missing, options = dataclasses.MISSING, typing.get_args(hint) if value is None else ()
    groups: list[Any] = [option for option in options if dataclasses.is_dataclass(option)]
    for group in groups:
        defaults = [(f.default, f.default_factory) for f in dataclasses.fields(group)]
        if (missing, missing) not in defaults:
            return group()
    return value


def _nearest(path: str, known: dict[str, Any], root: Any) -> str:
    """Suggests a field: one with the same name elsewhere, or else one with a close name here."""
    last = path.rpartition(".")[2]
    same = [p for p in _paths(root, "") if p.rpartition(".")[2] == last]
    if not same:
        return did_you_mean(last, known)
    return f" (did you mean {min(same, key=lambda p: p.count('.'))!r}?)"


def _paths(value: Any, at: str) -> Iterator[str]:
    known, current = _fields(value)
    for name, hint in known.items():
        path = f"{at}.{name}" if at else name
        yield path
        yield from _paths(_section(current[name], hint), path)


def _function(text: str, current: Any, path: str) -> Callable[..., Any]:
    """Finds a function by its name: beside the current one, or in a module of the package.

    Raises:
      UserError: there is none.
    """
    module, _, name = text.rpartition(".")
    beside = getattr(plain(current), "__globals__", {}) if callable(current) else {}
    found = beside.get(name) if not module else None
    if found is None and not module and beside:  # a name of the package itself, such as sources.hh
        package = beside.get("__name__", "").rpartition(".")[0]
        places = [package] if package.startswith("alignjax.") else []
        found = _in_modules(places, name)
    elif module:
        inside = module.removeprefix("alignjax.")
        found = _in_modules(
            [f"alignjax.{p}.{inside}" for p in PLACES] + [f"alignjax.{inside}"], name
        )
    if found is None:
        near = [x for x, y in beside.items() if inspect.isfunction(y) and not x.startswith("_")]
        hint = did_you_mean(name, near) if not module else ""
        wanted = "wanted the name of a function, such as kto.loss or optim.cosine"
        raise UserError(f"--set {path}: {wanted}, found {text!r}{hint}")
    return found


def _in_modules(modules: list[str], name: str) -> Callable[..., Any] | None:
    for module in modules:
        parts = module.split(".")
        if not all(part.isidentifier() and not part.startswith("_") for part in (*parts, name)):
            continue
        try:
            exists = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # its parent does not exist
            continue
        function = getattr(importlib.import_module(module), name, None) if exists else None
        if inspect.isfunction(function):
            return function
    return None
