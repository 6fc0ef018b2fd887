"""Limits of chat templates: counted during rendering, refused before a value is built.

A rendering has a budget of seconds, rounds and characters. What reads a value through (its text, a
comparison) is refused where that is too much: lists that hold one list many times, and so on, are
small in memory and endless to read.
"""

import re
import threading
import time
from collections.abc import MappingView, Sequence
from typing import Any

import jinja2.sandbox
import jinja2.utils

MAX_SECONDS = 10.0  # for one rendering
MAX_STEPS = 1_000_000  # loop rounds and macro calls in one rendering
MAX_EXTRA = 1_000_000  # characters a rendering may write or build beyond 8 times its input
MAX_NUMBER = 100_000  # the largest integer a template may pass to a function or filter
MAX_INTEGER = 2**63  # in size, of what a template computes
# What a template may call of texts. Others build much from little (translate, expandtabs), or what
# is not counted here (encode).
METHODS = re.compile(
    r"[lr]?strip|r?(find|index|partition|split)|splitlines|(starts|ends)with|remove(pre|suf)fix|upper|"
    r"lower|title|capitalize|casefold|swapcase|count|join|replace|center|[lr]just|zfill|is[a-z]+"
)
MAX_TEMPLATE = 200_000  # characters of a template: parsing and compiling take seconds above that
# What holds values, whose text and comparison read all of them, as often as they occur.
HOLDERS = (list, tuple, dict, MappingView, jinja2.utils.Namespace)
# Filters that read no further than the first level of what they get.
SHALLOW = re.compile(
    r"list|length|count|first|last|map|(select|reject)(attr)?|items|d|default|reverse|batch|slice|attr"
)
SIZED = (list, tuple, dict)  # of these, what tells its length without being read
COMPARING = ("sort", "unique", "min", "max", "groupby", "dictsort", "sum")
# Filters that chat templates do not use, and whose work is hard to bound.
REFUSED = ("format", "xmlattr", "wordwrap", "urlize", "striptags", "pprint")


class Budget(threading.local):
    """What is left of a rendering's limits; one for each thread."""

    steps = 0
    most = 0  # characters and values that may be read at once
    characters = 0
    deadline = 0.0

    def start(self, characters: int) -> None:
        self.steps = MAX_STEPS
        self.most = self.characters = 8 * characters + MAX_EXTRA
        self.deadline = time.monotonic() + MAX_SECONDS


budget = Budget()


class LimitError(jinja2.sandbox.SecurityError):
    """A template that asks for too much."""


def tick() -> str:
    """Runs once per loop round and macro call."""
    budget.steps -= 1
    if budget.steps < 0:
        raise LimitError(f"loops more than {MAX_STEPS} times")
    if time.monotonic() > budget.deadline:
        raise LimitError(f"runs longer than {MAX_SECONDS:g} seconds")
    return ""


def built(value: Any) -> Any:
    """Charges the text or list an operation has built, and refuses a number that is too long."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise LimitError("computes with integers beyond 64 bits")
    if isinstance(value, str | bytes | list | tuple | dict):
        charge(len(value))
    return value


def charge(characters: int) -> None:
    """Takes so many characters from the budget, or refuses to go on."""
    budget.characters -= characters
    if budget.characters < 0:
        raise LimitError("writes too much text")


def _inner(value: Any) -> list[Any] | tuple[Any, ...]:
    """What a value of `HOLDERS` holds, keys included."""
    if isinstance(value, jinja2.utils.Namespace):
        value = value._Namespace__attrs  # as its text has them
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else list(value)


def held(value: Any) -> Any:
    """Refuses what would take too long to compare: a list in a list in a list, each many times."""
    pending, left = [value] if isinstance(value, HOLDERS) else [], budget.most
    while pending:
        items = _inner(pending.pop())
        left -= len(items) + sum(len(x) for x in items if isinstance(x, str))
        if left < 0:
            raise LimitError("holds too much")
        pending.extend(x for x in items if isinstance(x, HOLDERS))
    return value


def cut(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Slices a text or a list, and charges what that builds."""
    return built(value[start:stop:step])


def written(value: Any) -> Any:
    """Charges the text a value turns into: nested lists may be far larger written than held."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, HOLDERS):
            item = _inner(item)
            pending.extend(item)
        charge(len(item) if isinstance(item, str | list | tuple) else 1)
    return value


def refuse_growth(value: Any, args: Sequence[Any], name: str = "") -> None:
    """Refuses calls whose result may be far larger than what goes in."""
    if any(isinstance(arg, int) and abs(arg) > MAX_NUMBER for arg in args):
        raise LimitError(f"uses a number above {MAX_NUMBER}")
    if name == "replace" and isinstance(value, str) and len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        if value.count(old) * len(new) > max(budget.characters, 0):
            raise LimitError("writes too much text")
    if name == "indent" and isinstance(value, str):
        width = max((len(x) if isinstance(x, str) else int(x) for x in args), default=4)
        if (value.count("\n") + 1) * width > max(budget.characters, 0):
            raise LimitError("writes too much text")
    if name == "join" and args and isinstance(value, str | list | tuple):
        glue, items = (value, args[0]) if isinstance(value, str) else (str(args[0]), value)
        if not hasattr(items, "__len__"):  # a generator, which a look would use up
            raise LimitError("joins what is no list")
        size = sum(len(x) for x in items if isinstance(x, str))
        if len(glue) * len(items) + size > max(budget.characters, 0):
            raise LimitError("writes too much text")
