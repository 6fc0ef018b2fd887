"""Defines records (one row of preference data each), checks them, and counts them in a data report.

Every source, real or synthetic, yields ``Record``. ``check`` applies the rules of all sources.
``DataReport`` counts the rows that were read, kept and dropped.

Rows without information are dropped and counted: empty or identical responses, duplicates, tied or
single scores. Errors that would make results wrong stop the run: scores that are not finite, one id
for two prompts, unpaired labels of one class only.
"""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignjax.errors import UserError

LARGEST_SCORE = 1e18  # squares of such numbers, and of their differences, fit in float32
IDS_KEPT = 3  # how many ids a data report remembers per reason


class DataError(UserError):
    """A data file or a row that cannot be used."""


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue.

    ``role`` is system, user, assistant or tool. Only the first message can have the role tools: its
    content is a JSON list of functions for the assistant, which chat templates see as ``tools``.
    """

    role: str
    content: str
    # JSON object of more fields for templates (tool_calls, reasoning_content, name, or another
    # content), and weight 0 if the turn is not trained; "" if there are none
    more: str = ""

    def fields(self) -> dict[str, Any]:
        """Returns the turn as JSON data, for files and templates."""
        rest = json.loads(self.more) if self.more else {}
        return {"role": self.role, "content": self.content, **rest}


Prompt = str | tuple[Message, ...]

# The last line of a plain-text prompt, if it names the next speaker.
_OPENER = re.compile(r"\s*\n(#+ )?\w+( \w+)?:[ \t]*\Z")


def extend_prompt(prompt: Prompt, text: str) -> Prompt:
    r"""Adds a text to a prompt.

    In plain text it goes to the end, or before the last line if that only names the next speaker
    (one or two words and a colon); in a conversation, to the end of the last message. A prompt that
    is too long loses its beginning, so it keeps the text.

    >>> extend_prompt("User: Hi!\nAssistant:", "Be brief.")
    'User: Hi! Be brief.\nAssistant:'
    """
    if not isinstance(prompt, str):
        last = prompt[-1]
        return (*prompt[:-1], replace(last, content=f"{last.content} {text}"))
    opener = _OPENER.search(prompt)
    end = opener.start() if opener else len(prompt.rstrip())
    return f"{prompt[:end]} {text}{prompt[end:]}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One prompt with K responses, as text.

    Pairs have K = 2 with ``responses[0]`` chosen and ``responses[1]`` rejected; lists have K = n
    and ``scores``; unpaired rows K = 1 and ``desirable``; supervised rows K = 1 and neither. For a
    conversational prompt the responses are contents of the assistant's next message.
    """

    id: str
    prompt: Prompt
    responses: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...] = ()  # K tuples of M floats, larger is better; or ()
    objectives: tuple[str, ...] = ()  # the names of the M scores
    desirable: tuple[bool, ...] = ()  # K labels, or ()
    adversarial: bool = False  # the first response is golden, the others are a policy's samples
    prompt_alone: bool = False  # without responses: a run samples its own
    repeats: bool = False  # keep repeated responses: samples, whose frequencies matter
    domain: str = ""
    origin: str = ""  # "file:line" for messages; "" if the row is not from a file
    more: tuple[str, ...] = ()  # `Message.more` of the K responses, or ()
    answers: tuple[str, ...] = ()  # the data's answers, if ``responses`` are a policy's samples
    root: Prompt = ""  # first turns of a dialogue, whose records are held out together; or ""


