"""Readers of preference data files. Each yields ``Record``s and counts what it leaves out.

Every source has the signature ``(receipt, *, path, ...) -> Iterator[Record]``. ``path`` is a file
or a glob of ``.jsonl``, ``.jsonl.gz``, ``.json`` or ``.json.gz`` files. A config binds the other
keywords with ``functools.partial``. A row that is malformed (field missing, null, of the wrong
type) stops the run with ``file:line`` and the field; a row that is well-formed but of no use is
dropped and counted. ``records.check`` does what is common to all sources.

Plain-text prompts and responses are used as they are: prompt + response is the text the model
sees. Where a file holds bare questions and answers, ``chat=True`` makes the prompt a user's
message, and the chat template (or the plain one of ``data.tokenizer.chat``) puts words around it.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from alignjax.data.files import Row, kind, read_rows, text
from alignjax.data.records import DataError, Message, Prompt, Receipt, Record
from alignjax.errors import did_you_mean

ASSISTANT = "\n\nAssistant:"  # what starts the assistant's turns in HH-RLHF's plain-text dialogues
_INLINE_HUMAN = re.compile(r"(?<!\n\n)Human:")

_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}
_ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}

# Columns that change what TRL trains on and that are not honoured here.
_REFUSED = (
    *("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps"),
    *("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "input_ids"),
    *("tools", "chat_template_kwargs", "image", "images"),
)


def hh(receipt: Receipt, *, path: str) -> Iterator[Record]:
    r"""HH-RLHF: ``{chosen, rejected}``, two whole dialogues with turns ``\n\nHuman:`` and so on.

    Each side is split at its **last** ``\n\nAssistant:``, which stays at the prompt's end; the
    response keeps its leading space. The longest common prefix would take the start of the
    response into the prompt wherever both responses begin alike.

    Dropped: ``context_mismatch`` (the sides differ before the split). Noted: ``inline_marker`` (a
    literal ``Human:`` within a turn; never split at).
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        sides = [row.text("chosen"), row.text("rejected")]
        for key, side in zip(("chosen", "rejected"), sides, strict=True):
            if ASSISTANT not in side:
                raise DataError(f"{row.origin}: field {key!r} has no turn '\\n\\nAssistant:'")
        record = _split_dialogue(receipt, row, sides, ASSISTANT)
        if record is not None:
            if any(_INLINE_HUMAN.search(side) for side in sides):
                receipt.warn("inline_marker", row.id)
            yield record


def _split_dialogue(receipt: Receipt, row: Row, sides: Sequence[str], marker: str) -> Record | None:
    """Splits plain-text dialogues at the last marker; None, and counted, if the contexts differ."""
    cuts = [side.rindex(marker) + len(marker) for side in sides]
    prompts = [side[:cut] for side, cut in zip(sides, cuts, strict=True)]
    if len(set(prompts)) > 1:
        receipt.drop("context_mismatch", row.id)
        return None
    responses = tuple(side[cut:] for side, cut in zip(sides, cuts, strict=True))
    return Record(id=row.id, origin=row.origin, prompt=prompts[0], responses=responses)


