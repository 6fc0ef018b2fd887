"""Reads prompts, dialogues and responses from a row's fields, in several formats."""

import json
from collections.abc import Mapping
from typing import Any

from alignjax.data.files import Row, text
from alignjax.data.records import DataError, Message, Prompt, Record
from alignjax.errors import did_you_mean

ROLES = {role: role for role in ("tools", "system", "user", "assistant", "tool")}
ROLES |= {"human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant"}
ROLES |= {"bot": "assistant", "model": "assistant", "chatbot": "assistant", "ai": "assistant"}
ROLES |= {"developer": "system", "observation": "tool", "function": "tool"}
ROLES |= {"tool_response": "tool", "ipython": "tool"}
_CALLS = ("function_call", "tool_call")  # roles in ShareGPT files of turns that are a call
_WHO = ("role", "from", "speaker")
_WHAT = ("content", "value", "text")
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")
_TURNS = (("input", "output"), ("user", "assistant"), ("human", "gpt"), ("question", "answer"))


class DroppedRowError(DataError):
    """A well-formed row that cannot be used; ``reason`` is its name in the data report."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def is_message(value: Any) -> bool:
    """Whether a JSON value is one turn of a dialogue."""
    return isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _WHO)


def parse_dialogue(value: Any) -> Any:
    """Parses text that is a JSON message or list of messages; returns other values unchanged."""
    if isinstance(value, str) and value.lstrip()[:2] in ("[{", "[ ", "[\n", '{"'):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        items = parsed if isinstance(parsed, list) else [parsed]
        return parsed if items and all(map(is_message, items)) else value
    return value


def parse_list(value: Any) -> Any:
    """Parses text that is a JSON list, as in CSV files; returns other values unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def read_prompt(row: Row, key: str, *, chat: bool = False) -> Prompt:
    """Reads a text or a list of messages; with ``chat`` a text becomes a user's message."""
    if isinstance(parse_dialogue(row.get(key)), list):
        return read_messages(row, key)
    return (Message("user", row.text(key)),) if chat else row.text(key)


def read_responses(row: Row) -> Record:
    """Reads only the ``prompt`` and ``responses`` of a row."""
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
    """Reads a list of turns, or of rounds: pairs of a user's and an assistant's text.

    The list may be written as JSON text. System turns without text are left out.
    """
    value = parse_dialogue(row.get(key))
    if not isinstance(value, list):
        raise row.wrong(key, value, "a list")
    turns: list[Message] = []
    for i, item in enumerate(value):
        where = f"{key}[{i}]"
        for part, field in _round(item) or [(item, "")]:
            turns.append(read_message(row, where + field, part))
    return tuple(turn for turn in turns if turn.role != "system" or turn.content.strip())


def _round(item: Any) -> list[tuple[dict[str, Any], str]]:
    """Splits a round, ``{input, output}`` or ``[user, assistant]``, into messages; else []."""
    if isinstance(item, list) and len(item) == 2:
        names: tuple[str, ...] = ("[0]", "[1]")
        sides = item
    elif isinstance(item, dict) and not any(key in item for key in _WHO):
        keys = next((keys for keys in _TURNS if all(key in item for key in keys)), ())
        names, sides = tuple(f".{key}" for key in keys), [item[key] for key in keys]
    else:
        return []
    roles = ("user", "assistant")
    return [
        ({"role": role, "content": side}, name)
        for role, side, name in zip(roles, sides, names, strict=bool(names))
    ]


def read_message(row: Row, key: str, value: Any) -> Message:
    """Reads one turn, ``{role, content}`` or ``{from, value}``, with its other fields.

    Content in parts is joined. `Message.more` keeps tool calls, reasoning (under any of its names),
    the name of a tool and a weight of 0; other fields are ignored.

    Raises:
      DroppedRowError: a part of the content is not text, e.g. an image.
      DataError: the turn is malformed.
    """
    if not isinstance(value, dict):
        raise row.wrong(key, value, "a message")
    who = next((name for name in _WHO if value.get(name) is not None), None)
    if who is None:
        raise _lacks(row, key, value, "from" if "value" in value else "role")
    name = text(value[who], f"{key}.{who}", row.origin)
    role = ROLES.get(name.lower())
    what = next((x for x in _WHAT if value.get(x) is not None), "content")
    content: Any = value.get(what)
    more: dict[str, Any] = {}
    if name.lower() in _CALLS:
        role, calls = "assistant", content
        value, content = {**value, "tool_calls": calls}, None
    if role is None:
        raise DataError(
            f"{row.origin}: field '{key}.{who}': wanted one of {', '.join((*ROLES, *_CALLS))}, "
            f"found {name!r}{did_you_mean(name, ROLES)}"
        )
    calls = _read_calls(row, key, value)
    if content is None and not calls:
        raise _lacks(row, key, value, "value" if who == "from" else "content")
    content, thoughts = _join_parts(row, f"{key}.{what}", content)
    reasons = [value[x] for x in _REASONING if isinstance(value.get(x), str)] or thoughts
    if reasons and "".join(reasons).strip():
        more["reasoning_content"] = reasons[0]
    more |= {x: value[x] for x in ("name", "tool_call_id") if isinstance(value.get(x), str)}
    if role == "assistant" and not _is_trained(row, key, value):
        more["weight"] = 0
    if calls:
        # Templates see the original content; the text is for people, statistics and judges.
        more |= {"content": content, "tool_calls": calls}
        texts = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        content = "\n".join([*([content] if content else []), *texts])
    content = text(content, f"{key}.{what}", row.origin)
    return Message(role, content, json.dumps(more, ensure_ascii=False) if more else "")


