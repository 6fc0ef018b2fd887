"""The losses, one file each; ``losses.dpo`` is imported when it is first used."""

import functools
import importlib
import importlib.util
import pathlib
import re
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_") or importlib.util.find_spec(f"alignjax.losses.{name}") is None:
        raise AttributeError(f"module 'alignjax.losses' has no attribute {name!r}")
    return importlib.import_module(f"alignjax.losses.{name}")


@functools.cache
def methods() -> dict[str, str]:
    """Describes the methods by name: the modules with a ``loss``, without importing them.

    A module whose loss only a recipe of several stages trains is none. It has a line
    ``RECIPE = "configs/..."``, the config that shows it.
    """
    return {name: _about(text) for name, text in _modules() if not _recipe(text)}


@functools.cache
def recipes() -> dict[str, str]:
    """Gives the config of each loss that only a recipe trains, by the loss's name."""
    return {name: recipe for name, text in _modules() if (recipe := _recipe(text))}


def _modules() -> list[tuple[str, str]]:
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    texts = [(path.stem, path.read_text(encoding="utf-8")) for path in files]
    return [(name, text) for name, text in texts if re.search(r"^def loss\(", text, re.M)]


def _recipe(text: str) -> str:
    found = re.search(r'^RECIPE = "(.*)"', text, re.M)
    return found[1] if found else ""


def _about(text: str) -> str:
    """Takes the first line of a module's docstring."""
    return text.partition('"""')[2].partition("\n")[0].removesuffix('"""').rstrip(".")
