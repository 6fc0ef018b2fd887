"""Scores responses for several objectives, and prepares rows that methods train on."""

import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.batching import Bucketed
from alignjax.data.encode import enforce
from alignjax.data.records import DataReport, Record
from alignjax.errors import UserError
from alignjax.recipes.multi_objective import ObjectivesConfig
from alignjax.recipes.multi_objective.method import Rows, Setting
from alignjax.rewards.scorers import Cuts, Scorer, open_scorer
from alignjax.stages.data import rows_of, split

log = logging.getLogger("alignjax")

AT_ONCE = 512  # records that the scorer gets at a time; their scores are saved together


def objectives_scorer(objectives: ObjectivesConfig, config: Config) -> Scorer:
    """Opens ``objectives.scorer`` for a run."""
    return open_scorer(objectives.scorer, "recipe.objectives.scorer", config)


def score_records(setting: Setting, records: Sequence[Record], name: str) -> list[np.ndarray]:
    """Scores records, and saves the scores in ``workdir/NAME.json``.

    Returns:
      For each record ``[k, M]`` float64; NaN where the scorer has no score.
    """
    from alignjax.runtime import artifacts

    objectives = setting.objectives
    scorer = objectives_scorer(objectives, setting.run.config)
    texts = json.dumps([[r.id, r.responses] for r in records])
    key = {
        "records": hashlib.sha256(texts.encode()).hexdigest(),
        "names": list(objectives.names),
        "scorer": describe(objectives.scorer),
        "digest": scorer.digest,
    }

    def score(chunk: Sequence[Record]) -> dict[str, Any]:
        cuts: Cuts = Counter()
        tables = scorer.tables(chunk, objectives.names, cuts)
        return {"scores": [table.tolist() for table in tables], "cuts": cuts}

    def score_all(scratch: pathlib.Path) -> dict[str, Any]:
        tables: list[Any] = []
        cuts: Cuts = Counter()
        for start in range(0, len(records), AT_ONCE):
            chunk = functools.partial(score, records[start : start + AT_ONCE])
            part = artifacts.part(scratch, f"scored-{start:06d}", chunk)
            tables += part["scores"]
            cuts.update(part["cuts"])
        return {"scores": tables, "cuts": cuts}

    found = artifacts.reuse_json(setting.run.workdir / f"{name}.json", key, score_all)
    setting.run.note_cuts(name, found.get("cuts", {}))
    tables = found["scores"]
    return [np.array(table, np.float64).reshape(-1, len(objectives.names)) for table in tables]


def scored_rows(setting: Setting) -> Rows:
    """Reads every training response with its M scores, in the order of ``objectives.names``.

    The scores are the data's if the records have these objectives, otherwise those of
    ``objectives.scorer``. Responses that lack an objective are left out and counted.

    Raises:
      UserError: too many lack one (``objectives.max_missing_fraction``), neither the data nor the
        scorer has a name, or scores have another shape.
    """
    report = DataReport()
    records, _ = split(setting.run.config, {"train": report, "held_out": DataReport()})
    names, present = setting.objectives.names, records[0].objectives
    if set(names) <= set(present):
        columns = [present.index(name) for name in names]
        tables = [np.array(r.scores, np.float64)[:, columns] for r in records]
    else:
        tables = score_records(setting, records, "rows")
    # Responses with a null score, which reading the data has left out, lack an objective too.
    left_out = report.warned.get("removed_null_scores", 0)
    return join_scores(setting.objectives, records, tables, left_out=left_out)


def join_scores(
    objectives: ObjectivesConfig,
    records: Sequence[Record],
    tables: Sequence[np.ndarray],
    *,
    left_out: int = 0,
) -> Rows:
    """Joins the responses of records with their scores, without those that lack an objective.

    Args:
      records: any number.
      tables: ``[k, M]`` for each; NaN for a missing score.
      left_out: responses that were left out before, which count too.

    Raises:
      UserError: too many lack an objective (``objectives.max_missing_fraction``).
    """
    rows = [
        (record.id, record.prompt, text, scores)
        for record, table in zip(records, tables, strict=True)
        for text, scores in zip(record.responses, table, strict=True)
    ]
    total = left_out + len(rows)
    rows = [row for row in rows if not np.isnan(row[3]).any()]
    lacking = total - len(rows)
    log.info(
        "scored rows: %s responses to %s prompts; %s lack an objective",
        *(f"{x:,}" for x in (len(rows), len({id for id, *_ in rows}), lacking)),
    )
    if lacking > objectives.max_missing_fraction * total:
        raise UserError(
            f"{lacking} of {total} responses ({lacking / total:.1%}) lack one of "
            f"{', '.join(objectives.names)}, more than recipe.objectives.max_missing_fraction = "
            f"{objectives.max_missing_fraction:g} allows"
        )
    return Rows(
        tuple(id for id, *_ in rows),
        tuple(prompt for _, prompt, *_ in rows),
        tuple(text for _, _, text, _ in rows),
        np.array([scores for *_, scores in rows]).reshape(-1, len(objectives.names)),
    )


def single_records(rows: Rows, chosen: Sequence[int]) -> list[Record]:
    """Makes a record of each chosen response, without scores, for supervised training."""
    return [
        Record(id=f"{rows.ids[i]}-{i}", prompt=rows.prompts[i], responses=(rows.responses[i],))
        for i in chosen
    ]


def prepare_rows(setting: Setting, records: Sequence[Record], name: str) -> Bucketed:
    """Tokenises and cuts records to train on, in the same way as the data.

    Args:
      records: all of one kind (scores, labels). Their content is the key of the cached rows.
      name: of the rows, in messages.

    Raises:
      UserError: there are no records, or too many cannot be used (``data.max_drop_fraction``).
    """
    run, report = setting.run, DataReport(rows_in=len(records))
    plain = [dataclasses.asdict(dataclasses.replace(r, origin="")) for r in records]
    identity = {"records": hashlib.sha256(json.dumps(plain).encode()).hexdigest()}
    rows = rows_of(run.config, run.workdir, records, run.data.tokenizer, report, identity)
    log.info("%s:\n%s", name, report.render())
    enforce(report, max_drop_fraction=run.config.data.max_drop_fraction)
    return rows
