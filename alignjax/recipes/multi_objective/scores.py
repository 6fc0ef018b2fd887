"""What ``losses.scorer`` says of responses: M numbers each, in the order of the names."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from alignjax.config import MeshConfig, ObjectivesConfig
from alignjax.config.fields import describe, name_of
from alignjax.data.records import Record
from alignjax.errors import UserError, did_you_mean
from alignjax.recipes.multi_objective.method import Setting
from alignjax.rewards import scorers
from alignjax.runtime.distributed import broadcast
from alignjax.runtime.faults import fault_point

AT_ONCE = 512  # records handed to the scorer at a time, and kept


def given(
    several: ObjectivesConfig, records: Sequence[Record], mesh: MeshConfig
) -> list[np.ndarray]:
    """Runs the scorer; ``mesh`` is what a reward model is split over.

    Returns:
      For every record ``[k, M]`` float64; NaN where the scorer has no score.

    Raises:
      UserError: it fails, lacks a name, or gives another shape or an infinite number.
    """
    columns = _columns(several)
    who = f"objectives.scorer: {name_of(several.scorer)}"
    try:
        found = scorers.over(several.scorer, mesh)(records)
    except UserError as error:
        raise type(error)(f"{who}: {error}") from error
    except Exception as error:  # a person's own scorer may raise anything
        raise UserError(f"{who}: {type(error).__name__}: {error}") from error
    if len(found) != len(records):
        raise UserError(f"{who}: wanted scores of {len(records)} records, found {len(found)}")
    out = []
    for record, scores in zip(records, found, strict=True):
        table = np.asarray(scores, np.float64)
        wanted = (len(record.responses), len(several.names))
        if columns is not None and table.ndim == 2:
            table = table[:, columns]
        if table.shape != wanted:
            raise UserError(
                f"{who}: record {record.id!r} has {wanted[0]} responses: wanted scores "
                f"{list(wanted)}, for {', '.join(several.names)}, found shape {list(table.shape)}"
            )
        if np.isinf(table).any():
            raise UserError(
                f"{who}: record {record.id!r}: wanted finite scores, found {table.tolist()}"
            )
        out.append(table)
    # Of several processes the first one's, as in `stages.scored`.
    return [np.array(x) for x in broadcast("scores", lambda: [x.tolist() for x in out])]


def _columns(several: ObjectivesConfig) -> list[int] | None:
    """Which of the scorer's numbers the names ask for; None where it does not name them."""
    has = _names(several.scorer)
    if has is None:
        return None
    for name in several.names:
        if name not in has:
            raise UserError(
                f"objectives.names: the scorer has no {name!r}{did_you_mean(name, has)}; it has "
                f"{', '.join(has)}"
            )
    return [has.index(name) for name in several.names]


def _names(scorer: Callable[..., Any]) -> tuple[str, ...] | None:
    if not isinstance(scorer, functools.partial):
        return None
    if scorer.func is scorers.reward_model:
        found = scorers.find_reward_model(scorer.keywords["path"]).objectives
        if not found:
            raise UserError(
                f"objectives.scorer: {scorer.keywords['path']} scores one objective, wanted several"
            )
        return found
    if scorer.func is scorers.judged:
        name = scorer.keywords["name"]
        return (name,) if isinstance(name, str) else tuple(name)
    return None


def kept(setting: Setting, records: Sequence[Record], name: str = "rows") -> list[np.ndarray]:
    """As `given`, for many records: kept in ``workdir/NAME.json``, in parts while it is made."""
    from alignjax.runtime import workdirs

    several = setting.objectives
    texts = json.dumps([[r.id, r.responses] for r in records])
    key = {
        "records": hashlib.sha256(texts.encode()).hexdigest(),
        "names": list(several.names),
        "scorer": describe(several.scorer),
        "digest": _digest_of(several.scorer),
    }
    file, parts = (setting.workdir / f"{name}{end}" for end in (".json", ".parts.json"))
    found = workdirs.find_json(file) or {}
    if found.get("key") != key:
        found = workdirs.find_json(parts) or {}
        scores = found["scores"] if found.get("key") == key else []
        for start in range(len(scores), len(records), AT_ONCE):
            chunk = given(several, records[start : start + AT_ONCE], setting.config.mesh)
            scores += [table.tolist() for table in chunk]
            workdirs.write_json(parts, {"key": key, "scores": scores})
            fault_point("rows_scored", f"{name}-{start}")
        found = {"key": key, "scores": scores}
        workdirs.write_json(file, found)
        workdirs.remove(parts)
    m = len(several.names)
    return [np.array(table, np.float64).reshape(-1, m) for table in found["scores"]]


def _digest_of(scorer: Callable[..., Any]) -> str:
    """Of a reward model's parameters: a path says nothing of what is there."""
    if isinstance(scorer, functools.partial) and scorer.func is scorers.reward_model:
        return scorers.find_reward_model(scorer.keywords["path"]).digest
    return ""
