"""Scores of responses by ``objectives.scorer``: M numbers each, in the order of the names."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from alignjax.config import MeshConfig
from alignjax.config.fields import describe
from alignjax.data.records import Record
from alignjax.recipes.multi_objective import ObjectivesConfig
from alignjax.recipes.multi_objective.method import Setting
from alignjax.rewards.scorers import Scorer, open_scorer
from alignjax.runtime.faults import fault_point

AT_ONCE = 512  # records handed to the scorer at a time, and kept


def scorer_of(objectives: ObjectivesConfig, mesh: MeshConfig) -> Scorer:
    """Opens ``objectives.scorer``; ``mesh`` is what a reward model is split over."""
    return open_scorer(objectives.scorer, "recipe.objectives.scorer", mesh)


def kept(setting: Setting, records: Sequence[Record], name: str = "rows") -> list[np.ndarray]:
    """Scores many records, ``[k, M]`` each; kept in ``workdir/NAME.json``, in parts on the way."""
    from alignjax.runtime import workdirs

    objectives = setting.objectives
    scorer = scorer_of(objectives, setting.config.mesh)
    texts = json.dumps([[r.id, r.responses] for r in records])
    key = {
        "records": hashlib.sha256(texts.encode()).hexdigest(),
        "names": list(objectives.names),
        "scorer": describe(objectives.scorer),
        "digest": scorer.digest,
    }
    file, parts = (setting.workdir / f"{name}{end}" for end in (".json", ".parts.json"))
    found = workdirs.find_json(file) or {}
    if found.get("key") != key:
        found = workdirs.find_json(parts) or {}
        scores = found["scores"] if found.get("key") == key else []
        for start in range(len(scores), len(records), AT_ONCE):
            chunk = scorer.tables(records[start : start + AT_ONCE], objectives.names)
            scores += [table.tolist() for table in chunk]
            workdirs.write_json(parts, {"key": key, "scores": scores})
            fault_point("rows_scored", f"{name}-{start}")
        found = {"key": key, "scores": scores}
        workdirs.write_json(file, found)
        workdirs.remove(parts)
    m = len(objectives.names)
    return [np.array(table, np.float64).reshape(-1, m) for table in found["scores"]]
