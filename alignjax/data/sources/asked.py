"""Reads the prompt and the answers of a row with known columns."""

from dataclasses import dataclass, replace
from typing import Any

from alignjax.data.files import Row
from alignjax.data.records import DataError, DataReport, Message, Prompt
from alignjax.data.sources.columns import Found
from alignjax.data.sources.dialogues import ASSISTANT, HUMAN, text_turns
from alignjax.data.sources.messages import (
    DroppedRowError,
    is_message,
    parse_dialogue,
    read_message,
    read_messages,
    read_tools,
    split_last,
)
from alignjax.data.sources.names import PLAIN_PROMPTS, plain_name

# Fields that hold the text of a response that is an object.
_TEXTS = (
    *("text", "response", "answer", "completion", "content", "generation", "output", "summary"),
    "value",
)


@dataclass(frozen=True)
class Options:
    """Options of reading rows, see `auto`."""

    chat: bool | None = None
    marker: str = ASSISTANT
    all_turns: bool = True
    prompts_alone: bool = False


def read_answer(row: Row, key: str) -> tuple[tuple[Message, ...] | None, Message]:
    """Reads a response: the turns before it (None for a text), and the assistant's turn."""
    value = parse_dialogue(row.get(key))
    if isinstance(value, dict) and not is_message(value):  # {"text": ...}
        name = next((name for name in _TEXTS if value.get(name) is not None), None)
        if name is None:
            fields = ", ".join(map(repr, value)) or "nothing"
            raise DataError(f"{row.origin}: field {key!r} has no 'text'; it has {fields}")
        inner = f"{key}.{name}"
        return read_answer(replace(row, fields={inner: value[name]}), inner)
    if is_message(value):
        return split_last(row, key, (read_message(row, key, value),))
    if isinstance(value, list):
        return split_last(row, key, read_messages(row, key))
    return None, Message("assistant", row.text(key))


def read_asked(
    report: DataReport, row: Row, found: Found, options: Options, *, as_message: bool
) -> Prompt:
    """Reads the prompt of a row, "" if no column has it.

    Args:
      report: counts are added to it.
      row: from `flatten`.
      found: its columns.
      options: see `auto`.
      as_message: whether the responses are messages; a plain-text prompt is then a user's message.
    """
    names = found.names
    key = names.get("dialogue") or names.get("prompt")
    around = [name for name in ("system", "tools", "history") if name in names]
    turns: tuple[Message, ...] = ()
    if key and isinstance(parse_dialogue(row.fields[key]), list):
        turns = read_messages(row, key)
    elif key:
        body = row.text(key)
        if "context" in names and row.text(names["context"]).strip():
            body = f"{body}\n{row.text(names['context'])}"
        if not as_message and not around and not _is_chat(names, key, body, options):
            return body
        dialogue = body.startswith(HUMAN) and ASSISTANT in body
        turns = text_turns(report, row, body) if dialogue else (Message("user", body),)
    elif not around:
        return ""
    if "history" in names:
        turns = (*read_messages(row, names["history"]), *turns)
    return (*_head(row, found, turns), *turns)


def _is_chat(names: Any, key: str, body: str, options: Options) -> bool:
    if options.chat is not None:
        return options.chat
    bare = plain_name(key) in PLAIN_PROMPTS or ASSISTANT in body
    return not bare and "matching_behavior" not in names.get("chosen", "")


def _head(row: Row, found: Found, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Makes turns of the tools and system columns, unless the dialogue has a system turn."""
    head: tuple[Message, ...] = ()
    if "tools" in found.names:
        head = read_tools(row, found.names["tools"])
    system = row.text(found.names["system"]) if "system" in found.names else ""
    own = [turn.content for turn in turns if turn.role == "system"]
    if own and system.strip() and own[0] != system:
        raise DataError(
            f"{row.origin}: field {found.names['system']!r} differs from the system's message of "
            "the dialogue"
        )
    return head if own or not system.strip() else (*head, Message("system", system))


def without_answer(row: Row, found: Found, asked: Prompt, answers: list[Message]) -> Prompt:
    """Removes the last turn of a prompt if it is one of the answers.

    Raises:
      DroppedRowError: a dialogue ends in a turn of the assistant that is none of the answers.
    """
    if isinstance(asked, str) or not asked or asked[-1].role != "assistant":
        return asked
    if asked[-1].content.strip() in [answer.content.strip() for answer in answers]:
        return asked[:-1]
    if "dialogue" in found.names:
        key = found.names["dialogue"]
        raise DroppedRowError(
            "prompt_mismatch", f"{row.origin}: {key!r} ends in a turn that is none of the responses"
        )
    return asked


def join(row: Row, asked: Prompt, context: tuple[Message, ...]) -> Prompt:
    """Joins a row's prompt with the turns that stand before the last one in its responses.

    Raises:
      DroppedRowError: the two disagree.
    """
    if not asked:
        return context
    turns = (Message("user", asked),) if isinstance(asked, str) else asked
    head = tuple(turn for turn in turns if turn.role in ("system", "tools"))
    body = [turn for turn in turns if turn.role not in ("system", "tools")]
    spoken = [turn for turn in context if turn.role not in ("system", "tools")]
    users = [turn.content.strip() for turn in spoken if turn.role == "user"]
    repeats = len(body) == 1 and body[0].content.strip() in (users[:1] + users[-1:])
    systems = [[turn for turn in x if turn.role == "system"] for x in (head, context)]
    agree = not all(systems) or systems[0] == systems[1]
    if agree and (not body or repeats or spoken[: len(body)] == body):
        known = {turn.role for turn in context}
        return (*(turn for turn in head if turn.role not in known), *context)
    raise DroppedRowError(
        "prompt_mismatch", f"{row.origin}: the prompt differs from the messages of the responses"
    )
