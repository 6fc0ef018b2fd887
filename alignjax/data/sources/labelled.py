"""Reads single responses, each labelled desirable or undesirable."""

from collections.abc import Iterator
from typing import Any

from alignjax.data.files import read_rows
from alignjax.data.records import DataError, DataReport, Record
from alignjax.data.sources.messages import read_prompt


def unpaired(
    report: DataReport,
    *,
    path: str,
    prompt: str = "prompt",
    response: str = "completion",
    label: str = "label",
    desirable: bool | int | str = True,
    undesirable: bool | int | str = False,
    chat: bool = False,
) -> Iterator[Record]:
    """Reads one labelled response per row; the field names can be chosen.

    Args:
      report: counts.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      response: the field of the response.
      label: the field of the label.
      desirable: the label of a desirable response.
      undesirable: the label of an undesirable response. Other values are errors.
      chat: the prompt is a user's message.
    """
    for row in read_rows(path):
        report.rows_in += 1
        value = row.get(label)
        matches = [_same(value, wanted) for wanted in (desirable, undesirable)]
        if not any(matches):
            raise DataError(
                f"{row.origin}: field {label!r}: wanted {desirable!r} (desirable) or "
                f"{undesirable!r} (undesirable), found {value!r}"
            )
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=read_prompt(row, prompt, chat=chat),
            responses=(row.text(response),),
            desirable=(matches[0],),
        )


def _same(value: Any, wanted: bool | int | str) -> bool:
    """Whether two labels are equal: 1 equals True, "1" does not."""
    return isinstance(value, str) == isinstance(wanted, str) and bool(value == wanted)
