"""The losses, one file each; a module such as ``losses.dpo`` is imported when it is first used."""

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

    Losses that only a recipe of several stages can train are left out. Their modules have a line
    ``RECIPE = "configs/..."`` with an example config.
    """
    return {name: _about(text) for name, text in _modules() if not _recipe(text)}


@functools.cache
def recipes() -> dict[str, str]:
    """Lists the example config of each loss that only a recipe can train, by the loss's name."""
    return {name: recipe for name, text in _modules() if (recipe := _recipe(text))}


def _modules() -> list[tuple[str, str]]:
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    texts = [(path.stem, path.read_text(encoding="utf-8")) for path in files]
    return [(name, text) for name, text in texts if re.search(r"^def loss\(", text, re.M)]


def _recipe(text: str) -> str:
    match = re.search(r'^RECIPE = "(.*)"', text, re.M)
    return match[1] if match else ""


def _about(text: str) -> str:
    """Returns the first line of a module's docstring."""
    return text.partition('"""')[2].partition("\n")[0].removesuffix('"""').rstrip(".")
