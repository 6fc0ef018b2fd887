"""What a config's scorers and its judge say of responses, checked.

Every process asks them, since a reward model runs on all devices, and all go on with what the first
one was told: a person's own function may answer differently each time.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.config import Config, MeshConfig
from alignjax.config.fields import name_of
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.rewards import scorers as score
from alignjax.runtime.distributed import broadcast
from alignjax.stages.data import Prepared


def try_out(config: Config, data: Prepared) -> None:
    """Tries the scorers and the judge before anything is trained: they are used hours later.

    Of a reward model its workdir is looked at; any other scorer, and the judge, are given the
    first held-out row.

    Raises:
      UserError: one of them cannot be used.
    """
    example = data.asked.dataset[0]
    record = data.asked_records[example.id]
    lists = config.candidates.scorers if config.candidates is not None else ()
    for field, scorers in (
        ("candidates.scorers", lists),
        ("evaluate.scorers", config.evaluate.scorers),
    ):
        for i, scorer in enumerate(scorers):
            if isinstance(scorer, functools.partial) and scorer.func is score.reward_model:
                score.find_reward_model(scorer.keywords["path"])
            else:
                scores(scorer, [record], f"{field}[{i}]", config.mesh)
    if config.evaluate.judge is not None:
        judgements(config.evaluate.judge, [(example.prompt, example.responses[0])])


def judgements(judge: Callable[..., Any], said: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Every score of ``evaluate.judge`` by its name, ``[S]`` float64 over (prompt, response) pairs.

    Raises:
      UserError: what it returns is no ``{name: finite number}``, or has other names than before.
    """
    name = f"evaluate.judge: {name_of(judge)}"
    rows: list[dict[str, Any]] = []
    for prompt, response in said:
        found = _call(name, judge, prompt, response)
        names = rows[0] if rows else found
        if not isinstance(found, dict) or not found or set(found) != set(names):
            wanted = f"the scores {', '.join(names)}" if rows else "{name: number}, one at least"
            raise UserError(f"{name}: wanted {wanted}, found {found!r}")
        bad = {n: x for n, x in found.items() if not _is_finite(x)}
        if bad:
            raise UserError(f"{name}: wanted finite numbers, found {bad} for {response!r}")
        rows.append(found)
    rows = broadcast("judgements", lambda: [{n: float(x) for n, x in row.items()} for row in rows])
    return {n: np.array([row[n] for row in rows], np.float64) for n in (rows[0] if rows else ())}


def scores(
    scorer: Callable[..., Any], records: Sequence[Record], field: str, mesh: MeshConfig | None
) -> list[np.ndarray]:
    """Runs one scorer.

    Args:
      scorer: gives ``[k]`` or ``[k, M]`` for every record of k responses.
      records: what to score.
      field: the config field that names the scorer, for messages.
      mesh: what a reward model is split over; None: see `scorers.reward_model`.

    Returns:
      For every record ``[k]`` float64; of M objectives the mean.

    Raises:
      UserError: the scorer fails, an array has another shape, or a score is not finite.
    """
    name = f"{field}: {name_of(scorer)}"
    found = _call(name, score.over(scorer, mesh), records)
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
    return [np.array(x) for x in broadcast("scores", lambda: [x.tolist() for x in out])]


def _call(name: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except UserError as error:
        raise type(error)(f"{name}: {error}") from error
    except Exception as error:  # a person's own scorer may raise anything
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error


def _is_finite(x: Any) -> bool:
    array = np.asarray(x)
    return array.ndim == 0 and array.dtype.kind in "biuf" and bool(np.isfinite(array))


def mean_scores(
    scorers: Sequence[Callable[..., Any]], records: Sequence[Record], field: str, mesh: MeshConfig
) -> list[np.ndarray]:
    """The mean of several scorers, ``[k]`` for every record; see `scores`."""
    each = [scores(s, records, f"{field}[{i}]", mesh) for i, s in enumerate(scorers)]
    return [np.mean(rows, axis=0) for rows in zip(*each, strict=True)]
