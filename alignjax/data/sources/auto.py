"""Reads rows of many published formats, recognised by their columns."""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError, DataReport, Message, Prompt, Record
from alignjax.data.sources import answers
from alignjax.data.sources.asked import Options
from alignjax.data.sources.columns import Columns, Found, find_once, flatten
from alignjax.data.sources.dialogues import ASSISTANT
from alignjax.data.sources.messages import DroppedRowError
from alignjax.errors import UserError


def auto(
    report: DataReport,
    *,
    path: str,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    chat: bool | None = None,
    marker: str = ASSISTANT,
    turns: str = "all",
    inline_reasoning: bool = False,
    prompts_alone: bool = False,
) -> Iterator[Record]:
    """Reads rows of any format in docs/data.md's table, by names and types of columns.

    Args:
      report: counts are added to it; ``readings`` has the role of each column, ``unread`` the
        others.
      path: file or glob.
      columns: names of columns whose role cannot be recognised.
      chat: whether a plain-text prompt is a user's message. None: it is one if the column's name is
        question, instruction or the like, or the row has a system text, history or tools.
      marker: text that starts the assistant's turns in dialogues written as one text.
      turns: which assistant turns of a supervised dialogue are trained, ``"all"`` or ``"last"``;
        each becomes a record. A message whose ``weight`` is 0 is never trained.
      inline_reasoning: write reasoning into the response, between ``<think>`` and ``</think>``,
        instead of leaving it to the chat template.
      prompts_alone: also read rows without responses, and dialogues that do not end in a turn of
        the assistant as prompts; for runs that sample their own responses.

    Raises:
      DataError: a row is malformed, or its columns are ambiguous.
    """
    if turns not in ("all", "last"):
        raise UserError(f"data.source.turns: wanted 'all' or 'last', found {turns!r}")
    options = Options(
        chat=chat, marker=marker, all_turns=turns == "all", prompts_alone=prompts_alone
    )
    rated: dict[Prompt, list[Record]] = {}
    known: dict[Any, Found] = {}
    for raw in read_rows(path):
        report.rows_in += 1
        try:
            found, records = read_row(report, raw, columns, options, known)
        except DroppedRowError as error:
            report.drop(error.reason, raw.id)
            continue
        if inline_reasoning:
            records = [_inline(record) for record in records]
        report.added += max(len(records) - 1, 0)
        for record in records:
            if found.kind == "response" and record.scores:
                rated.setdefault(record.prompt, []).append(record)
            else:
                yield record
    yield from _grouped(report, rated)


def read_row(
    report: DataReport,
    raw: Row,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    options: Options = Options(),  # noqa: B008 (frozen)
    known: dict[Any, Found] | None = None,
) -> tuple[Found, list[Record]]:
    """Finds the columns of a row, and reads its records.

    Args:
      report: counts are added to it.
      raw: the row.
      columns: names of columns whose role cannot be recognised.
      options: how conversations are read.
      known: the columns of rows before it, by `shape`; gets those of this row.

    Raises:
      DroppedRowError: the row cannot be used.
      DataError: see `auto`.
    """
    row = flatten(raw, columns)
    _refuse_columns(row)
    known = {} if known is None else known
    found = find_once(row, columns, known, alone=options.prompts_alone)
    _note_reading(report, raw, found)
    if row.fields.get("margin") is not None:
        report.warn("ignored_margin", row.id)
    _refuse_media(row)
    _refuse_printed(row, found)
    return found, answers.read(report, row, found, options)


def _note_reading(report: DataReport, raw: Row, found: Found) -> None:
    """Counts the row's reading, and its unread columns."""
    sentence = f"read as {found.description}"
    report.readings[sentence] = report.readings.get(sentence, 0) + 1
    for name, value in raw.fields.items():
        if name not in found.columns and name != "id" and value not in (None, "", [], {}):
            report.unread[name] = report.unread.get(name, 0) + 1


# Unsupported columns that would change the training.
_REFUSED = (
    *("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps"),
    *("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "input_ids"),
    "chat_template_kwargs",
)


def _refuse_columns(row: Row) -> None:
    for key in _REFUSED:
        if row.fields.get(key) is not None:
            raise DataError(
                f"{row.origin}: column {key!r} is not supported; remove it if the run does not "
                "need it"
            )


def _refuse_media(row: Row) -> None:
    for name in ("image", "audio", "video"):
        for key in (name, f"{name}s"):
            if row.fields.get(key):
                raise DroppedRowError(name, f"{row.origin}: column {key!r} is not text")


# A list of messages as Python and numpy print it, which is not JSON.
_PRINTED = re.compile(r"\s*(array\()?\[?\s*\{'(role|content|from|value)': ")


def _refuse_printed(row: Row, found: Found) -> None:
    for key in sorted(found.columns):
        value = row.fields.get(key)
        if isinstance(value, str) and _PRINTED.match(value):
            raise DataError(
                f"{row.origin}: field {key!r}: wanted messages as JSON (json.dumps), or in a file "
                "that keeps lists, such as .jsonl or .parquet, found messages as Python prints them"
            )


def _inline(record: Record) -> Record:
    """Writes the reasoning of a record's turns into their text."""

    def inline(content: str, more: str) -> tuple[str, str]:
        fields = json.loads(more) if more else {}
        thought = fields.pop("reasoning_content", None)
        if thought is None:
            return content, more
        start = f"<think>\n{thought}\n</think>\n\n"
        if isinstance(fields.get("content", content), str | None):
            fields |= {"content": start + (fields["content"] or "")} if "content" in fields else {}
        return start + content, json.dumps(fields, ensure_ascii=False) if fields else ""

    def turn(message: Message) -> Message:
        content, more = inline(message.content, message.more)
        return Message(message.role, content, more)

    prompt = record.prompt if isinstance(record.prompt, str) else tuple(map(turn, record.prompt))
    answers = [
        inline(*answer)
        for answer in itertools.zip_longest(record.responses, record.more, fillvalue="")
    ]
    more = tuple(more for _, more in answers)
    return dataclasses.replace(
        record,
        prompt=prompt,
        responses=tuple(content for content, _ in answers),
        more=more if any(more) else (),
    )


def _grouped(report: DataReport, rated: Mapping[Prompt, list[Record]]) -> Iterator[Record]:
    """Yields a list of each prompt's scored responses."""
    for prompt, records in rated.items():
        first = records[0]
        for other in records:
            if other.objectives != first.objectives:
                raise DataError(
                    f"{other.origin}: wanted scores of {', '.join(first.objectives)}, as in "
                    f"{first.origin}, found {', '.join(other.objectives)}"
                )
        report.added -= len(records) - 1
        more = tuple(x for record in records for x in record.more or ("",))
        yield dataclasses.replace(
            first,
            prompt=prompt,
            responses=tuple(text for record in records for text in record.responses),
            scores=tuple(scores for record in records for scores in record.scores),
            more=more if any(more) else (),
        )