@dataclass
class DataReport:
    """Counts where the rows of a dataset went.

    Sources count ``rows_in``, `encode.encode` counts ``kept``, and `splits.split_by_prompt` counts
    ``held_out``. The three are counted independently, so that ``unaccounted`` shows rows lost in
    between, which `encode.enforce` refuses.
    """

    rows_in: int = 0
    kept: int = 0
    held_out: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    warned: dict[str, int] = field(default_factory=dict)  # reason -> rows that were kept
    ids: dict[str, list[str]] = field(default_factory=dict)  # reason -> first ids
    labels: dict[str, int] = field(default_factory=dict)  # desirable/undesirable responses
    added: int = 0  # records beyond one per row: more turns, minus responses joined into lists
    readings: dict[str, int] = field(default_factory=dict)  # roles of columns -> rows
    unread: dict[str, int] = field(default_factory=dict)  # unused column -> rows

    def drop(self, reason: str, id: str) -> None:
        """Counts a row that is not used."""
        self._count(self.dropped, reason, id)

    def warn(self, reason: str, id: str) -> None:
        """Counts a row that is used in spite of ``reason``."""
        self._count(self.warned, reason, id)

    def _count(self, counts: dict[str, int], reason: str, id: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1
        first = self.ids.setdefault(reason, [])
        if len(first) < IDS_KEPT:
            first.append(id)

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def records_in(self) -> int:
        """Records made from the rows read: a row may give several, or be joined with others."""
        return self.rows_in + self.added

    @property
    def unaccounted(self) -> int:
        """Rows that were read, but neither kept, held out nor dropped with a reason."""
        return self.records_in - self.kept - self.held_out - self.dropped_total

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON data, in a stable order."""
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "held_out": self.held_out,
            "dropped": dict(sorted(self.dropped.items())),
            "warned": dict(sorted(self.warned.items())),
            "ids": {reason: list(ids) for reason, ids in sorted(self.ids.items())},
            "labels": dict(sorted(self.labels.items())),
            **({"added": self.added} if self.added else {}),
            **({"readings": dict(self.readings)} if self.readings else {}),
            **({"unread": dict(self.unread)} if self.unread else {}),
        }

    def restore(self, counts: dict[str, Any]) -> None:
        """Sets all counts to those of an ``as_dict``."""
        self.__dict__.update(copy.deepcopy(counts))

    def render(self) -> str:
        """Formats a table of counts, shares of the rows read, and first ids for each reason."""
        rows = [("rows read", self.rows_in, ""), ("kept", self.kept, "")]
        if self.added:
            name = "more turns to train" if self.added > 0 else "joined into lists"
            rows.insert(1, (name, abs(self.added), ""))
        if self.held_out:
            rows.append(("held out", self.held_out, ""))
        if self.unaccounted:
            rows.append(("UNACCOUNTED", self.unaccounted, ""))
        for verb, counts in (("dropped", self.dropped), ("noted", self.warned)):
            for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
                ids = self.ids.get(reason, [])
                more = ", ..." if count > len(ids) else ""
                rows.append((f"  {verb} {reason}", count, ", ".join(ids) + more))
        width = max(len(name) for name, _, _ in rows)
        digits = max(len(f"{count:,}") for _, count, _ in rows)
        total = max(self.rows_in, self.records_in, 1)
        lines = [
            f"{name:<{width}}  {count:>{digits},}  {100 * count / total:6.2f}%  {ids}".rstrip()
            for name, count, ids in rows
        ]
        lines += [f"{reading} ({count:,} rows)" for reading, count in self.readings.items()]
        if self.unread:
            lines.append(f"columns not read: {', '.join(self.unread)}")
        good, bad = self.labels.get("desirable", 0), self.labels.get("undesirable", 0)
        if good and bad:
            rarer = "undesirable" if bad < good else "desirable"
            ratio = max(good, bad) / min(good, bad)
            lines.append(
                f"labels: {good:,} desirable, {bad:,} undesirable ({ratio:.1f} to 1); "
                f"a weight of {ratio:.2f} on the {rarer} ones balances them"
            )
        return "\n".join(lines)


def check(records: Iterable[Record], report: DataReport) -> Iterator[Record]:
    """Applies the rules common to all sources; yields the usable records, in order.

    Dropped and counted: ``empty_prompt``, ``empty_turn`` (of a user or assistant, in the prompt),
    ``empty_response``, ``identical_pair``, ``duplicate`` (same prompt, responses, scores, labels
    and domain as an earlier row), ``single_response`` and ``tied_scores`` (scored lists that rank
    nothing). A scored list loses single responses that are empty or repeat an earlier one, and is
    counted under ``removed_empty_responses`` or ``removed_repeated_responses``; with ``repeats`` it
    keeps repeated ones, unless all are the same. ``contradiction`` (A preferred to B and B to A, or
    one response with both labels, in one domain) is counted for both rows, which are kept. Rows
    with the same id and prompt get ids of their own: ``id``, ``id#2``, ...

    Memory: about 100 bytes per row (digests), no text.

    Raises:
      DataError: a score is not finite, scores or labels do not match the responses, one id has two
        prompts, or (at the end) unpaired labels are of one class only.
    """
    seen_rows: set[bytes] = set()
    seen_ids: dict[str, tuple[bytes, str, int]] = {}
    preferred: dict[bytes, tuple[bytes, str]] = {}
    for record in records:
        _check_shape(record)
        prompt = _key(_prompt_key(record.prompt))
        record = _with_own_id(record, prompt, seen_ids)
        answers = (record.responses, record.more) if record.more else record.responses
        kept, reason = _usable(record, report)
        if kept is None:
            report.drop(reason, record.id)
            continue
        judgement = (kept.scores, kept.objectives, kept.desirable, kept.adversarial)
        row = _key(prompt, answers, *judgement, kept.domain)
        if row in seen_rows:
            report.drop("duplicate", record.id)
            continue
        seen_rows.add(row)
        _note_contradiction(kept, prompt, preferred, report)
        for label in kept.desirable:
            name = "desirable" if label else "undesirable"
            report.labels[name] = report.labels.get(name, 0) + 1
        yield kept
    if len(report.labels) == 1:
        ((name, count),) = report.labels.items()
        raise DataError(
            f"all {count} labelled responses are {name}: unpaired data need both classes"
        )


def _with_own_id(record: Record, prompt: bytes, seen: dict[str, tuple[bytes, str, int]]) -> Record:
    """Renames a record whose id another row of the same prompt has: "a", "a#2", ...

    ``seen``: id -> (digest of the prompt, place of the first row, number of rows).
    """
    first, where, count = seen.get(record.id, (prompt, _where(record), 0))
    if first != prompt:
        raise DataError(
            f"duplicate id {record.id!r} with different prompts at {where} and {_where(record)}"
        )
    seen[record.id] = (first, where, count + 1)
    if not count:
        return record
    free = next(n for n in itertools.count(count + 1) if f"{record.id}#{n}" not in seen)
    own = f"{record.id}#{free}"
    seen[own] = (first, _where(record), 1)
    return replace(record, id=own)


def _where(record: Record) -> str:
    return record.origin or f"row {record.id!r}"


def _check_shape(record: Record) -> None:
    """Raises DataError if scores or labels do not match the responses."""
    size = len(record.responses)
    if record.scores and len(record.scores) != size:
        raise DataError(f"{_where(record)}: {len(record.scores)} scores for {size} responses")
    if record.desirable and len(record.desirable) != size:
        raise DataError(
            f"{_where(record)}: wanted labels for {size} responses, found {len(record.desirable)}"
        )
    for index, scores in enumerate(record.scores):
        if len(scores) != len(record.objectives):
            raise DataError(
                f"{_where(record)}: response {index} has {len(scores)} scores for the objectives "
                f"{', '.join(record.objectives) or '(none named)'}"
            )
        for name, score in zip(record.objectives, scores, strict=True):
            if not abs(score) <= LARGEST_SCORE:  # also true of NaN
                raise DataError(
                    f"{_where(record)}: score {name!r} of response {index}: wanted a finite "
                    f"number, at most {LARGEST_SCORE:g} in size, found {score}"
                )


def _usable(record: Record, report: DataReport) -> tuple[Record | None, str]:
    """Returns the record to keep, or None and the reason to drop it."""
    empty_turns = isinstance(record.prompt, tuple) and not record.prompt
    if empty_turns or (isinstance(record.prompt, str) and not record.prompt.strip()):
        return None, "empty_prompt"
    if isinstance(record.prompt, tuple) and any(map(_is_empty, record.prompt)):
        return None, "empty_turn"
    if record.prompt_alone:
        return record, ""
    if record.scores:
        return _usable_list(record, report)
    if not record.responses or any(not text.strip() for text in record.responses):
        return None, "empty_response"
    answers = set(itertools.zip_longest(record.responses, record.more))
    if len(record.responses) > 1 and len(answers) < len(record.responses):
        return None, "identical_pair"
    return record, ""


def _is_empty(turn: Message) -> bool:
    speaks = turn.role in ("user", "assistant")
    return speaks and not turn.content.strip() and "tool_calls" not in turn.fields()


def _usable_list(record: Record, report: DataReport) -> tuple[Record | None, str]:
    """Does the same for a scored list, which may lose single responses."""
    keep, empty, repeated = [], False, False
    seen: set[str] = set()
    for index, text in enumerate(record.responses):
        if not text.strip():
            empty = True
            continue
        repeated |= text in seen
        if text not in seen or record.repeats:
            keep.append(index)
        seen.add(text)
    if not keep:
        return None, "empty_response"
    if len(seen) == 1:
        return None, "identical_pair" if repeated else "single_response"
    if len({record.scores[index] for index in keep}) == 1:
        return None, "tied_scores"
    if empty:
        report.warn("removed_empty_responses", record.id)
    if repeated and not record.repeats:
        report.warn("removed_repeated_responses", record.id)
    return (take_responses(record, keep) if len(keep) < len(record.responses) else record), ""


def take_responses(record: Record, index: Sequence[int]) -> Record:
    """Takes the responses ``index`` of a record, in that order, with their scores and labels."""
    return replace(
        record,
        responses=tuple(record.responses[i] for i in index),
        scores=tuple(record.scores[i] for i in index) if record.scores else (),
        desirable=tuple(record.desirable[i] for i in index) if record.desirable else (),
        more=tuple(record.more[i] for i in index) if record.more else (),
    )


def _note_contradiction(
    record: Record, prompt: bytes, preferred: dict[bytes, tuple[bytes, str]], report: DataReport
) -> None:
    """Counts two rows of one domain with opposite preferences or labels."""
    if record.desirable and len(record.responses) == 1:
        verdict = _key(record.desirable)
    elif len(record.responses) == 2 and not record.scores:
        verdict = _key(record.responses)
    else:
        return
    question = _key(prompt, sorted(record.responses), record.domain)
    first = preferred.setdefault(question, (verdict, record.id))
    if first[0] != verdict:
        report.warn("contradiction", first[1])
        report.warn("contradiction", record.id)


def _prompt_key(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [[t.role, t.content, *([t.more] if t.more else ())] for t in prompt]


def prompt_as_json(prompt: Prompt) -> Any:
    """Converts a prompt to JSON data: text, or a list of messages."""
    return prompt if isinstance(prompt, str) else [turn.fields() for turn in prompt]


def _key(*parts: Any) -> bytes:
    """Digests values to 16 bytes, to tell rows apart; quicker than `digest`, and never stored."""
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).digest()


def digest(*parts: Any) -> bytes:
    """Digests JSON values to 16 bytes; bytes are read as their hex text."""
    text = json.dumps([p.hex() if isinstance(p, bytes) else p for p in parts])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