def _lacks(row: Row, key: str, value: Mapping[str, Any], name: str) -> DataError:
    fields = ", ".join(map(repr, value)) or "nothing"
    return DataError(f"{row.origin}: field {key!r} has no {name!r}; it has {fields}")


def _join_parts(row: Row, key: str, content: Any) -> tuple[Any, list[str]]:
    """Joins the texts of a content in parts, and lists its reasoning parts."""
    if not isinstance(content, list):
        return content, []
    texts, thoughts = [], []
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in ("thinking", "reasoning"):
            thoughts.append(text(part.get(kind, part.get("text")), f"{key}[{i}]", row.origin))
        elif kind in ("text", "input_text", "output_text"):
            value = part.get("text", part.get("content")) if isinstance(part, dict) else part
            texts.append(text(value, f"{key}[{i}].text", row.origin))
        else:
            reason = next((x for x in ("image", "audio", "video") if x in str(kind)), "part")
            raise DroppedRowError(
                reason, f"{row.origin}: field '{key}[{i}]': wanted text, found type {kind!r}"
            )
    return "".join(texts), thoughts


def _is_trained(row: Row, key: str, value: Mapping[str, Any]) -> bool:
    """Whether a supervised turn is trained: OpenAI's weight, axolotl's train, ms-swift's loss."""
    for name in ("weight", "train", "loss"):
        flag = value.get(name)
        if flag is not None:
            if flag not in (0, 1):
                where = f"{row.origin}: field '{key}.{name}'"
                raise DataError(f"{where}: wanted 0 or 1, found {flag!r}")
            return bool(flag)
    return True


def _read_calls(row: Row, key: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Reads tool calls; parses arguments that are JSON text, because templates read objects."""
    items = value.get("tool_calls") or value.get("function_call") or ()
    items = parse_json(row, f"{key}.tool_calls", items)
    calls = []
    for i, call in enumerate([items] if isinstance(items, dict) else items):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise DataError(
                f"{row.origin}: field '{key}.tool_calls[{i}]': wanted a function to call, "
                '{"name": ..., "arguments": ...}, found none'
            )
        where = f"{key}.tool_calls[{i}].arguments"
        arguments = inner.get("arguments", inner.get("parameters")) or {}
        outer = {x: call[x] for x in ("id",) if isinstance(call.get(x), str)}
        function = {"name": inner["name"], "arguments": parse_json(row, where, arguments)}
        calls.append({**outer, "type": "function", "function": function})
    return calls


def read_tools(row: Row, key: str) -> tuple[Message, ...]:
    """Reads a row's tools, a list or its JSON text, as a turn of role tools, or ()."""
    tools = parse_json(row, key, row.get(key) or []) or []  # also where the text is "null"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise row.wrong(key, tools, "a list of tools")
    bare = [{"type": "function", "function": x} if "name" in x else x for x in tools]
    return (Message("tools", json.dumps(bare, ensure_ascii=False)),) if tools else ()


def parse_json(row: Row, key: str, value: Any) -> Any:
    """Parses text as JSON; returns other values unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{row.origin}: field {key!r} is not valid JSON ({error})") from None


def split_last(
    row: Row, key: str, turns: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Message]:
    """Splits off the last turn, which must be the assistant's.

    Raises:
      DroppedRowError: there is no turn, or the last is not the assistant's.
    """
    if not turns or turns[-1].role != "assistant":
        last = f"one of {turns[-1].role}" if turns else "none"
        raise DroppedRowError(
            "no_assistant_turn",
            f"{row.origin}: last message of {key!r}: wanted one of assistant, found {last}",
        )
    return turns[:-1], turns[-1]
