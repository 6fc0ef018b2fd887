"""The range of a config's field, and whether it is part of a run's identity.

Both stand beside the field, as metadata of the dataclass; `validate` and `fields` read them.
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
    """Numbers from low to high; ``ends`` is ``[]``, ``()``, ``[)`` or ``(]``."""

    def holds(x: float) -> bool:
        above = low <= x if ends[0] == "[" else low < x
        return above and (x <= high if ends[1] == "]" else x < high)

    return Range(f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}", holds)


def one_of(*names: str) -> Range:
    """One of these texts."""
    return Range(f"{', '.join(names[:-1])} or {names[-1]}", lambda x: x in names)


def count(low: int, high: int) -> Range:
    """Whole numbers from low to high: of what is allocated, compiled or counted."""
    return Range(f"a whole number in [{low}, {high:,}]", lambda x: low <= x <= high)


LARGEST = 3.4e38  # below what float32 holds
POSITIVE = Range(f"a positive number, at most {LARGEST:g}", lambda x: 0 < x <= LARGEST)
NOT_NEGATIVE = Range(f"a number in [0, {LARGEST:g}]", lambda x: 0 <= x <= LARGEST)
FINITE = Range(f"a number in [-{LARGEST:g}, {LARGEST:g}]", lambda x: abs(x) <= LARGEST)
WHOLE = count(-(2**31), 2**31 - 1)  # what int32 holds
STEPS = count(0, 10**8)  # of a training; 0: see the field
EVERY = count(1, 10**8)  # so many steps
ROWS = count(0, 2**31 - 1)
BATCH = count(1, 2**20)  # rows
TOKENS = count(2, 2**20)
FEW = count(1, 2**16)
FEW_OR_NONE = count(0, 2**16)
SHARE = between(0, 1, "[]")
SEED = Range("a number in [0, 2^31)", lambda x: 0 <= x < 2**31)
# Keywords of functions that mean the same wherever they are bound.
KEYWORDS = {"beta": POSITIVE}


def setting(
    default: Any = dataclasses.MISSING,
    range: Range | None = None,
    *,
    identity: bool = True,
    later: tuple[str, ...] = (),
) -> Any:
    """A field of a config.

    Args:
      default: as of `dataclasses.field`.
      range: which values it may have; None is allowed wherever the annotation allows it.
      identity: whether a run that goes on with another value is another run. False: the field
        decides when, where or how it is measured, not what is trained.
      later: keywords of a function that are bound when it is called, not in the config.
    """
    metadata = {"range": range, "identity": identity, "later": later}
    field: Any = dataclasses.field(default=default, metadata=metadata)
    return field


class Rule(NamedTuple):
    """Something that must hold of several fields together."""

    holds: bool
    field: str
    wanted: str
    found: Any = dataclasses.MISSING  # by default the field's value
