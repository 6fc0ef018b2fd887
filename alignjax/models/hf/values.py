"""Reads numbers from config.json, which is not trusted."""

import math
from collections.abc import Mapping
from typing import Any

from alignjax.errors import UserError

LARGEST = 2**24  # larger sizes are refused before they cost time or memory


def positive(fields: Mapping[str, Any], key: str, file: str, default: Any = None) -> float:
    """Reads a number, ``default`` if the field is missing or null.

    Raises:
      UserError: it is not a finite number above 0.
    """
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{file}: {key}: wanted a number above 0, found {value!r:.80}")
    return float(value)


def size(fields: Mapping[str, Any], key: str, file: str, default: Any = None) -> int:
    """Reads an integer from 1 to `LARGEST`, ``default`` if the field is missing or null."""
    value = positive(fields, key, file, default)
    if value != int(value) or value > LARGEST:
        raise UserError(f"{file}: {key}: wanted an integer of at most {LARGEST}, found {value:g}")
    return int(value)
