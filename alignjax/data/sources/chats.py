"""Chat files of LLaMA-Factory, known as ShareGPT's."""

from collections.abc import Iterator

from alignjax.data.files import read_rows
from alignjax.data.records import Receipt, Record
from alignjax.data.sources.messages import read_dialogue, read_message, read_messages, split_last


def sharegpt(receipt: Receipt, *, path: str) -> Iterator[Record]:
    """Reads chat files: ``conversations`` (or ``messages``) of turns.

    With ``chosen`` and ``rejected``, each one turn, a row is a pair; with ``label`` it is an
    unpaired judgement of its last turn; with neither, supervised. Turns are ``{from, value}`` or
    ``{role, content}``.
    """
    for row in read_rows(path):
        receipt.rows_in += 1
        key = "messages" if "messages" in row.fields else "conversations"
        if "chosen" not in row.fields and "rejected" not in row.fields:
            yield read_dialogue(row, key)
            continue
        turns = [(name, read_message(row, name, row.get(name))) for name in ("chosen", "rejected")]
        yield Record(
            id=row.id,
            origin=row.origin,
            responses=tuple(split_last(row, name, (turn,))[1] for name, turn in turns),
            prompt=read_messages(row, key),
        )