def trl(receipt: Receipt, *, path: str, marker: str = ASSISTANT) -> Iterator[Record]:
    """TRL's formats, told apart by their columns and types.

    ======================================  ===========================
    columns                                 becomes
    ======================================  ===========================
    ``prompt``, ``chosen``, ``rejected``    pair
    ``chosen``, ``rejected``                pair with implicit prompt
    ``prompt``, ``completion``, ``label``   unpaired
    ``prompt``, ``completion``              supervised
    ``messages`` (and ``label``)            supervised (unpaired): the last assistant turn
    ======================================  ===========================

    Texts are either all plain or all lists of ``{role, content}``. The implicit prompt of a
    conversational pair is everything before the last assistant message, which must be the same on
    both sides (else ``context_mismatch``, dropped). For plain text:

    1. Where both sides contain ``marker``, they are split at its last occurrence, as ``hh`` does.
    2. Otherwise the prompt is the longest common prefix that ends at a boundary (after a line
       break, or before a space, which goes to the response) and leaves both responses more than
       white space. A word is never cut, and a side that is a prefix of the other keeps its last
       word. Where no such prefix exists, the row is dropped as ``no_common_prompt``.

    ``margin`` is not used, and rows that have it are noted as ``ignored_margin``.

    Raises:
      DataError: other columns, or columns that would have to be honoured and cannot be
        (pre-computed log-probabilities, token ids, tools, images, template arguments).
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        for key in _REFUSED:
            if row.fields.get(key) is not None:
                raise DataError(
                    f"{row.origin}: column {key!r} is not supported; remove it if the run may "
                    "do without"
                )
        if row.fields.get("margin") is not None:
            receipt.warn("ignored_margin", row.id)
        if "chosen" in row.fields or "rejected" in row.fields:
            record = _trl_pair(receipt, row, marker)
            if record is not None:
                yield record
        elif "messages" in row.fields:
            yield _labelled_dialogue(row, "messages")
        elif "completion" in row.fields:
            yield _trl_completion(row)
        else:
            known = ", ".join(map(repr, row.fields)) or "none"
            raise DataError(
                f"{row.origin}: expected the columns 'chosen' and 'rejected', 'completion', or "
                f"'messages'; the row has {known}"
            )


def _trl_pair(receipt: Receipt, row: Row, marker: str) -> Record | None:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if type(chosen) is not type(rejected):
        raise row.wrong("rejected", rejected, f"{kind(chosen)} as 'chosen' is")
    explicit = row.fields.get("prompt") is not None
    if isinstance(chosen, list):
        contexts, responses = zip(
            *(_split_last(row, key, _messages(row, key)) for key in ("chosen", "rejected")),
            strict=True,
        )
        if contexts[0] != contexts[1]:
            receipt.drop("context_mismatch", row.id)
            return None
        prompt: Prompt = _conversational_prompt(row, contexts[0]) if explicit else contexts[0]
        return Record(id=row.id, origin=row.origin, prompt=prompt, responses=responses)

    sides = (row.text("chosen"), row.text("rejected"))
    if explicit:
        if isinstance(row.fields["prompt"], list):
            prompt = _messages(row, "prompt")
        else:
            prompt = row.text("prompt")
        return Record(id=row.id, origin=row.origin, prompt=prompt, responses=sides)
    if all(marker in side for side in sides):
        return _split_dialogue(receipt, row, sides, marker)
    cut = _common_prompt(*sides)
    if not cut:
        receipt.drop("no_common_prompt", row.id)
        return None
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=sides[0][:cut],
        responses=(sides[0][cut:], sides[1][cut:]),
    )


def _common_prompt(first: str, second: str) -> int:
    """Where to cut two texts with a common start (see ``trl``); 0 if there is no good place."""

    def boundary(side: str, cut: int) -> bool:
        return side[cut - 1] == "\n" or (side[cut] in " \t" and side[cut - 1] not in " \t")

    # The last place that leaves something on both sides, white space at the ends not counted.
    last = min(len(first.rstrip()), len(second.rstrip())) - 1
    pairs = enumerate(zip(first, second, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    for cut in range(min(shared, last), 0, -1):
        if boundary(first, cut) and boundary(second, cut):
            return cut
    return 0


def _conversational_prompt(row: Row, context: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt of a row that has both a prompt column and messages in its responses.

    Some files repeat the whole dialogue on each side; then the two must agree.
    """
    if isinstance(row.fields["prompt"], list):
        prompt = _messages(row, "prompt")
    else:
        prompt = (Message("user", row.text("prompt")),)
    without_system = tuple(turn for turn in context if turn.role != "system")
    if context and prompt not in (context, without_system):
        raise DataError(
            f"{row.origin}: 'prompt' differs from the messages before the last of 'chosen'"
        )
    return context or prompt


def _trl_completion(row: Row) -> Record:
    completion: Any = row.get("completion")
    prompt: Prompt
    if isinstance(completion, list):
        context, response = _split_last(row, "completion", _messages(row, "completion"))
        row.get("prompt")
        prompt = _conversational_prompt(row, context)
    else:
        response = row.text("completion")
        conversational = isinstance(row.get("prompt"), list)
        prompt = _messages(row, "prompt") if conversational else row.text("prompt")
    labelled = "label" in row.fields
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=prompt,
        responses=(response,),
        desirable=(row.boolean("label"),) if labelled else (),
    )


def _labelled_dialogue(row: Row, key: str) -> Record:
    prompt, response = _split_last(row, key, _messages(row, key))
    labelled = "label" in row.fields
    return Record(
        id=row.id,
        origin=row.origin,
        prompt=prompt,
        responses=(response,),
        desirable=(row.boolean("label"),) if labelled else (),
    )


def _messages(row: Row, key: str) -> tuple[Message, ...]:
    return tuple(
        _message(row, f"{key}[{index}]", value) for index, value in enumerate(row.items(key))
    )


def _message(row: Row, key: str, value: Any) -> Message:
    """One turn, ``{role, content}`` or ``{from, value}``."""
    if not isinstance(value, dict):
        raise row.wrong(key, value, "a message")
    names = ("from", "value") if "from" in value else ("role", "content")
    for name in names:
        if value.get(name) is None:
            found = ", ".join(map(repr, value)) or "nothing"
            raise DataError(f"{row.origin}: field {key!r} has no {name!r}; it has {found}")
    if value.get("tool_calls"):
        raise DataError(f"{row.origin}: field {key!r} has tool calls, which are not supported")
    role = text(value[names[0]], f"{key}.{names[0]}", row.origin)
    if role not in _ROLES:
        raise DataError(
            f"{row.origin}: field '{key}.{names[0]}' is {role!r}, expected one of "
            f"{', '.join(_ROLES)}{did_you_mean(role, _ROLES)}"
        )
    return Message(_ROLES[role], text(value[names[1]], f"{key}.{names[1]}", row.origin))


