"""alignjax: align language models with human preferences, in JAX.

``import alignjax as aj`` gives ``aj.load``, ``aj.train`` and ``aj.losses``: docs/library.md. Each
is imported when it is first used: importing the package stays light.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_FOUND_IN = {
    "load": "alignjax.library.loading",
    "Policy": "alignjax.library.loading",
    "train": "alignjax.library.training",
    "Result": "alignjax.library.training",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module("alignjax.losses")
    if name in _FOUND_IN:
        return getattr(importlib.import_module(_FOUND_IN[name]), name)
    raise AttributeError(f"module 'alignjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FOUND_IN, "losses"])
