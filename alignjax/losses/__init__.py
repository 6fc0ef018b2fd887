"""The losses, one file each; ``losses.dpo`` is imported when it is first used."""

import importlib
import importlib.util
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_") or importlib.util.find_spec(f"alignjax.losses.{name}") is None:
        raise AttributeError(f"module 'alignjax.losses' has no attribute {name!r}")
    return importlib.import_module(f"alignjax.losses.{name}")
