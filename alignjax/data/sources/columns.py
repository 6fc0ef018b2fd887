"""Finds the role of each column of a row, by the names and types in published data sets.

If two columns with different values fit a role, `find` raises an error that names the config field
to set.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from alignjax.data.files import Row
from alignjax.data.records import DataError
from alignjax.data.sources.messages import is_message, parse_dialogue, parse_list
from alignjax.data.sources.names import (
    ATTRIBUTES,
    INSIDE,
    LISTS,
    NAMES,
    NO_SCORE,
    NUMBERED,
    OPTIONAL,
    PAIRS,
    REJECTED_ALONE,
    plain_name,
)
from alignjax.errors import did_you_mean

ALONE = (
    "a run that samples its own responses reads prompts alone: --set data.source.prompts_alone=true"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns; "" to recognise a column by its name and type.

    A dot reaches into an object: ``input.messages``.
    """

    prompt: str = ""  # text, or a list of messages
    system: str = ""  # text of the system's turn
    tools: str = ""  # a list of tools, or its JSON text
    history: str = ""  # turns before the prompt
    context: str = ""  # text after the prompt: Alpaca's input
    chosen: str = ""
    rejected: str = ""
    response: str = ""  # one response
    responses: str = ""  # a list of responses
    scores: str = ""  # of the response, or one for each of the responses; larger is better
    ranks: str = ""  # the same; smaller is better
    label: str = ""  # whether the response is desirable, or each of the responses
    preferred: str = ""  # which of the numbered columns is better
    domain: str = ""  # text that becomes `Record.domain`


@functools.lru_cache
def _named(given: Columns) -> Mapping[str, str]:
    """Returns the columns that the config names, by role."""
    return {role: name for role, name in dataclasses.asdict(given).items() if name}


def flatten(row: Row, given: Columns) -> Row:
    """Removes a row's nulls, and copies fields of nested objects to the top as ``a.b``."""

    def parts(at: str, value: Any) -> Iterator[tuple[str, Any]]:
        if value is not None:
            yield at, parse_list(value) if plain_name(at) in LISTS else value
        elif plain_name(at) in NAMES["system"][0]:
            yield at, ""  # so that rows with and without a system text are read the same way
        inside = isinstance(value, dict) and not is_message(value)
        if inside and INSIDE & set(map(plain_name, value)):
            for name, inner in value.items():
                yield from parts(f"{at}.{name}", inner)

    fields = {k: v for name, value in row.fields.items() for k, v in parts(name, value)}
    fields = dict(sorted(fields.items(), key=lambda item: "." in item[0]))
    for name in _named(given).values():
        value: Any = row.fields
        for part in name.split(".") if name not in row.fields else ():
            value = value.get(part) if isinstance(value, dict) else None
        if value is not row.fields and value is not None:
            fields.setdefault(name, value)
    return dataclasses.replace(row, fields=fields)


@dataclasses.dataclass(frozen=True)
class Found:
    """The columns of a row by role, and the kind of record that they make."""

    kind: str  # pair, choice, list, response, dialogue
    names: Mapping[str, str]  # role -> column
    numbered: tuple[str, ...] = ()  # columns of one response each
    attributes: tuple[str, ...] = ()  # columns of one score each

    @functools.cached_property
    def columns(self) -> set[str]:
        """The names of the columns, and of the objects that they are in."""
        used = {*self.names.values(), *self.numbered, *self.attributes}
        return used | {name.partition(".")[0] for name in used}

    @functools.cached_property
    def description(self) -> str:
        """The kind, and each role with its column."""
        roles = [f"{role} from {name!r}" for role, name in self.names.items()]
        several = {"responses": self.numbered, "scores": self.attributes}
        roles += [f"{role} from {', '.join(map(repr, n))}" for role, n in several.items() if n]
        return f"{self.kind}: {', '.join(roles)}"


