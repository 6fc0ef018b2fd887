"""Reads numbers from config.json, which comes from strangers."""

import math
from collections.abc import Mapping
from typing import Any

from alignjax.errors import UserError

LARGEST = 2**24  # no size is larger: a hostile config costs neither time nor memory


def positive(fields: Mapping[str, Any], key: str, file: str, default: Any = None) -> float:
    """The number of a field, ``default`` where it is missing or null.

    Raises:
      UserError: it is not a finite number above 0.
    """
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{file}: {key}: wanted a number above 0, found {value!r:.80}")
    return float(value)


def size(fields: Mapping[str, Any], key: str, file: str, default: Any = None) -> int:
    """The whole number of a field, see `positive`; `LARGEST` at most."""
    value = positive(fields, key, file, default)
    if value != int(value) or value > LARGEST:
        raise UserError(f"{file}: {key}: wanted a whole number to {LARGEST}, found {value:g}")
    return int(value)