def _split_last(row: Row, key: str, turns: tuple[Message, ...]) -> tuple[tuple[Message, ...], str]:
    """Everything before the last message, and the content of the last, which is the assistant's."""
    if not turns or turns[-1].role != "assistant":
        found = f"is {turns[-1].role}'s" if turns else "does not exist"
        raise DataError(f"{row.origin}: the last message of {key!r} {found}, expected assistant's")
    return turns[:-1], turns[-1].content


def sharegpt(receipt: Receipt, *, path: str) -> Iterator[Record]:
    """LLaMA-Factory's chat files: ``conversations`` (or ``messages``) of turns.

    With ``chosen`` and ``rejected``, each one turn, a row is a pair; with ``label`` it is an
    unpaired judgement of its last turn; with neither, supervised. Turns are ``{from, value}`` or
    ``{role, content}``.
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        key = "messages" if "messages" in row.fields else "conversations"
        if "chosen" not in row.fields and "rejected" not in row.fields:
            yield _labelled_dialogue(row, key)
            continue
        sides = [_message(row, name, row.get(name)) for name in ("chosen", "rejected")]
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            _split_last(row, name, (side,))
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=_messages(row, key),
            responses=(sides[0].content, sides[1].content),
        )


def lists(
    receipt: Receipt,
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
    """Lists of scored responses: ``{prompt, responses: [text], scores: [number]}``.

    Args:
      receipt: counts. A response whose score is null is left out, and its row noted as
        ``removed_null_scores``; a row without any score is dropped as ``no_scores``.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      responses: the field of the responses, e.g. ``completions``.
      scores: the field of the scores, one entry per response: a number, or an object of numbers
        by objective. One objective is named like the field.
      objectives: which objectives of those objects to use, in this order; () for all.
      larger_is_better: False for ranks, whose sign is then changed.
      order_seed: shuffles each list by (seed, row id). Use it where the position in the list
        tells something about the score; None keeps the order.
      chat: the prompt is a user's message.
      domain: the field whose text becomes ``Record.domain``; "" for none.
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        texts = [
            text(value, f"{responses}[{index}]", row.origin)
            for index, value in enumerate(row.items(responses))
        ]
        values = row.items(scores)
        if len(values) != len(texts):
            raise DataError(
                f"{row.origin}: field {scores!r} has {len(values)} entries for {len(texts)} "
                f"responses in {responses!r}"
            )
        names, numbers = _scores(row, scores, values, objectives)
        order = [index for index, score in enumerate(numbers) if score is not None]
        if not order:
            receipt.drop("no_scores", row.id)
            continue
        if len(order) < len(texts):
            receipt.warn("removed_null_scores", row.id)
        if order_seed is not None:
            order.sort(key=lambda index: _place(order_seed, row.id, index))
        sign = 1.0 if larger_is_better else -1.0
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=prompt_of(row, prompt, chat),
            responses=tuple(texts[index] for index in order),
            scores=tuple(tuple(sign * score for score in numbers[index] or ()) for index in order),
            objectives=names,
            domain=row.text(domain) if domain else "",
        )


