"""Samples and scores lists of responses, between supervised fine-tuning and alignment.

It writes into the workdir:

    candidates/train.jsonl  held_out.jsonl    lists that `data.sources.lists` reads
    candidates/record.json                    their key, digests and counts

Responses are sampled from the supervised policy; the randomness depends only on the seed and the
prompt. A killed stage continues with its current batch. Losses that rank a list need different
responses (docs/papers/hps.md), so repeats are removed and counted.
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax

from alignjax.config import CandidatesConfig, Config
from alignjax.config.fields import identity
from alignjax.data.batching import Bucketed
from alignjax.data.encode import enforce
from alignjax.data.records import DataReport, Record
from alignjax.rewards.scorers import digests, mean_scores, open_scorers
from alignjax.runtime import checkpoint
from alignjax.sampling.generate import take_questions
from alignjax.stages import sample_lists
from alignjax.stages.data import Prepared, kept_counts, split
from alignjax.stages.run import Run
from alignjax.types import Params

log = logging.getLogger("alignjax")

SIDES = ("train", "held_out")


def make(run: Run, load_policy: Callable[[], Params]) -> Run:
    """Makes the lists if the config has ``candidates`` and they do not exist; opens them.

    Args:
      run: its training and held-out prompts get responses.
      load_policy: loads the supervised policy, which responds.

    Returns:
      The run with the lists as training and held-out rows; `Prepared.originals` is unchanged.
      Without ``candidates``, the run unchanged.

    Raises:
      UserError: a scorer returns scores that are not finite, or too many prompts have no list
        (``candidates.max_drop_fraction``).
    """
    config, data, settings = run.config, run.data, run.config.candidates
    if settings is None:
        return run
    folder = run.workdir / "candidates"
    scorers = open_scorers(settings.scorers, "candidates.scorers", config)
    key = {
        "policy": checkpoint.tree_digest(load_policy()),
        "data": {"train": data.train.dataset.digest, "held_out": data.held_out.dataset.digest},
        "tokenizer": data.tokenizer.digest,
        "seed": config.train.seed,
        # This limit does not change the lists: it may be raised after a refusal.
        "candidates": identity(dataclasses.replace(settings, max_drop_fraction=0.0)),
        "reward_models": digests(scorers),
    }
    record = sample_lists.make(
        run,
        folder,
        key,
        sides(config, settings, data),
        load_policy,
        settings,
        lambda records, cuts: mean_scores(scorers, records, cuts),
    )
    return _open(run, settings, record)


def sides(config: Config, settings: CandidatesConfig, data: Prepared) -> list[sample_lists.Side]:
    """Lists the prompts of training and held-out rows, with the random key of each side."""
    train, held_out = split(config, {side: DataReport() for side in SIDES})
    texts = {record.id: record for record in (*train, *held_out)}
    return [
        _side(name, rows, texts, keep_own=settings.keep_own, seed=config.train.seed)
        for name, rows in zip(SIDES, (data.train, data.held_out), strict=True)
    ]


def _side(
    name: str, rows: Bucketed, texts: dict[str, Record], *, keep_own: bool, seed: int
) -> sample_lists.Side:
    own: dict[str, list[str]] = {}
    if keep_own:
        for row in range(len(rows.dataset)):
            example = rows.dataset[row]
            own.setdefault(example.prompt, []).extend(texts[example.id].responses)
    questions = take_questions(rows, len(rows.dataset))
    return sample_lists.Side(
        name=name,
        title=f"candidates, {name.replace('_', ' ')}",
        key=jax.random.fold_in(jax.random.key(seed), 1 + SIDES.index(name)),
        questions=questions,
        originals=[texts[rows.dataset[q.number].id] for q in questions],
        own=[own.get(q.prompt, []) for q in questions],
    )


def _open(run: Run, settings: CandidatesConfig, record: dict[str, Any]) -> Run:
    """Prepares the lists like other data; adds them to the data report."""
    sides, reports = {}, {}
    for side in SIDES:
        report = DataReport()
        sides[side] = sample_lists.open_lists(
            run,
            run.workdir / "candidates" / f"{side}.jsonl",
            report,
            {"candidates": record["sha256"][side], "side": side},
        )
        counts = record["counts"][side]
        listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        log.info("candidates, %s: %s\n%s", side.replace("_", " "), listed, report.render())
        reports[side] = {**report.as_dict(), **kept_counts(sides[side]), "responses": counts}
        enforce(
            report,
            max_drop_fraction=settings.max_drop_fraction,
            field="candidates.max_drop_fraction",
        )
    report_of_all = {**run.data.report, "candidates": reports}
    run.add_to_report("candidates", reports)
    for side, cuts in record.get("cuts", {}).items():  # missing in earlier versions
        run.note_cuts(f"candidates/{side}", cuts)
    data = dataclasses.replace(
        run.data, train=sides["train"], held_out=sides["held_out"], report=report_of_all
    )
    return dataclasses.replace(run, data=data)
