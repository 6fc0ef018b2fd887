"""Splits data into training and held-out rows, by prompt."""

import math
import unicodedata
from collections.abc import Iterable

from alignjax.data.records import IDS_KEPT, DataError, DataReport, Message, Prompt, Record, digest


def prompt_digest(prompt: Prompt) -> str:
    """Hex digest of a prompt up to case, white space and Unicode compatibility forms.

    Two rows with one digest count as the same prompt when data are split or compared.
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
    """Splits into (train, eval) so that no prompt, up to ``prompt_digest``, is on both sides.

    With ``eval_fraction`` a prompt is held out when the hash of (seed, its digest), read as a
    number in [0, 1), is below the fraction: the side of a row never changes when rows are added.
    With ``eval_size`` the prompts of smallest hash are held out until at least that many rows
    are; an appended row may then displace the last of them.

    Args:
      records: checked records.
      seed: which of the possible splits.
      eval_fraction: expected share of the prompts to hold out, in [0, 1).
      eval_size: rows to hold out; set exactly one of the two. The prompt that crosses it is
        held out whole.
      report: counts the held-out rows, if given.

    Raises:
      DataError: both or none of the two given, out of range, or nothing left to train on.
    """
    if (eval_fraction > 0) == (eval_size > 0):
        raise DataError("split: set exactly one of eval_fraction and eval_size above 0")
    if not 0 <= eval_fraction < 1 or eval_size < 0:
        raise DataError(
            f"split: eval_fraction is {eval_fraction}, expected [0, 1); eval_size is {eval_size}"
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
    """Refuses evaluation rows whose prompt is also trained on.

    Raises:
      DataError: with the number of such rows and the first ids.
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