def rated(
    receipt: Receipt,
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
    """One scored response per row; those to one prompt become a list, as of `lists`.

    Args:
      receipt: counts prompts, not rows. A response of which a score is null is left out, and its
        list noted as ``removed_null_scores``; a list without any score is dropped as ``no_scores``.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      response: the field of the response.
      scores: the field of its scores: a number, or an object of numbers by objective.
      objectives: which of those to use, in this order; () for all.
      before, after: put around a prompt that is text.
      chat: the prompt is a user's message.
    """
    groups: dict[Prompt, list[Row]] = {}
    for row in read_rows(path):
        groups.setdefault(prompt_of(row, prompt, chat), []).append(row)
    for asked, rows in groups.items():
        receipt.rows_in += 1
        first, texts, table = rows[0], [], []
        names: tuple[str, ...] = objectives
        for row in rows:
            names, (numbers,) = _scores(row, scores, [row.get(scores)], names)
            if numbers is not None:
                texts.append(row.text(response))
                table.append(numbers)
        if not texts:
            receipt.drop("no_scores", first.id)
            continue
        if len(texts) < len(rows):
            receipt.warn("removed_null_scores", first.id)
        yield Record(
            id=first.id,
            origin=first.origin,
            prompt=f"{before}{asked}{after}" if isinstance(asked, str) else asked,
            responses=tuple(texts),
            scores=tuple(table),
            objectives=names,
        )


def _place(seed: int, id: str, index: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{id}/{index}".encode(), digest_size=8).digest()


def _scores(
    row: Row, key: str, values: Sequence[Any], wanted: tuple[str, ...]
) -> tuple[tuple[str, ...], list[tuple[float, ...] | None]]:
    """The objectives' names and, per response, their numbers, or None where any is null."""
    entries: list[dict[str, Any]] = [
        value if isinstance(value, dict) else {key: value} for value in values
    ]
    known = next((tuple(entry) for entry in entries if None not in entry.values()), ())
    names = wanted or known or tuple(entries[0] if entries else ())
    numbers: list[tuple[float, ...] | None] = []
    found: list[float]
    for index, entry in enumerate(entries):
        where = f"{key}[{index}]"
        found = []
        for name in names:
            if name not in entry and values[index] is not None:
                raise DataError(
                    f"{row.origin}: field {where!r} has no objective {name!r}"
                    f"{did_you_mean(name, entry)}; it has {', '.join(map(repr, entry)) or 'none'}"
                )
            score: Any = entry.get(name)
            if score is None:
                continue
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise row.wrong(where if name == key else f"{where}.{name}", score, "a number")
            if isinstance(score, int) and abs(score) > 10**300:
                raise DataError(f"{row.origin}: field {where!r} is too large for a score")
            found.append(float(score))
        numbers.append(tuple(found) if len(found) == len(names) else None)
    return names, numbers


def prompt_of(row: Row, key: str, chat: bool) -> Prompt:
    """A field that holds a list of messages or a text; with ``chat`` the text is a user's."""
    if isinstance(row.get(key), list):
        return _messages(row, key)
    return (Message("user", row.text(key)),) if chat else row.text(key)


def responses_of(row: Row) -> Record:
    """A row's ``prompt`` and ``responses`` as they stand, whatever else it holds."""
    said = [text(x, f"responses[{i}]", row.origin) for i, x in enumerate(row.items("responses"))]
    prompt = prompt_of(row, "prompt", chat=False)
    return Record(id=row.id, origin=row.origin, prompt=prompt, responses=tuple(said))


def pku(
    receipt: Receipt, *, path: str, preference: str = "better", chat: bool = True
) -> Iterator[Record]:
    """PKU-SafeRLHF: ``{prompt, response_0, response_1, better_response_id, safer_response_id}``.

    Args:
      receipt: counts.
      path: file or glob.
      preference: which label makes the pair: ``"better"`` (helpfulness) or ``"safer"``.
      chat: the prompt is a user's message. False joins prompt and response as they are.
    """
    if preference not in ("better", "safer"):
        raise DataError(f"source pku: preference is {preference!r}, expected 'better' or 'safer'")
    key = f"{preference}_response_id"
    for row in read_rows(path):
        receipt.rows_in += 1
        chosen = row.get(key)
        if isinstance(chosen, bool) or chosen not in (0, 1):
            raise DataError(f"{row.origin}: field {key!r} is {chosen!r}, expected 0 or 1")
        responses = (row.text(f"response_{chosen}"), row.text(f"response_{1 - chosen}"))
        yield Record(
            id=row.id, origin=row.origin, prompt=prompt_of(row, "prompt", chat), responses=responses
        )


def persona(receipt: Receipt, *, path: str) -> Iterator[Record]:
    """Model-written evaluations: a question, the answer that shows a behaviour, and the other.

    The chosen response is ``answer_matching_behavior``; the domain is the file's name without
    suffix, so that a glob over several files is a multi-domain dataset.
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=row.text("question"),
            responses=(
                row.text("answer_matching_behavior"),
                row.text("answer_not_matching_behavior"),
            ),
            domain=row.stem,
        )


def unpaired(
    receipt: Receipt,
    *,
    path: str,
    prompt: str = "prompt",
    response: str = "completion",
    label: str = "label",
    desirable: bool | str | int = True,
    undesirable: bool | str | int = False,
    chat: bool = False,
) -> Iterator[Record]:
    """One labelled response per row, under any field names.

    Args:
      receipt: counts.
      path: file or glob.
      prompt: the field of the prompt, text or a list of messages.
      response: the field of the response.
      label: the field of the label.
      desirable: the label's value for a desirable response.
      undesirable: its value for an undesirable one. Any third value is an error.
      chat: the prompt is a user's message.
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        value = row.get(label)
        matches = [type(value) is type(w) and value == w for w in (desirable, undesirable)]
        if not any(matches):
            raise DataError(
                f"{row.origin}: field {label!r} is {value!r}, expected {desirable!r} (desirable) "
                f"or {undesirable!r} (undesirable)"
            )
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=prompt_of(row, prompt, chat),
            responses=(row.text(response),),
            desirable=(matches[0],),
        )
