"""Declares the range of a config's field, and whether it is part of a run's identity.

Both are metadata of the dataclass's field, which `validate` and `fields` read.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may have."""

    wanted: str  # in words, for messages
    holds: Callable[[Any], bool]


def between(low: float, high: float, ends: str) -> Range:
    """Makes a range of numbers from low to high; ``ends`` is ``[]``, ``()``, ``[)`` or ``(]``."""

    def holds(x: float) -> bool:
        above = low <= x if ends[0] == "[" else low < x
        return above and (x <= high if ends[1] == "]" else x < high)

    return Range(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", holds)


def one_of(*names: str) -> Range:
    """Makes a range of these texts."""
    return Range(f"{', '.join(names[:-1])} or {names[-1]}", lambda x: x in names)


def count(low: int, high: int) -> Range:
    """Makes a range of whole numbers from low to high."""
    return Range(f"a whole number in [{low}, {high:,}]", lambda x: low <= x <= high)


LARGEST = 3.4e38  # about the largest float32
POSITIVE = Range(f"a positive number, at most {LARGEST:g}", lambda x: 0 < x <= LARGEST)
NOT_NEGATIVE = Range(f"a number in [0, {LARGEST:g}]", lambda x: 0 <= x <= LARGEST)
FINITE = Range(f"a number in [-{LARGEST:g}, {LARGEST:g}]", lambda x: abs(x) <= LARGEST)
WHOLE = count(-(2**31), 2**31 - 1)  # int32
STEPS = count(0, 10**8)  # of a training; 0: see the field
EVERY = count(1, 10**8)  # steps between two events
ROWS = count(0, 2**31 - 1)
BATCH = count(1, 2**20)  # rows
TOKENS = count(2, 2**20)
FEW = count(1, 2**16)
FEW_OR_NONE = count(0, 2**16)
SHARE = between(0, 1, "[]")
SEED = Range("a number in [0, 2^31)", lambda x: 0 <= x < 2**31)
# Keywords that mean the same in every function.
KEYWORDS = {"beta": POSITIVE}


def setting(
    default: Any = dataclasses.MISSING,
    range: Range | None = None,
    *,
    identity: bool = True,
    later: tuple[str, ...] = (),
) -> Any:
    """Declares a field of a config.

    Args:
      default: as for `dataclasses.field`.
      range: the allowed values; None is allowed if the annotation allows it.
      identity: whether another value makes it another run. False: the field decides when, where or
        how something is computed or measured, not what is trained.
      later: keywords of a function that are bound when it is called, not in the config.
    """
    metadata = {"range": range, "identity": identity, "later": later}
    field: Any = dataclasses.field(default=default, metadata=metadata)
    return field


class Rule(NamedTuple):
    """A condition on several fields."""

    holds: bool
    field: str
    wanted: str
    found: Any = dataclasses.MISSING  # by default the field's value
