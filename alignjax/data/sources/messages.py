"""Reads the prompts, dialogues and responses that a row holds, whatever its format."""

from typing import Any

from alignjax.data.files import Row, text
from alignjax.data.records import DataError, Message, Prompt, Record
from alignjax.errors import did_you_mean

_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # names in ShareGPT files
_ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}


def read_prompt(row: Row, key: str, *, chat: bool = False) -> Prompt:
    """Reads a field that holds a text or a list of messages; ``chat`` makes a text a user's."""
    if isinstance(row.get(key), list):
        return read_messages(row, key)
    return (Message("user", row.text(key)),) if chat else row.text(key)


def read_responses(row: Row) -> Record:
    """Reads a row's ``prompt`` and ``responses``, and none of its other fields."""
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=read_prompt(row, "prompt"),
        responses=tuple(read_texts(row, "responses")),
    )


def read_texts(row: Row, key: str) -> list[str]:
    """Reads a list of texts."""
    return [text(x, f"{key}[{i}]", row.origin) for i, x in enumerate(row.items(key))]


def read_messages(row: Row, key: str) -> tuple[Message, ...]:
    """Reads a list of turns."""
    return tuple(read_message(row, f"{key}[{i}]", x) for i, x in enumerate(row.items(key)))


def read_message(row: Row, key: str, value: Any) -> Message:
    """Reads one turn, ``{role, content}`` or ``{from, value}``."""
    if not isinstance(value, dict):
        raise row.wrong(key, value, "a message")
    names = ("from", "value") if "from" in value else ("role", "content")
    for name in names:
        if value.get(name) is None:
            fields = ", ".join(map(repr, value)) or "nothing"
            raise DataError(f"{row.origin}: field {key!r} has no {name!r}; it has {fields}")
    if value.get("tool_calls"):
        raise DataError(f"{row.origin}: field {key!r} has tool calls, which are not supported")
    role, content = (text(value[name], f"{key}.{name}", row.origin) for name in names)
    if role not in _ROLES:
        raise DataError(
            f"{row.origin}: field '{key}.{names[0]}' is {role!r}, expected one of "
            f"{', '.join(_ROLES)}{did_you_mean(role, _ROLES)}"
        )
    return Message(_ROLES[role], content)


def read_dialogue(row: Row, key: str) -> Record:
    """Reads a dialogue whose last turn is the response."""
    return single(row, *split_last(row, key, read_messages(row, key)))


def split_last(row: Row, key: str, turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """Splits turns into all but the last, and the content of the last, the assistant's."""
    if not turns or turns[-1].role != "assistant":
        last = f"is {turns[-1].role}'s" if turns else "does not exist"
        raise DataError(f"{row.origin}: the last message of {key!r} {last}, expected assistant's")
    return turns[:-1], turns[-1].content


def single(row: Row, prompt: Prompt, response: str) -> Record:
    """Makes the record of one response: labelled if the row has ``label``, else supervised."""
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=prompt,
        responses=(response,),
        desirable=(row.boolean("label"),) if "label" in row.fields else (),
    )
