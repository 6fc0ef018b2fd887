"""Encodes records as token ids, truncates them to their limits, and counts what is lost."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from alignjax.data.records import DataError, DataReport, Record, take_responses
from alignjax.data.tokenizer import chat
from alignjax.data.tokenizer.chat import RefusedDialogueError
from alignjax.data.tokenizer.load import Encoded, Tokenizer
from alignjax.errors import UserError

log = logging.getLogger("alignjax")


@dataclass(frozen=True, eq=False)
class Row:
    """A record and its ids."""

    record: Record
    prompt: str  # rendered by the chat template, not truncated
    prompt_ids: np.ndarray  # [P] int32
    response_ids: list[np.ndarray]  # K of [R_k] int32


@dataclass(frozen=True)
class Reading:
    """How an external reward model reads: its template's full text, up to a length."""

    longest: int  # tokens of prompt and response together
    padding: int | None  # its pad id: it reads the score at the last other token


def encode(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    report: DataReport,
) -> Iterator[Row]:
    """Tokenises and truncates records for training or evaluation.

    A prompt over its limit loses its beginning but keeps the BOS; a response over its limit loses
    its end and its EOS. Both are noted (``truncated_prompt``, ``truncated_response``), as are
    ``special_token_text`` (encoded as plain text) and ``lossy_encoding`` (ids that do not decode to
    the text, checked for plain-text prompts only). Rows whose responses become identical are
    dropped as ``identical_after_truncation``, or as ``identical_tokens`` if nothing was truncated.
    Scored lists lose only the repeated responses if the rest still has different scores, and are
    noted as ``removed_identical_after_truncation``; lists with ``repeats`` keep them.

    A dialogue that the chat template refuses is dropped as ``template_refused``. One with tools or
    tool calls that the template does not render is dropped as ``template_without_tools`` or
    ``template_without_tool_calls``. Reasoning that it does not render is left out, and noted as
    ``ignored_reasoning``.

    Args:
      records: from `records.check`.
      tokenizer: from ``tokenizer.load``.
      max_prompt_tokens: limit of a prompt, with its BOS; at least 2.
      max_response_tokens: limit of a response, with its EOS; at least 1.
      report: counts are added to it.

    Raises:
      DataError: the chat template renders a prompt differently when a response follows.
      UserError: limits out of range.
    """
    if max_prompt_tokens < 2 or max_response_tokens < 1:
        raise UserError(
            "data: wanted max_prompt_tokens >= 2 and max_response_tokens >= 1, found "
            f"{max_prompt_tokens} and {max_response_tokens}"
        )
    for record in records:
        reason = _lacking_template(record, tokenizer)
        if reason:
            report.drop(reason, record.id)
            continue
        try:
            encoded = _tokenise(record, tokenizer)
        except RefusedDialogueError as error:
            if "template_refused" not in report.dropped:
                log.warning("%s: dropped: %s", record.origin or record.id, error)
            report.drop("template_refused", record.id)
            continue
        if _has_reasoning(record) and not chat.reads_reasoning(tokenizer.chat_template):
            report.warn("ignored_reasoning", record.id)
        if encoded.special_text:
            report.warn("special_token_text", record.id)
        if isinstance(record.prompt, str) and not _lossless(tokenizer, record, encoded):
            report.warn("lossy_encoding", record.id)
        if len(encoded.prompt_ids) > max_prompt_tokens:
            report.warn("truncated_prompt", record.id)
        prompt_ids, response_ids = _cut(encoded, tokenizer, max_prompt_tokens, max_response_tokens)
        truncated = any(len(ids) > max_response_tokens for ids in encoded.response_ids)
        keep = _distinct(record, response_ids)
        if keep is None:
            report.drop(f"identical_{'after_truncation' if truncated else 'tokens'}", record.id)
            continue
        if truncated:
            report.warn("truncated_response", record.id)
        if len(keep) < len(response_ids):
            report.warn("removed_identical_after_truncation", record.id)
            record = take_responses(record, keep)
            response_ids = [response_ids[index] for index in keep]
        report.kept += 1
        yield Row(record, tokenizer.render(record.prompt), prompt_ids, response_ids)


def encode_all(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    report: DataReport,
    reading: Reading | None = None,
) -> Iterator[Row]:
    """Tokenises and truncates records to be scored: keeps all rows and responses, in order.

    Scores and labels are left out.

    Args:
      records, tokenizer, max_prompt_tokens, max_response_tokens: as in `encode`.
      report: counts are added to it; ``truncated_response`` counts responses, not rows.
      reading: how an external reward model reads; None: as in `encode`.

    Raises:
      DataError: a record has no responses, or a conversation does not fit the chat template.
    """
    for record in records:
        if not record.responses:
            raise DataError(f"{record.origin or record.id}: has no responses")
        encoded = _tokenise(record, tokenizer, full=reading is not None)
        longest_prompt, longest_response = max_prompt_tokens, max_response_tokens
        if reading is not None:
            encoded = _to_last_token(encoded, reading.padding)
            longest_response = min(longest_response, reading.longest - 2)
            response = min(longest_response, max(map(len, encoded.response_ids)))
            longest_prompt = min(longest_prompt, reading.longest - response)
        report.rows_in += 1
        report.kept += 1
        if len(encoded.prompt_ids) > longest_prompt:
            report.warn("truncated_prompt", record.id)
        for ids in encoded.response_ids:
            if len(ids) > longest_response:
                report.warn("truncated_response", record.id)
        plain = replace(record, scores=(), objectives=(), desirable=())
        cut = _cut(encoded, tokenizer, longest_prompt, longest_response)
        yield Row(plain, tokenizer.render(record.prompt), *cut)


