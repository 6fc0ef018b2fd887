"""The formats of TRL, told apart by their columns and types."""

from collections.abc import Iterator

from alignjax.data.files import Row, kind, read_rows
from alignjax.data.records import DataError, Message, Prompt, Receipt, Record
from alignjax.data.sources.messages import (
    read_dialogue,
    read_messages,
    read_prompt,
    single,
    split_last,
)
from alignjax.data.sources.pairs import ASSISTANT, split_dialogue

# Columns that change what TRL trains on and that are not supported here.
_REFUSED = (
    *("ref_chosen_logps", "ref_rejected_logps", "ref_logps", "ref_KL_logps"),
    *("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "input_ids"),
    *("tools", "chat_template_kwargs", "image", "images"),
)


def trl(receipt: Receipt, *, path: str, marker: str = ASSISTANT) -> Iterator[Record]:
    """Reads TRL's formats, told apart by their columns and types.

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
        _refuse_columns(row)
        if row.fields.get("margin") is not None:
            receipt.warn("ignored_margin", row.id)
        if "chosen" in row.fields or "rejected" in row.fields:
            record = _trl_pair(receipt, row, marker)
            if record is not None:
                yield record
        elif "messages" in row.fields:
            yield read_dialogue(row, "messages")
        elif "completion" in row.fields:
            yield _trl_completion(row)
        else:
            columns = ", ".join(map(repr, row.fields)) or "none"
            raise DataError(
                f"{row.origin}: expected the columns 'chosen' and 'rejected', 'completion', or "
                f"'messages'; the row has {columns}"
            )


def _refuse_columns(row: Row) -> None:
    for key in _REFUSED:
        if row.fields.get(key) is not None:
            raise DataError(
                f"{row.origin}: column {key!r} is not supported; remove it if the run may do "
                "without"
            )


def _trl_pair(receipt: Receipt, row: Row, marker: str) -> Record | None:
    """Reads a pair; None for a row that was dropped."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if type(chosen) is not type(rejected):
        raise row.wrong("rejected", rejected, f"{kind(chosen)} as 'chosen' is")
    if isinstance(chosen, list):
        return _conversational_pair(receipt, row)
    sides = (row.text("chosen"), row.text("rejected"))
    if _has_prompt(row):
        prompt = read_prompt(row, "prompt")
        return Record(id=row.id, origin=row.origin, prompt=prompt, responses=sides)
    if all(marker in side for side in sides):
        return split_dialogue(receipt, row, sides, marker)
    cut = _common_prompt(*sides)
    if not cut:
        receipt.drop("no_common_prompt", row.id)
        return None
    responses = (sides[0][cut:], sides[1][cut:])
    return Record(id=row.id, origin=row.origin, prompt=sides[0][:cut], responses=responses)


def _conversational_pair(receipt: Receipt, row: Row) -> Record | None:
    """Reads a pair of dialogues that differ in their last message alone."""
    contexts, responses = zip(
        *(split_last(row, key, read_messages(row, key)) for key in ("chosen", "rejected")),
        strict=True,
    )
    if contexts[0] != contexts[1]:
        receipt.drop("context_mismatch", row.id)
        return None
    prompt = _conversational_prompt(row, contexts[0]) if _has_prompt(row) else contexts[0]
    return Record(id=row.id, origin=row.origin, prompt=prompt, responses=responses)


def _has_prompt(row: Row) -> bool:
    return row.fields.get("prompt") is not None


def _common_prompt(first: str, second: str) -> int:
    """Finds where to cut two texts with a common start (see ``trl``); 0: no good place."""

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


def _conversational_prompt(row: Row, context: tuple[Message, ...]) -> Prompt:
    """Reads the prompt of a row with both a prompt column and messages in its responses.

    Some files repeat the whole dialogue on each side; then the two must agree.
    """
    prompt = read_prompt(row, "prompt", chat=True)
    without_system = tuple(turn for turn in context if turn.role != "system")
    if context and prompt not in (context, without_system):
        raise DataError(
            f"{row.origin}: 'prompt' differs from the messages before the last of 'chosen'"
        )
    return context or prompt


def _trl_completion(row: Row) -> Record:
    if not isinstance(row.get("completion"), list):
        return single(row, read_prompt(row, "prompt"), row.text("completion"))
    context, response = split_last(row, "completion", read_messages(row, "completion"))
    return single(row, _conversational_prompt(row, context), response)