def shape(row: Row) -> Any:
    """Returns a key of a flat row: `find` finds the same columns for rows with equal keys.

    It has the columns' names and types, and which values are equal. None if a value is a list, an
    object or JSON text, because `find` reads these.
    """
    columns: list[tuple[str, type, int]] = []
    first: dict[Any, int] = {}
    for name, value in row.fields.items():
        kind = type(value)
        if kind not in (str, int, float, bool):
            return None
        if kind is str and value[:1] in "[{ \t\r\n" and value.lstrip()[:1] in ("[", "{"):
            return None
        same = repr(value) if kind is float else value
        columns.append((name, kind, first.setdefault((kind, same), len(columns))))
    return tuple(columns)


def find(row: Row, given: Columns, *, alone: bool = False) -> Found:
    """Finds the columns of a flat row; without responses only where prompts may be ``alone``.

    Raises:
      DataError: a column of ``given`` is missing, two columns fit one role, or there is no column
        of responses.
    """
    named = _named(given)
    for role, name in named.items():
        if name not in row.fields and role not in OPTIONAL:
            known = ", ".join(repr(x) for x in row.fields if "." not in x)
            raise DataError(
                f"{row.origin}: column {name!r} of data.columns.{role} is missing or null"
                f"{did_you_mean(name, row.fields)}; the row has {known}"
            )
    named = {role: name for role, name in named.items() if name in row.fields}
    found = _pair(row, named) or _numbered(row, named) or _list(row, named) or _single(row, named)
    asked = _asked(row, named) if found is None else {}
    if alone and {"prompt", "dialogue"} & set(asked):
        found = Found("prompt", asked)
    if found is None:
        columns = ", ".join(repr(x) for x in row.fields if "." not in x) or "none"
        raise DataError(
            f"{row.origin}: wanted columns of responses, such as 'chosen' and 'rejected', "
            "'completion', 'responses' with 'scores', or 'messages' (data.columns.* names others), "
            f"found {columns}" + (f"; {ALONE}" if {"prompt", "dialogue"} & set(asked) else "")
        )
    domain = {"domain": named["domain"]} if "domain" in named else {}
    return dataclasses.replace(found, names={**found.names, **domain})