def _to_last_token(encoded: Encoded, padding: int | None) -> Encoded:
    """Cuts responses after their last token that is not padding; keeps at least one token."""
    ends = [np.flatnonzero(ids != padding) for ids in encoded.response_ids]
    cut = [
        ids[: end[-1] + 1 if end.size else 1]
        for ids, end in zip(encoded.response_ids, ends, strict=True)
    ]
    return replace(encoded, response_ids=tuple(cut))


def _tokenise(record: Record, tokenizer: Tokenizer, *, full: bool = False) -> Encoded:
    try:
        return tokenizer.encode(record.prompt, record.responses, record.more, full)
    except RefusedDialogueError:
        raise
    except UserError as error:
        raise DataError(f"{record.origin or record.id}: {error}") from None


def _lacking_template(record: Record, tokenizer: Tokenizer) -> str:
    """Returns why to drop a record with tools that the chat template does not render, or ""."""
    turns = record.prompt if isinstance(record.prompt, tuple) else ()
    tools = any(turn.role == "tools" for turn in turns)
    if tools and not chat.reads(tokenizer.chat_template, "tools"):
        return "template_without_tools"
    calls = any("tool_calls" in json.loads(x) for x in _more(record))
    if calls and not chat.reads(tokenizer.chat_template, "tool_calls"):
        return "template_without_tool_calls"
    return ""


def _has_reasoning(record: Record) -> bool:
    return any("reasoning_content" in json.loads(x) for x in _more(record))


def _more(record: Record) -> list[str]:
    turns = record.prompt if isinstance(record.prompt, tuple) else ()
    return [x for x in (*(turn.more for turn in turns), *record.more) if x]


def _cut(
    encoded: Encoded, tokenizer: Tokenizer, max_prompt: int, max_response: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Truncates the prompt at its beginning, and the responses at their end."""
    prompt_ids = cut_prompt(encoded.prompt_ids, tokenizer, max_prompt)
    return prompt_ids, [ids[:max_response] for ids in encoded.response_ids]


def cut_prompt(ids: np.ndarray, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """Truncates a prompt at its beginning; keeps the BOS."""
    if len(ids) <= longest:
        return ids
    start = ids[:1] if tokenizer.bos_id is not None else ids[:0]
    return np.concatenate([start, ids[len(start) - longest :]])


def _lossless(tokenizer: Tokenizer, record: Record, encoded: Encoded) -> bool:
    """Whether the ids decode to their text."""
    return all(
        tokenizer.decode(np.concatenate([encoded.prompt_ids, ids])) == f"{record.prompt}{text}"
        for ids, text in zip(encoded.response_ids, record.responses, strict=True)
    )


def _distinct(record: Record, response_ids: list[np.ndarray]) -> list[int] | None:
    """Returns the indices of different responses; None if there is nothing left to compare."""
    first: dict[bytes, int] = {}
    for index, ids in enumerate(response_ids):
        first.setdefault(ids.tobytes(), index)
    keep = list(first.values())
    if len(keep) == len(response_ids):
        return keep
    if record.repeats and len(keep) > 1:
        return list(range(len(response_ids)))
    if not record.scores or len({record.scores[index] for index in keep}) < 2:
        return None
    return keep


def enforce(
    report: DataReport, *, max_drop_fraction: float, field: str = "data.max_drop_fraction"
) -> None:
    """Refuses a dataset that lost too many rows.

    Args:
      report: counts after `encode`.
      max_drop_fraction: largest share of the rows read that may be dropped, in [0, 1].
      field: the config field of this limit, for the message.

    Raises:
      DataError: too many rows were dropped (lists every reason, its count and first ids), or rows
        are missing that no count explains.
    """
    if report.unaccounted:
        raise DataError(
            f"{report.unaccounted} of {report.rows_in} rows were neither kept, held out nor "
            "dropped with a reason: a source or filter loses rows without counting them"
        )
    dropped, total = report.dropped_total, report.records_in
    if dropped > max_drop_fraction * total:
        raise DataError(
            f"{dropped} of {total} rows dropped ({dropped / total:.1%}), more than "
            f"{field} = {max_drop_fraction:g} allows: {reasons(report)}"
        )


def reasons(report: DataReport) -> str:
    """Lists the reasons why rows were dropped, with counts and first ids, in one line."""
    return ", ".join(
        f"{reason} {count} ({', '.join(report.ids.get(reason, []))}"
        f"{', ...' if count > len(report.ids.get(reason, [])) else ''})"
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1])
    )
