"""Reads pairs with fixed columns: HH-RLHF, PKU-SafeRLHF, model-written evaluations."""

import re
from collections.abc import Iterator

from alignjax.data.files import read_rows
from alignjax.data.records import DataError, DataReport, Record
from alignjax.data.sources.dialogues import ASSISTANT, split_dialogue
from alignjax.data.sources.messages import read_prompt

_INLINE_HUMAN = re.compile(r"(?<!\n\n)Human:")


def hh(report: DataReport, *, path: str, chat: bool = False) -> Iterator[Record]:
    r"""Reads HH-RLHF: ``{chosen, rejected}``, dialogues with turns ``\n\nHuman:`` and so on.

    Each side is split at its **last** ``\n\nAssistant:``, which stays at the prompt's end; the
    response keeps its leading space. (The longest common prefix would be wrong: if both responses
    begin with the same words, it would move these into the prompt.)

    Dropped: ``context_mismatch`` (the sides differ before the split). Noted: ``inline_marker`` (a
    literal ``Human:`` within a turn; never split at).

    Args:
      report: counts.
      path: file or glob.
      chat: for models with a chat template: turns become messages of the user and the assistant,
        without surrounding white space; `split_dialogue` lists the rows that are dropped.
    """
    for row in read_rows(path):
        report.rows_in += 1
        sides = [row.text("chosen"), row.text("rejected")]
        for key, side in zip(("chosen", "rejected"), sides, strict=True):
            if ASSISTANT not in side:
                raise DataError(f"{row.origin}: field {key!r} has no turn '\\n\\nAssistant:'")
        record = split_dialogue(report, row, sides, ASSISTANT, chat=chat)
        if record is not None:
            if any(_INLINE_HUMAN.search(side) for side in sides):
                report.warn("inline_marker", row.id)
            yield record


def pku(
    report: DataReport, *, path: str, preference: str = "better", chat: bool = True
) -> Iterator[Record]:
    """Reads PKU-SafeRLHF: a prompt, two responses, and which of them is better and which safer.

    Columns: ``prompt, response_0, response_1, better_response_id, safer_response_id``.

    Args:
      report: counts.
      path: file or glob.
      preference: which label makes the pair: ``"better"`` (helpfulness) or ``"safer"``.
      chat: the prompt is a user's message. False joins prompt and response as they are.
    """
    if preference not in ("better", "safer"):
        raise DataError(f"source pku: preference: wanted 'better' or 'safer', found {preference!r}")
    key = f"{preference}_response_id"
    for row in read_rows(path):
        report.rows_in += 1
        chosen = row.get(key)
        if isinstance(chosen, bool) or chosen not in (0, 1):
            raise DataError(f"{row.origin}: field {key!r}: wanted 0 or 1, found {chosen!r}")
        responses = (row.text(f"response_{chosen}"), row.text(f"response_{1 - chosen}"))
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=read_prompt(row, "prompt", chat=chat),
            responses=responses,
        )


def persona(report: DataReport, *, path: str, chat: bool = False) -> Iterator[Record]:
    """Reads model-written evaluations: a question, an answer that shows a behaviour, another.

    The chosen response is ``answer_matching_behavior``; the domain is the file's name without
    suffix, so a glob of several files is a multi-domain dataset. ``chat`` makes the question a
    user's message.
    """
    for row in read_rows(path):
        report.rows_in += 1
        yield Record(
            id=row.id,
            origin=row.origin,
            prompt=read_prompt(row, "question", chat=chat),
            responses=(
                row.text("answer_matching_behavior"),
                row.text("answer_not_matching_behavior"),
            ),
            domain=row.stem,
        )
