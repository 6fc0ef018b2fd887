"""What a config's scorers say of records, checked."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.data.records import Record
from alignjax.errors import UserError


def scores(scorer: Callable[..., Any], records: Sequence[Record], field: str) -> list[np.ndarray]:
    """Runs one scorer.

    Args:
      scorer: gives ``[k]`` or ``[k, M]`` for every record of k responses.
      records: what to score.
      field: the config field that names the scorer, for messages.

    Returns:
      For every record ``[k]`` float64; of M objectives the mean.

    Raises:
      UserError: an array has another shape, or a score is not finite.
    """
    plain = scorer.func if isinstance(scorer, functools.partial) else scorer
    name = f"{field}: {plain.__module__}.{plain.__name__}"
    found = scorer(records)
    if len(found) != len(records):
        raise UserError(f"{name}: wanted scores of {len(records)} records, found {len(found)}")
    out = []
    for record, given in zip(records, found, strict=True):
        array = np.asarray(given, np.float64)
        k = len(record.responses)
        if array.ndim not in (1, 2) or len(array) != k or not array.size:
            raise UserError(
                f"{name}: record {record.id!r} has {k} responses: wanted scores [{k}] or "
                f"[{k}, M], found shape {list(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise UserError(
                f"{name}: record {record.id!r}: wanted finite scores, found {array.tolist()}"
            )
        out.append(array if array.ndim == 1 else array.mean(axis=1))
    return out


def mean_scores(
    scorers: Sequence[Callable[..., Any]], records: Sequence[Record], field: str
) -> list[np.ndarray]:
    """The mean of several scorers, ``[k]`` for every record; see `scores`."""
    each = [scores(s, records, f"{field}[{i}]") for i, s in enumerate(scorers)]
    return [np.mean(rows, axis=0) for rows in zip(*each, strict=True)]
