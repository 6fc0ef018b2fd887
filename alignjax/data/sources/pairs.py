"""Pairs with a fixed set of columns: HH-RLHF, PKU-SafeRLHF, model-written evaluations."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError, Message, Receipt, Record
from alignjax.data.sources.messages import read_prompt

ASSISTANT = "\n\nAssistant:"  # what starts the assistant's turns in HH-RLHF's plain-text dialogues
HUMAN = "\n\nHuman:"
_TURN = re.compile(f"({HUMAN}|{ASSISTANT})")
_INLINE_HUMAN = re.compile(r"(?<!\n\n)Human:")


def hh(receipt: Receipt, *, path: str, messages: bool = False) -> Iterator[Record]:
    r"""Reads HH-RLHF: ``{chosen, rejected}``, whole dialogues with turns ``\n\nHuman:`` and so on.

    Each side is split at its **last** ``\n\nAssistant:``, which stays at the prompt's end; the
    response keeps its leading space. (The longest common prefix would be wrong: where both
    responses begin alike it would move their start into the prompt.)

    Dropped: ``context_mismatch`` (the sides differ before the split). Noted: ``inline_marker`` (a
    literal ``Human:`` within a turn; never split at).

    Args:
      receipt: counts.
      path: file or glob.
      messages: for models with a chat template: turns become messages of the user and the
        assistant, the responses the assistant's next, all without white space around them. Turns
        of one speaker in a row become one message (noted as ``joined_turns``). Also dropped:
        ``unanswered_turn`` (a human's turn after the response, or none right before it).
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        sides = [row.text("chosen"), row.text("rejected")]
        for key, side in zip(("chosen", "rejected"), sides, strict=True):
            if ASSISTANT not in side:
                raise DataError(f"{row.origin}: field {key!r} has no turn '\\n\\nAssistant:'")
        record = split_dialogue(receipt, row, sides, ASSISTANT)
        if record is not None and messages:
            record = _as_messages(receipt, record)
        if record is not None:
            if any(_INLINE_HUMAN.search(side) for side in sides):
                receipt.warn("inline_marker", row.id)
            yield record


def _as_messages(receipt: Receipt, record: Record) -> Record | None:
    """Turns the dialogue of a split row into messages; drops rows without an answered turn."""
    assert isinstance(record.prompt, str)
    before, *rest = _TURN.split(record.prompt.removesuffix(ASSISTANT))
    if before.strip():
        raise DataError(
            f"{record.origin}: fields 'chosen' and 'rejected' begin with {before[:40]!r}, wanted a "
            "turn '\\n\\nHuman:'"
        )
    turns: list[Message] = []
    for marker, text in zip(rest[::2], rest[1::2], strict=True):
        role = "user" if marker == HUMAN else "assistant"
        if turns and turns[-1].role == role:
            text = f"{turns.pop().content}\n\n{text.strip()}"
        turns.append(Message(role, text.strip()))
    if (turns and turns[-1].role != "user") or any(HUMAN in y for y in record.responses):
        receipt.drop("unanswered_turn", record.id)
        return None
    if len(turns) < len(rest) // 2:
        receipt.warn("joined_turns", record.id)
    responses = tuple(y.strip() for y in record.responses)
    return replace(record, prompt=tuple(turns), responses=responses)


def split_dialogue(receipt: Receipt, row: Row, sides: Sequence[str], marker: str) -> Record | None:
    """Splits plain-text dialogues at the last marker; drops rows whose contexts differ (None)."""
    cuts = [side.rindex(marker) + len(marker) for side in sides]
    prompts = [side[:cut] for side, cut in zip(sides, cuts, strict=True)]
    if len(set(prompts)) > 1:
        receipt.drop("context_mismatch", row.id)
        return None
    responses = tuple(side[cut:] for side, cut in zip(sides, cuts, strict=True))
    return Record(id=row.id, origin=row.origin, prompt=prompts[0], responses=responses)


def pku(
    receipt: Receipt, *, path: str, preference: str = "better", chat: bool = True
) -> Iterator[Record]:
    """Reads PKU-SafeRLHF: a prompt, two responses, and which one is better and which safer.

    Columns: ``prompt, response_0, response_1, better_response_id, safer_response_id``.

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
            id=row.id,
            origin=row.origin,
            prompt=read_prompt(row, "prompt", chat=chat),
            responses=responses,
        )


def persona(receipt: Receipt, *, path: str) -> Iterator[Record]:
    """Reads model-written evaluations: a question, the answer that shows a behaviour, the other.

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
