"""Splits data into training and held-out rows, by prompt."""

import math
import unicodedata
from collections.abc import Iterable

from alignjax.data.records import IDS_KEPT, DataError, DataReport, Message, Prompt, Record, digest


def prompt_digest(prompt: Prompt) -> str:
    """Returns a hex digest of a prompt that ignores case, white space and Unicode forms.

    Rows with equal digests have the same prompt when data are split or compared.
    """
    turns = [prompt] if isinstance(prompt, str) else []
    turns += [f"{t.role}\n{t.content}{t.more}" for t in prompt if isinstance(t, Message)]
    plain = [" ".join(unicodedata.normalize("NFKC", turn).casefold().split()) for turn in turns]
    return digest(plain).hex()


def split_by_prompt(
    records: Iterable[Record],
    *,
    seed: int,
    eval_fraction: float = 0.0,
    eval_size: int = 0,
    report: DataReport | None = None,
) -> tuple[list[Record], list[Record]]:
    """Splits records into (train, eval) so that no prompt is on both sides (`prompt_digest`).

    With ``eval_fraction``, a prompt is held out if the hash of (seed, digest), as a number in
    [0, 1), is below the fraction: adding rows never changes the side of another row. With
    ``eval_size``, the prompts of smallest hash are held out until there are at least that many
    rows; an added row may then move the last of them back to training.

    Args:
      records: from `records.check`.
      seed: selects the split.
      eval_fraction: expected share of the prompts to hold out, in [0, 1).
      eval_size: rows to hold out, or a few more: all rows of a prompt are held out together. Set
        exactly one of the two.
      report: held-out rows are added to it.

    Raises:
      DataError: both or none of the two are set, one is out of range, or no row is left to train.
    """
    if (eval_fraction > 0) == (eval_size > 0):
        raise DataError(
            "split: wanted exactly one of eval_fraction and eval_size above 0, found "
            f"{eval_fraction} and {eval_size}"
        )
    if not 0 <= eval_fraction < 1 or eval_size < 0:
        raise DataError(
            "split: wanted eval_fraction in [0, 1) and eval_size >= 0, found "
            f"{eval_fraction} and {eval_size}"
        )
    records = list(records)
    ranks = [_rank(seed, prompt_digest(record.root or record.prompt)) for record in records]
    threshold = eval_fraction
    if eval_size:
        if eval_size >= len(records):
            raise DataError(f"split: eval_size is {eval_size}, but there are {len(records)} rows")
        threshold = math.nextafter(sorted(ranks)[eval_size - 1], 2.0)
    train = [record for record, rank in zip(records, ranks, strict=True) if rank >= threshold]
    held_out = [record for record, rank in zip(records, ranks, strict=True) if rank < threshold]
    if not train:
        raise DataError(f"split: all {len(records)} rows were held out, nothing left to train on")
    if report is not None:
        report.held_out += len(held_out)
    return train, held_out


def _rank(seed: int, prompt: str) -> float:
    return int.from_bytes(digest(seed, prompt)[:6], "big") / 2**48


def check_no_overlap(train: Iterable[Record], held_out: Iterable[Record]) -> None:
    """Checks that no evaluation row has a prompt of the training data.

    Raises:
      DataError: some have; gives their number and first ids.
    """
    trained = {prompt_digest(record.prompt) for record in train}
    shared, total = [], 0
    for record in held_out:
        total += 1
        if prompt_digest(record.prompt) in trained:
            shared.append(record.id)
    if shared:
        first = ", ".join(shared[:IDS_KEPT]) + (", ..." if len(shared) > IDS_KEPT else "")
        raise DataError(
            f"{len(shared)} of {total} evaluation rows have a prompt that is also in the training "
            f"data ({first})"
        )
