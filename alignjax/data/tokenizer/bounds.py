"""Limits of chat templates: counted during rendering, refused before a value is built.

A rendering has a budget of seconds, rounds and characters. What reads a value through (its text, a
comparison) is refused where that is too much: lists that hold one list many times, and so on, are
small in memory and endless to read.
"""

import re
import threading
import time
from collections.abc import Iterator, Mapping, MappingView, Sequence
from typing import Any

import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

MAX_SECONDS = 10.0  # for one rendering
MAX_STEPS = 1_000_000  # loop rounds and macro calls in one rendering
MAX_TIMES = 10  # a rendering may write or build so many times its input,
MAX_EXTRA = 1_000_000  # and so many characters more
MAX_NUMBER = 100_000  # the largest integer a template may pass to a function or filter
MAX_INTEGER = 2**63  # in size, of what a template computes
MAX_DEPTH = 500  # lists in lists that are compared or hashed, which Python does on its own stack
MAX_WORK = 10**9  # steps of a search whose time grows with the text and with what is searched
# What a template may call of texts. Others build much from little (translate, expandtabs), or what
# is not counted here (encode).
METHODS = re.compile(
    r"[lr]?strip|r?(find|index|partition|split)|splitlines|(starts|ends)with|remove(pre|suf)fix|upper|"
    r"lower|title|capitalize|casefold|swapcase|count|join|replace|center|[lr]just|zfill|is[a-z]+"
)
MAX_TEMPLATE = 100_000  # characters of a template: parsing and compiling take seconds above that
# What holds values, whose text and comparison read all values, each time they occur.
HOLDERS = (list, tuple, dict, MappingView, jinja2.utils.Namespace)
# Filters that read no further than the first level of what they get.
SHALLOW = re.compile(
    r"list|length|count|first|last|map|(select|reject)(attr)?|items|d|default|reverse|batch|slice|attr"
)
SIZED = (list, tuple, dict)  # of these, what tells its length without being read
COMPARING = ("sort", "unique", "min", "max", "groupby", "dictsort", "sum")
READING = (*COMPARING, "join", "urlencode")  # all values of an iterator
GROWING = ("replace", "join", "indent", "sum", "trim")  # what they are given decides the size
SEARCHES = re.compile(r"[lr]?strip|r(find|index|partition|split)")  # of texts, by pairs of letters
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
        self.most = self.characters = MAX_TIMES * characters + MAX_EXTRA
        self.deadline = time.monotonic() + MAX_SECONDS


budget = Budget()


class LimitError(jinja2.sandbox.SecurityError):
    """A template that asks for too much."""


def tick() -> str:
    """Runs once per loop round and macro call."""
    budget.steps -= 1
    if budget.steps < 0:
        raise LimitError(f"loops more than {MAX_STEPS} times")
    check_time()
    return ""


def check_time() -> None:
    """Runs before whatever may take long."""
    if time.monotonic() > budget.deadline:
        raise LimitError(f"runs longer than {MAX_SECONDS:g} seconds")


def built(value: Any) -> Any:
    """Charges the text or list an operation has built, and refuses a number that is too long."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise LimitError("computes with integers beyond 64 bits")
    if isinstance(value, str | bytes | list | tuple | dict):
        charge(len(value))
    elif isinstance(value, Iterator):  # which has a frame of its own
        charge(8)
    return value


def pieces(value: Any) -> Any:
    """Charges the parts that a text was cut into."""
    if isinstance(value, list | tuple):
        charge(sum(map(len, value)) // 2)
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
    if not isinstance(value, HOLDERS):
        return value
    check_time()
    level, left = [value], budget.most
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for holder in level:
            items = _inner(holder)
            left -= len(items) + sum(len(x) for x in items if isinstance(x, str))
            if left < 0:
                raise LimitError("holds too much")
            below.extend(x for x in items if isinstance(x, HOLDERS))
        if not below:
            return value
        level = below
    raise LimitError(f"holds more than {MAX_DEPTH} lists inside each other")


def listed(value: Any) -> Any:
    """A list in the place of an iterator, whose values nothing could count; and `held`."""
    if isinstance(value, Iterator) and not isinstance(value, jinja2.runtime.LoopContext):
        items = []
        for item in value:
            check_time()
            charge(1)
            items.append(item)
        value = items
    return held(value)


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


def refuse_numbers(args: Sequence[Any]) -> None:
    """Refuses to pass on a number that is far larger than templates need."""
    if any(isinstance(arg, int) and abs(arg) > MAX_NUMBER for arg in args):
        raise LimitError(f"uses a number above {MAX_NUMBER}")


def refuse_method(name: str, text: Any, args: Sequence[Any]) -> None:
    """Refuses methods of texts whose result is far larger than what goes in, or that take long."""
    if name == "replace" and len(args) >= 2:
        _refuse_replace(text, str(args[0]), str(args[1]))
    elif name == "join" and args:
        _refuse_join(text, args[0])
    elif SEARCHES.fullmatch(name) and args:
        _refuse_search(text, args[0])


def refuse_filter(name: str, given: Mapping[str, Any]) -> None:
    """As `refuse_method`, of the filters in `GROWING`.

    Args:
      given: the filter's arguments, by the names that jinja has for them.
    """
    if name == "replace":
        _refuse_replace(str(given["s"]), str(given["old"]), str(given["new"]))
    elif name == "join":
        _refuse_join(str(given.get("d", "")), given["value"])
    elif name == "trim":
        _refuse_search(str(given["value"]), given.get("chars"))
    elif name == "sum" and isinstance(given.get("start"), SIZED):
        raise LimitError("adds lists up")
    elif name == "indent" and isinstance(given["s"], str):
        width = given.get("width", 4)
        size = len(width) if isinstance(width, str) else int(width)
        _refuse_size((len(given["s"].splitlines()) + 1) * size)


def _refuse_size(characters: int) -> None:
    if characters > max(budget.characters, 0):
        raise LimitError("writes too much text")


def _refuse_replace(text: str, old: str, new: str) -> None:
    _refuse_size(text.count(old) * len(new))


def _refuse_join(glue: str, items: Any) -> None:
    if hasattr(items, "__len__"):
        _refuse_size(len(glue) * len(items) + sum(len(x) for x in items if isinstance(x, str)))


def _refuse_search(text: str, wanted: Any) -> None:
    if isinstance(wanted, str) and len(wanted) > 64 and len(text) * len(wanted) > MAX_WORK:
        raise LimitError("searches a long text for a long text")
