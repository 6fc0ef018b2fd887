"""Dialogues written as one plain text: where the prompt ends, and their turns."""

import re
from collections.abc import Sequence

from alignjax.data.files import Row
from alignjax.data.records import DataError, DataReport, Message, Prompt, Record
from alignjax.data.sources.messages import DroppedRowError

ASSISTANT = "\n\nAssistant:"  # what starts the assistant's turns in HH-RLHF's dialogues
HUMAN = "\n\nHuman:"
_TURN = re.compile(f"({HUMAN}|{ASSISTANT})")


def split_texts(
    report: DataReport, row: Row, sides: Sequence[str], marker: str, *, chat: bool = False
) -> Record | None:
    """Splits two texts with a common start, at the marker where both have it, see `split_dialogue`.

    Raises:
      DroppedRowError: they have no common start.
    """
    if all(marker in side for side in sides):
        return split_dialogue(report, row, sides, marker, chat=chat)
    cut = common_prompt(*sides)
    if not cut:
        raise DroppedRowError("no_common_prompt", f"{row.origin}: the texts share no beginning")
    prompt: Prompt = sides[0][:cut]
    responses = tuple(side[cut:] for side in sides)
    if chat:
        prompt = (Message("user", sides[0][:cut].strip()),)
        responses = tuple(side.strip() for side in responses)
    return Record(id=row.id, origin=row.origin, prompt=prompt, responses=responses)


def split_dialogue(
    report: DataReport, row: Row, sides: Sequence[str], marker: str, *, chat: bool = False
) -> Record | None:
    """Splits plain-text dialogues at the last marker; drops rows whose contexts differ (None).

    With ``chat``, the prompt becomes messages, and the responses the assistant's next, without the
    white space around them. Also dropped then: ``unanswered_turn``, a human's turn after the
    response, or none right before it.
    """
    cuts = [side.rindex(marker) + len(marker) for side in sides]
    prompts = [side[:cut] for side, cut in zip(sides, cuts, strict=True)]
    if len(set(prompts)) > 1:
        report.drop("context_mismatch", row.id)
        return None
    responses = tuple(side[cut:] for side, cut in zip(sides, cuts, strict=True))
    prompt: Prompt = prompts[0]
    if chat:
        prompt = text_turns(report, row, prompts[0])
        if (prompt and prompt[-1].role != "user") or any(HUMAN in text for text in responses):
            report.drop("unanswered_turn", row.id)
            return None
        responses = tuple(text.strip() for text in responses)
    return Record(id=row.id, origin=row.origin, prompt=prompt, responses=responses)


def text_turns(report: DataReport, row: Row, dialogue: str) -> tuple[Message, ...]:
    r"""Reads the turns of a text with ``\n\nHuman:`` and ``\n\nAssistant:``; the last may be empty.

    Turns of one speaker in a row become one message, and the row is noted as ``joined_turns``.

    Raises:
      DataError: text before the first turn.
    """
    opening, *parts = _TURN.split(dialogue.rstrip().removesuffix(ASSISTANT))
    if opening.strip():
        raise DataError(f"{row.origin}: the dialogue begins with {opening[:40]!r}, wanted a turn "
                        "'\\n\\nHuman:'")  # fmt: skip
    turns: list[Message] = []
    for marker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if marker == HUMAN else "assistant"
        content = content.strip()
        if turns and turns[-1].role == role:
            content = f"{turns.pop().content}\n\n{content}"
        turns.append(Message(role, content))
    if len(turns) < len(parts) // 2:
        report.warn("joined_turns", row.id)
    return tuple(turns)


def common_prompt(first: str, second: str) -> int:
    """Finds where the prompt of two texts with a common start ends; 0: no good place.

    That is the longest common prefix that ends at a boundary (after a line break, or before a
    space, which goes to the response) and leaves both responses more than white space. A word is
    never cut, and a side that is a prefix of the other keeps its last word.
    """

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
