"""Records -> token ids: encoded together, cut to their limits, with every loss counted."""

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
    prompt: str  # after the chat template, not cut
    prompt_ids: np.ndarray  # [P] int32
    response_ids: list[np.ndarray]  # K of [R_k] int32


@dataclass(frozen=True)
class Reading:
    """What a reward model from elsewhere was trained to read: what its template writes, whole."""

    longest: int  # tokens, of prompt and response together
    padding: int | None  # its padding id: the score is read at the last token that is another


def encode(
    records: Iterable[Record],
    tokenizer: Tokenizer,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
    report: DataReport,
) -> Iterator[Row]:
    """Tokenises and cuts records to train or to measure on.

    A prompt over its limit keeps its end, after the BOS if there is one; a response over its limit
    keeps its start, and then has no EOS. Both are noted (``truncated_prompt``,
    ``truncated_response``), as are ``special_token_text`` (encoded as plain text) and
    ``lossy_encoding`` (ids that do not decode to the text, plain-text prompts only). Rows whose
    responses truncation makes identical are dropped as ``identical_after_truncation``, and those
    whose texts differ only in what is not encoded as ``identical_tokens``; scored
    lists lose only the repeated responses, as long as they still rank something, and are noted as
    ``removed_identical_after_truncation``; lists with ``repeats`` keep them.

    A dialogue that the chat template refuses is dropped as ``template_refused``; one with tools,
    or calls of tools, that the template does not render, as ``template_without_tools`` or
    ``template_without_tool_calls``. Reasoning that it does not render is left out, and noted as
    ``ignored_reasoning``.

    Args:
      records: checked.
      tokenizer: from ``tokenizer.load``.
      max_prompt_tokens: limit of a prompt, BOS included; at least 2.
      max_response_tokens: limit of a response, EOS included; at least 1.
      report: gets the counts.

    Raises:
      DataError: the chat template renders a prompt differently when a response follows.
      UserError: limits out of range.
    """
    if max_prompt_tokens < 2 or max_response_tokens < 1:
        raise UserError(
            f"data: max_prompt_tokens is {max_prompt_tokens}, expected at least 2; "
            f"max_response_tokens is {max_response_tokens}, expected at least 1"
        )
    for record in records:
        lacks = _unread(record, tokenizer)
        if lacks:
            report.drop(lacks, record.id)
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
        keep = _distinct(record, response_ids)
        if keep is None:
            cut = any(len(ids) > max_response_tokens for ids in encoded.response_ids)
            report.drop(f"identical_{'after_truncation' if cut else 'tokens'}", record.id)
            continue
        if any(len(ids) > max_response_tokens for ids in encoded.response_ids):
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
    """Tokenises and cuts records as `encode` does, and keeps all of them, to be scored.

    Row i is record i, its response j response j. Scores and labels are left out.

    Args:
      records, tokenizer, max_prompt_tokens, max_response_tokens: as of `encode`.
      report: gets the counts; ``truncated_response`` counts responses, not rows.
      reading: of a reward model from elsewhere; None: as `encode` reads.

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
    """Cuts responses after their last token that is no padding; one is left in any case."""
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


def _unread(record: Record, tokenizer: Tokenizer) -> str:
    """The reason to drop a record with tools that the chat template does not render, or ""."""
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
    """Prompt ids without their beginning, response ids without their end, where too long."""
    prompt_ids = cut_prompt(encoded.prompt_ids, tokenizer, max_prompt)
    return prompt_ids, [ids[:max_response] for ids in encoded.response_ids]


def cut_prompt(ids: np.ndarray, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """Cuts the beginning of a prompt that is too long, after the BOS if there is one."""
    if len(ids) <= longest:
        return ids
    start = ids[:1] if tokenizer.bos_id is not None else ids[:0]
    return np.concatenate([start, ids[len(start) - longest :]])


def _lossless(tokenizer: Tokenizer, record: Record, encoded: Encoded) -> bool:
    """Whether all ids decode to the text that they came from."""
    return all(
        tokenizer.decode(np.concatenate([encoded.prompt_ids, ids])) == f"{record.prompt}{text}"
        for ids, text in zip(encoded.response_ids, record.responses, strict=True)
    )


def _distinct(record: Record, response_ids: list[np.ndarray]) -> list[int] | None:
    """The responses that still differ; None if nothing is left to compare."""
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
    """Refuses to train on what is left of a dataset that lost too many rows.

    Args:
      report: counts after `encode`.
      max_drop_fraction: largest share of the rows read that may be dropped, in [0, 1].
      field: the config field that says so, for the message.

    Raises:
      DataError: with every reason, its count and first ids; or rows that no count explains.
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
    """Lists in one line why rows were dropped, with counts and the first ids."""
    return ", ".join(
        f"{reason} {count} ({', '.join(report.ids.get(reason, []))}"
        f"{', ...' if count > len(report.ids.get(reason, [])) else ''})"
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1])
    )
