"""Scores of responses by ``objectives.scorer``: M numbers each, in the order of the names."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.config import MeshConfig
from alignjax.config.fields import describe
from alignjax.data.records import Record
from alignjax.recipes.multi_objective import ObjectivesConfig
from alignjax.recipes.multi_objective.method import Setting
from alignjax.rewards.scorers import Scorer, open_scorer
from alignjax.runtime import artifacts

AT_ONCE = 512  # records handed to the scorer at a time, and kept


def scorer_of(objectives: ObjectivesConfig, mesh: MeshConfig) -> Scorer:
    """Opens ``objectives.scorer``; ``mesh`` is what a reward model is split over."""
    return open_scorer(objectives.scorer, "recipe.objectives.scorer", mesh)


def kept(setting: Setting, records: Sequence[Record], name: str = "rows") -> list[np.ndarray]:
    """Scores many records, ``[k, M]`` each; kept in ``workdir/NAME.json``, in parts on the way."""
    objectives = setting.objectives
    scorer = scorer_of(objectives, setting.config.mesh)
    texts = json.dumps([[r.id, r.responses] for r in records])
    key = {
        "records": hashlib.sha256(texts.encode()).hexdigest(),
        "names": list(objectives.names),
        "scorer": describe(objectives.scorer),
        "digest": scorer.digest,
    }

    def score(chunk: Sequence[Record]) -> list[list[list[float]]]:
        return [table.tolist() for table in scorer.tables(chunk, objectives.names)]

    def make(scratch: pathlib.Path) -> dict[str, Any]:
        tables = []
        for start in range(0, len(records), AT_ONCE):
            chunk = functools.partial(score, records[start : start + AT_ONCE])
            tables += artifacts.part(scratch, f"scores-{start:06d}", chunk)
        return {"scores": tables}

    tables = artifacts.reuse_json(setting.workdir / f"{name}.json", key, make)["scores"]
    return [np.array(table, np.float64).reshape(-1, len(objectives.names)) for table in tables]
