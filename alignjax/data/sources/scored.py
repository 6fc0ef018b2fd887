"""Reads responses with scores: a list in each row, or one response per row."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError, DataReport, Prompt, Record
from alignjax.data.sources.messages import read_prompt, read_texts
from alignjax.errors import did_you_mean


def lists(
    report: DataReport,
    *,
    path: str,
    prompt: str = "prompt",
    responses: str = "responses",
    scores: str = "scores",
    objectives: tuple[str, ...] = (),
    larger_is_better: bool = True,
    order_seed: int | None = None,
    chat: bool = False,
    domain: str = "",
) -> Iterator[Record]:
    """Reads lists of scored responses: ``{prompt, responses: [text], scores: [number]}``.

    Args:
      report: counts. A response whose score is null is left out, and its row noted as
        ``removed_null_scores``; a row without any score is dropped as ``no_scores``.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      responses: the field of the responses, e.g. ``completions``.
      scores: the field of the scores, one entry per response: a number, or an object of numbers
        by objective. One objective is named like the field.
      objectives: the objectives of those objects to use, in this order; () for all.
      larger_is_better: False for ranks, which are then negated.
      order_seed: shuffles each list by (seed, row id), for files in which the order reveals the
        scores; None keeps the order.
      chat: the prompt is a user's message.
      domain: the field whose text becomes ``Record.domain``; "" for none.
    """
    for row in read_rows(path):
        report.rows_in += 1
        texts, values = read_texts(row, responses), row.items(scores)
        if len(values) != len(texts):
            raise DataError(
                f"{row.origin}: field {scores!r} has {len(values)} entries for {len(texts)} "
                f"responses in {responses!r}"
            )
        names, table = read_scores(row, scores, values, objectives)
        scored = [index for index, numbers in enumerate(table) if numbers is not None]
        if not scored:
            report.drop("no_scores", row.id)
            continue
        if len(scored) < len(texts):
            report.warn("removed_null_scores", row.id)
        if order_seed is not None:
            scored.sort(key=lambda index: _place(order_seed, row.id, index))
        sign = 1.0 if larger_is_better else -1.0
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=read_prompt(row, prompt, chat=chat),
            responses=tuple(texts[index] for index in scored),
            scores=tuple(tuple(sign * x for x in table[index] or ()) for index in scored),
            objectives=names,
            domain=row.text(domain) if domain else "",
        )


def rated(
    report: DataReport,
    *,
    path: str,
    prompt: str = "prompt",
    response: str = "response",
    scores: str = "scores",
    objectives: tuple[str, ...] = (),
    before: str = "",
    after: str = "",
    chat: bool = False,
) -> Iterator[Record]:
    """Reads one scored response per row; the responses to one prompt become a list, as in `lists`.

    Args:
      report: counts prompts, not rows. A response with a null score is left out, and its list
        noted as ``removed_null_scores``; a list without any score is dropped as ``no_scores``.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      response: the field of the response.
      scores: the field of its scores: a number, or an object of numbers by objective.
      objectives: which of those to use, in this order; () for all.
      before, after: text to put around a plain-text prompt.
      chat: the prompt is a user's message.
    """
    groups: dict[Prompt, list[Row]] = {}
    for row in read_rows(path):
        groups.setdefault(read_prompt(row, prompt, chat=chat), []).append(row)
    for question, rows in groups.items():
        report.rows_in += 1
        first, texts, table = rows[0], [], []
        names: tuple[str, ...] = objectives
        for row in rows:
            names, (numbers,) = read_scores(row, scores, [row.get(scores)], names)
            if numbers is not None:
                texts.append(row.text(response))
                table.append(numbers)
        if not texts:
            report.drop("no_scores", first.id)
            continue
        if len(texts) < len(rows):
            report.warn("removed_null_scores", first.id)
        yield Record(
            id=first.id,
            origin=first.origin,
            prompt=f"{before}{question}{after}" if isinstance(question, str) else question,
            responses=tuple(texts),
            scores=tuple(table),
            objectives=names,
        )


def _place(seed: int, id: str, index: int) -> bytes:
    """Returns a pseudo-random sort key that depends only on its arguments."""
    return hashlib.blake2b(f"{seed}/{id}/{index}".encode(), digest_size=8).digest()


def read_scores(
    row: Row, key: str, values: Sequence[Any], wanted: tuple[str, ...]
) -> tuple[tuple[str, ...], list[tuple[float, ...] | None]]:
    """Reads one entry per response, a number or an object of numbers by objective.

    Returns:
      The names of the objectives (``wanted``, else those of the first entry without a null), and
      the numbers of each response, None if one of them is null.
    """
    entries: list[dict[str, Any]] = [x if isinstance(x, dict) else {key: x} for x in values]
    complete = next((tuple(entry) for entry in entries if None not in entry.values()), ())
    names = wanted or complete or tuple(entries[0] if entries else ())
    table: list[tuple[float, ...] | None] = []
    for index, entry in enumerate(entries):
        where = f"{key}[{index}]"
        numbers = []
        for name in names:
            if name not in entry and values[index] is not None:
                raise DataError(
                    f"{row.origin}: field {where!r} has no objective {name!r}"
                    f"{did_you_mean(name, entry)}; it has {', '.join(map(repr, entry)) or 'none'}"
                )
            if entry.get(name) is not None:
                field = where if name == key else f"{where}.{name}"
                numbers.append(_number(row, field, entry[name]))
        table.append(tuple(numbers) if len(numbers) == len(names) else None)
    return names, table


def _number(row: Row, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise row.wrong(field, value, "a number")
    if isinstance(value, int) and abs(value) > 10**300:
        raise DataError(f"{row.origin}: field {field!r} is too large for a score")
    return float(value)
