"""Limits the time and memory that a chat template can use.

A rendering has a budget of seconds, loop rounds and characters. An operation is refused before it
builds a value that is too large. Printing and comparing read a value to its depth, and are refused
where that is too much: a list that holds one list many times, and so on, is small in memory and
endless to read.
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
MAX_TIMES = 10  # a rendering may write or build MAX_TIMES its input ...
MAX_EXTRA = 1_000_000  # ... plus so many characters
MAX_NUMBER = 100_000  # the largest integer a template may pass to a function or filter
MAX_INTEGER = 2**63  # the largest absolute value of an integer that a template computes
MAX_DEPTH = 500  # levels of nested lists; Python compares and hashes them recursively
MAX_WORK = 10**9  # steps of a search: length of the text times length of the searched text
# Methods of strings that a template may call. The others can build much from little (translate,
# expandtabs), or values that are not counted here (encode).
METHODS = re.compile(
    r"[lr]?strip|r?(find|index|partition|split)|splitlines|(starts|ends)with|remove(pre|suf)fix|upper|"
    r"lower|title|capitalize|casefold|swapcase|count|join|replace|center|[lr]just|zfill|is[a-z]+"
)
MAX_TEMPLATE = 100_000  # characters of a template; longer ones take seconds to compile
# Containers. Printing or comparing one reads all its values, each as often as it occurs.
HOLDERS = (list, tuple, dict, MappingView, jinja2.utils.Namespace)
# Filters that read only the first level of their input.
SHALLOW = re.compile(
    r"list|length|count|first|last|map|(select|reject)(attr)?|items|d|default|reverse|batch|slice|attr"
)
SIZED = (list, tuple, dict)  # containers whose length is known without reading them
COMPARING = ("sort", "unique", "min", "max", "groupby", "dictsort", "sum")
READING = (*COMPARING, "join", "urlencode")  # filters that read an iterator to its end
GROWING = ("replace", "join", "indent", "sum", "trim")  # see `refuse_filter`
SEARCHES = re.compile(r"[lr]?strip|r(find|index|partition|split)")  # quadratic
# Filters that chat templates do not use, and whose work is hard to bound.
REFUSED = ("format", "xmlattr", "wordwrap", "urlize", "striptags", "pprint")


class Budget(threading.local):
    """The rest of a rendering's limits; one for each thread."""

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
    """A template that exceeds a limit; the message follows "it"."""


def tick() -> str:
    """Counts a loop round or a macro call."""
    budget.steps -= 1
    if budget.steps < 0:
        raise LimitError(f"loops more than {MAX_STEPS} times")
    check_time()
    return ""


def check_time() -> None:
    """Refuses to go on after `MAX_SECONDS`; called before anything that may take long."""
    if time.monotonic() > budget.deadline:
        raise LimitError(f"runs longer than {MAX_SECONDS:g} seconds")


def charge_value(value: Any) -> Any:
    """Charges a text or list that an operation has built, and refuses too large an integer."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise LimitError("computes with integers beyond 64 bits")
    if isinstance(value, str | bytes | list | tuple | dict):
        charge(len(value))
    elif isinstance(value, Iterator):  # it keeps a frame in memory
        charge(8)
    return value


def charge_parts(value: Any) -> Any:
    """Charges the parts that a text was split into."""
    if isinstance(value, list | tuple):
        charge(sum(map(len, value)) // 2)
    return value


def charge(characters: int) -> None:
    """Takes characters from the budget; refuses to go on when it is used up."""
    budget.characters -= characters
    if budget.characters < 0:
        raise LimitError("writes too much text")


def _items(value: Any) -> list[Any] | tuple[Any, ...]:
    """Returns the values in one of `HOLDERS`, keys included."""
    if isinstance(value, jinja2.utils.Namespace):
        value = value._Namespace__attrs  # printing shows them
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else list(value)


def check_nested(value: Any) -> Any:
    """Refuses values that would take too long to compare: lists nested many times over."""
    if not isinstance(value, HOLDERS):
        return value
    check_time()
    level, left = [value], budget.most
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for holder in level:
            items = _items(holder)
            left -= len(items) + sum(len(x) for x in items if isinstance(x, str))
            if left < 0:
                raise LimitError("holds too much")
            below.extend(x for x in items if isinstance(x, HOLDERS))
        if not below:
            return value
        level = below
    raise LimitError(f"holds more than {MAX_DEPTH} lists inside each other")


def to_list(value: Any) -> Any:
    """Reads an iterator into a list, which counts its values; then applies `check_nested`."""
    if isinstance(value, Iterator) and not isinstance(value, jinja2.runtime.LoopContext):
        items = []
        for item in value:
            check_time()
            charge(1)
            items.append(item)
        value = items
    return check_nested(value)


def take_slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Slices a text or a list, and charges the result."""
    return charge_value(value[start:stop:step])


def charge_text(value: Any) -> Any:
    """Charges the text of a value: nested lists may be far larger as text than in memory."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, HOLDERS):
            item = _items(item)
            pending.extend(item)
        charge(len(item) if isinstance(item, str | list | tuple) else 1)
    return value


def refuse_numbers(args: Sequence[Any]) -> None:
    """Refuses arguments that are far larger numbers than templates need."""
    if any(isinstance(arg, int) and abs(arg) > MAX_NUMBER for arg in args):
        raise LimitError(f"uses a number above {MAX_NUMBER}")


def refuse_method(name: str, text: Any, args: Sequence[Any]) -> None:
    """Refuses a call of a string's method that would build a large result or take long."""
    if name == "replace" and len(args) >= 2:
        _refuse_replace(text, str(args[0]), str(args[1]))
    elif name == "join" and args:
        _refuse_join(text, args[0])
    elif SEARCHES.fullmatch(name) and args:
        _refuse_search(text, args[0])


def refuse_filter(name: str, args: Mapping[str, Any]) -> None:
    """Does the same for the filters in `GROWING`; ``args`` by jinja's names for them."""
    if name == "replace":
        _refuse_replace(str(args["s"]), str(args["old"]), str(args["new"]))
    elif name == "join":
        _refuse_join(str(args.get("d", "")), args["value"])
    elif name == "trim":
        _refuse_search(str(args["value"]), args.get("chars"))
    elif name == "sum" and isinstance(args.get("start"), SIZED):
        raise LimitError("sums lists")
    elif name == "indent" and isinstance(args["s"], str):
        width = args.get("width", 4)
        size = len(width) if isinstance(width, str) else int(width)
        _refuse_size((len(args["s"].splitlines()) + 1) * size)


def _refuse_size(characters: int) -> None:
    if characters > max(budget.characters, 0):
        raise LimitError("writes too much text")


def _refuse_replace(text: str, old: str, new: str) -> None:
    _refuse_size(text.count(old) * len(new))


def _refuse_join(glue: str, items: Any) -> None:
    if hasattr(items, "__len__"):
        _refuse_size(len(glue) * len(items) + sum(len(x) for x in items if isinstance(x, str)))


def _refuse_search(text: str, part: Any) -> None:
    if isinstance(part, str) and len(part) > 64 and len(text) * len(part) > MAX_WORK:
        raise LimitError("searches a long text for a long text")
