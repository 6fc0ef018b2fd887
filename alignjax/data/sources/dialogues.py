"""Splits dialogues that are one plain text into prompt and response, or into turns."""

import re
from collections.abc import Sequence

from alignjax.data.files import Row
from alignjax.data.records import DataError, DataReport, Message, Prompt, Record
from alignjax.data.sources.messages import DroppedRowError

ASSISTANT = "\n\nAssistant:"  # starts the assistant's turns in HH-RLHF
HUMAN = "\n\nHuman:"
_TURN = re.compile(f"({HUMAN}|{ASSISTANT})")


def split_texts(
    report: DataReport, row: Row, sides: Sequence[str], marker: str, *, chat: bool = False
) -> Record | None:
    """Splits two texts at their last marker (`split_dialogue`), else after their common beginning.

    Raises:
      DroppedRowError: they have no common beginning.
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

    With ``chat``, the prompt becomes messages, and responses lose their surrounding white space.
    Rows with a human's turn after the response, or without one right before it, are then dropped
    as ``unanswered_turn``.
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

    Consecutive turns of one speaker become one message, and the row is noted as ``joined_turns``.

    Raises:
      DataError: there is text before the first turn.
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
    """Returns the length of the prompt that two texts share; 0 if there is no good place to split.

    The prompt is the longest common prefix that ends at a boundary (after a line break, or before a
    space, which goes to the response) and leaves both responses more than white space. Words are
    never cut, and a text that is a prefix of the other keeps its last word as its response.
    """

    def boundary(side: str, cut: int) -> bool:
        return side[cut - 1] == "\n" or (side[cut] in " \t" and side[cut - 1] not in " \t")

    # The last place that leaves both sides more than white space.
    last = min(len(first.rstrip()), len(second.rstrip())) - 1
    pairs = enumerate(zip(first, second, strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    for cut in range(min(shared, last), 0, -1):
        if boundary(first, cut) and boundary(second, cut):
            return cut
    return 0