def find_once(row: Row, given: Columns, known: dict[Any, Found], *, alone: bool = False) -> Found:
    """Finds the columns of a flat row, unless a row of its shape came before.

    Args:
      row, given, alone: as in `find`.
      known: the columns of the rows before, by `shape`; gets those of this row.
    """
    key = shape(row)
    if key is None:
        return find(row, given, alone=alone)
    if key not in known:
        known[key] = find(row, given, alone=alone)
    return known[key]


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of turns or rounds, or its JSON text."""
    value = parse_dialogue(value)
    if not isinstance(value, list) or not value:
        return False
    rounds = ({"input", "output"} <= set(x) for x in value if isinstance(x, dict))
    return all(map(is_message, value)) or (any(rounds) and all(isinstance(x, dict) for x in value))


def _one(row: Row, named: Mapping[str, str], role: str, *types: type) -> str:
    """Finds the column of a role, "" if there is none.

    Raises:
      DataError: two columns of one group fit the role, with different values.
    """
    if role in named:
        return named[role]
    taken = {name for other, name in named.items() if other != role}
    for group in NAMES[role]:
        fits = [
            name
            for name, value in row.fields.items()
            if plain_name(name) in group
            and name not in taken
            and (not types or isinstance(value, types))
            and (role != "dialogue" or value == [] or is_dialogue(value))
        ]
        fits = [name for name in fits if row.fields[name] != []] or fits
        fits = [name for name in fits if "." not in name] or fits
        if _differ(*(row.fields[name] for name in fits)):
            raise _ask(row, role, fits)
        if fits:
            return fits[0]
    return ""


def _differ(first: Any = None, *others: Any) -> bool:
    """Whether JSON values differ; True and 1 do."""
    same = json.dumps(first, sort_keys=True) if others else ""
    return any(json.dumps(other, sort_keys=True) != same for other in others)


def _ask(row: Row, role: str, fits: list[str]) -> DataError:
    what = " and ".join(map(repr, fits))
    return DataError(
        f"{row.origin}: columns {what} could each be the {role}; choose one: "
        f"--set data.columns.{role}={fits[0]}"
    )


def _asked(row: Row, named: Mapping[str, str]) -> dict[str, str]:
    """Finds the columns of the prompt: dialogue, system text, tools, history, context."""
    by_name = {plain_name(name): name for name in row.fields}
    if {"source", "system_output"} <= set(by_name):  # the systems' input and output
        named = {"prompt": by_name["source"], **named}
    names = {"prompt": _one(row, named, "prompt", str, list)}
    dialogue = _one(row, named, "dialogue")
    second = plain_name(names["prompt"]) in NAMES["prompt"][1]
    if second and dialogue and "prompt" not in named:  # these names have other uses too
        names["prompt"] = ""
    names["dialogue"] = "" if "prompt" in named else dialogue
    names["system"] = _one(row, named, "system", str, list, dict)
    names["tools"] = _one(row, named, "tools", str, list, dict)
    if names["prompt"] or dialogue:
        names["history"] = _one(row, named, "history", list)
    first = plain_name(names["prompt"]) in ("instruction", "question", "query")
    if "context" in named or (first and isinstance(row.fields[names["prompt"]], str)):
        names["context"] = _one(row, named, "context", str)
    used = {names["prompt"], names["dialogue"]}
    return {r: n for r, n in names.items() if n and (r in ("prompt", "dialogue") or n not in used)}


def _pair(row: Row, named: Mapping[str, str]) -> Found | None:
    """Finds the columns of the preferred and of the rejected response."""
    by_name = {plain_name(name): name for name in reversed(list(row.fields))}
    given = named.keys() & {"chosen", "rejected"}
    if not given and named.keys() & {"responses", "scores", "ranks", "label", "preferred"}:
        return None
    sides: list[tuple[str, str]] = [
        (by_name[good], by_name[bad])
        for good, bad in PAIRS
        if {good, bad} <= set(by_name)
        and (good == "chosen" or _is_answer(row.fields[by_name[good]]))
    ]
    if given or "response" in named:
        both = [named.get(side, by_name.get(side, "")) for side in ("chosen", "rejected")]
        sides = [(both[0], both[1])] if given and all(both) else []
    asked = _asked(row, named)
    if _differ(*([row.fields[x] for x in side] for side in sides)):
        raise _ask(row, "chosen", [good for good, _ in sides])
    if sides:
        asked.pop("dialogue" if "prompt" in asked else "", None)
        return Found("pair", {**asked, "chosen": sides[0][0], "rejected": sides[0][1]})
    bad = named.get("rejected", next((by_name[x] for x in REJECTED_ALONE if x in by_name), ""))
    if bad:
        good = named.get("chosen", "") or _one(row, named, "response", str, list)
        if good:
            return Found("pair", {**asked, "chosen": good, "rejected": bad})
        if "dialogue" in asked:
            return Found("pair", {**asked, "rejected": bad})
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if side in by_name and other not in by_name and _is_answer(row.fields[by_name[side]]):
            raise DataError(f"{row.origin}: field {other!r} is missing or null")
    return None


def _is_answer(value: Any) -> bool:
    return isinstance(value, str | list | dict)


def _numbered(row: Row, named: Mapping[str, str]) -> Found | None:
    """Finds columns of one response each (response_0, response_1), and the one that ranks them."""
    stems: dict[str, list[str]] = {}
    for name, value in row.fields.items():
        match = NUMBERED.fullmatch(plain_name(name)) if "." not in name else None
        if match and _is_answer(value):
            stems.setdefault(match[1], []).append(name)
    several = [names for names in stems.values() if len(names) > 1]
    if not several or {"response", "responses", "chosen"} & set(named):
        return None
    if len(several) > 1:
        raise _ask(row, "responses", [names[0] for names in several])
    columns = tuple(sorted(several[0], key=lambda name: number_of(name).zfill(2)))
    asked = _asked(row, named)
    if not named.keys() & {"scores", "ranks"}:
        verdict = _one(row, named, "preferred", str, int, float, list)
        if verdict:
            return Found("choice", {**asked, "preferred": verdict}, numbered=columns)
    scores = [f"score_{number_of(name)}" for name in columns]
    by_name = {plain_name(name): name for name in row.fields}
    if all(name in by_name for name in scores):
        attributes = tuple(by_name[name] for name in scores)
        return Found("list", asked, numbered=columns, attributes=attributes)
    role = "ranks" if "ranks" in named else "scores"
    values = named.get(role) or _one(row, named, role, list)
    if values:
        return Found("list", {**asked, role: values}, numbered=columns)
    raise DataError(
        f"{row.origin}: columns {', '.join(map(repr, columns))} are responses, but no column says "
        "which is better; name one: --set data.columns.preferred=..."
    )


def number_of(name: str) -> str:
    """Returns the number of a numbered column: "0" of response_0, "a" of answer_a."""
    match = NUMBERED.fullmatch(plain_name(name))
    return match[2] if match else ""


def _list(row: Row, named: Mapping[str, str]) -> Found | None:
    """Finds the column of a list of responses, and of its scores, ranks or labels."""
    if {"response", "chosen"} & set(named):
        return None
    responses = _one(row, named, "responses", list)
    if not responses or is_dialogue(row.fields[responses]):
        return None
    asked = {r: n for r, n in _asked(row, named).items() if r != "dialogue" or n != responses}
    roles = ("scores", "ranks", *(("label",) if "label" in named else ()))
    fits = {role: _one(row, named, role, list) for role in roles}
    fits = {r: n for r, n in fits.items() if n and (r in named or not named.keys() & {*roles})}
    if not fits:
        size = len(row.fields[responses]) if isinstance(row.fields[responses], list) else -1
        others = [
            name
            for name, x in row.fields.items()
            if _is_numbers(x, size) and not NO_SCORE.search(plain_name(name))
        ]
        if len(others) > 1:
            raise _ask(row, "scores", others)
        verdict = "" if others else _one(row, named, "preferred", int)
        fits = {"scores": others[0]} if others else {"preferred": verdict} if verdict else {}
    if len(fits) > 1:
        raise _ask(row, next(iter(fits)), list(fits.values()))
    return Found("list", {**asked, "responses": responses, **fits})


def _is_numbers(value: Any, size: int) -> bool:
    def number(x: Any) -> bool:
        return x is None or (isinstance(x, int | float) and not isinstance(x, bool))

    return isinstance(value, list) and len(value) == size and size > 1 and all(map(number, value))


def _single(row: Row, named: Mapping[str, str]) -> Found | None:
    """Finds the column of a response or of a dialogue that ends in one; and its label or scores."""
    asked = _asked(row, named)
    response = _one(row, {**asked, **named}, "response", str, list, dict)
    if "prompt" in asked and "dialogue" in asked:
        # The dialogue contains the prompt, so prefer it unless the response has its own column.
        asked.pop("dialogue" if response else "prompt")
    if not response and "dialogue" not in asked:
        if is_dialogue(row.fields.get(asked.get("prompt", ""))):
            asked["dialogue"] = asked.pop("prompt")
        else:
            return None
    if response and not {"prompt", "dialogue"} & set(asked):
        raise DataError(
            f"{row.origin}: no column is the prompt; name it: --set data.columns.prompt=... "
            f"(the row has {', '.join(repr(x) for x in row.fields if '.' not in x)})"
        )
    names = {**asked, **({"response": response} if response else {})}
    label = _one(row, named, "label", bool, int, float, str)
    if not response:
        return Found("dialogue", {**names, **({"label": label} if label else {})})
    attributes = tuple(x for x in row.fields if plain_name(x) in ATTRIBUTES and "." not in x)
    score = _one(row, named, "scores", int, float, dict, str)
    if label and score and not {"label", "scores"} & set(named):
        raise _ask(row, "label", [label, score])
    if label and "scores" not in named:
        return Found("response", {**names, "label": label})
    if score:
        return Found("response", {**names, "scores": score})
    return Found("response", names, attributes=attributes if len(attributes) > 1 else ())
