"""The game's prompts, split between the players, and the golden answer to each.

The training prompts are split in two. The reward model's side has golden answers and humans'
comparisons; on the policy's side nothing but the prompts is used.
"""

import dataclasses
import logging
from collections.abc import Sequence

from alignjax.config import DataConfig
from alignjax.data.encode import enforce
from alignjax.data.records import DataError, DataReport, Record
from alignjax.data.splits import prompt_digest, split_by_prompt
from alignjax.errors import UserError
from alignjax.recipes.apo.config import GameConfig
from alignjax.stages.data import read_records

log = logging.getLogger("alignjax")

OBJECTIVE = "preferred"  # what the scores of the reward model's rows are called


def split_sides(
    records: Sequence[Record], *, policy_fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Splits records into the reward model's and the policy's; no prompt is on both sides.

    The split is another one than that of the held-out prompts, and depends on the run's seed.

    Raises:
      UserError: one of the sides has no prompt.
    """
    reward, policy = split_by_prompt(records, seed=seed + 2**31, eval_fraction=policy_fraction)
    if not policy:
        raise UserError(
            f"recipe.game.policy_fraction: {policy_fraction} of {len(records)} training rows "
            "leaves the policy no prompt"
        )
    return reward, policy


def find_answers(
    data: DataConfig, settings: GameConfig, records: Sequence[Record]
) -> tuple[dict[str, str], DataReport]:
    """Finds golden answers to the prompts of these records.

    Args:
      data: of the run.
      game: its ``golden`` is where they come from; None: from the records themselves.
      records: of the reward model's side.

    Returns:
      The answer by `prompt_digest`, of the first golden row of the prompt; and a report of the
      prompts: those without an answer are dropped from it as ``no_golden_answer``.

    Raises:
      UserError: the source cannot be read, or more prompts than ``game.max_missing_fraction`` have
        no answer.
    """
    rows = list(records)
    if settings.golden is not None:
        rows = read_records(
            dataclasses.replace(data, source=settings.golden),
            settings.golden_path,
            DataReport(),
            "recipe.game.golden_path",
        )
    elif settings.golden_path:
        raise UserError(
            "recipe.game.golden_path: no game.golden to read it (e.g. golden=sources.auto), found "
            f"{settings.golden_path!r}"
        )
    best: dict[str, str] = {}
    for record in rows:
        answer = preferred_response(record)
        if answer is not None:
            best.setdefault(prompt_digest(record.prompt), answer)
    report, answers = DataReport(), {}
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(prompt_digest(record.prompt), record)
    for digest, record in first.items():
        report.rows_in += 1
        if digest in best:
            report.kept += 1
            answers[digest] = best[digest]
        else:
            report.drop("no_golden_answer", record.id)
    log.info("golden answers:\n%s", report.render())
    try:
        enforce(
            report,
            max_drop_fraction=settings.max_missing_fraction,
            field="recipe.game.max_missing_fraction",
        )
    except DataError as error:
        missing = [record for digest, record in first.items() if digest not in answers]
        raise DataError(f"{error}{_other_form(missing, rows)}") from None
    return answers, report


def _other_form(missing: Sequence[Record], golden: Sequence[Record]) -> str:
    """Explains missing golden answers if one source has texts and the other messages."""
    forms = {isinstance(record.prompt, str) for record in golden}
    other = [record for record in missing if isinstance(record.prompt, str) not in forms]
    if not golden or not other:
        return ""
    mine, theirs = (
        ("text", "messages") if isinstance(other[0].prompt, str) else ("messages", "text")
    )
    return (
        f"; the prompts of {len(other)} of them are {mine} (data.source) and those of the golden "
        f"answers {theirs} (recipe.game.golden), so none is the same: wanted one form for both, "
        "messages for models with a chat template, e.g. partial(sources.hh, chat=True)"
    )


def preferred_response(record: Record) -> str | None:
    """Finds the response that a record prefers: its only one, the chosen one, or the best scored.

    None where its labels say that none is desirable.
    """
    if record.desirable:
        good = (y for y, label in zip(record.responses, record.desirable, strict=True) if label)
        return next(good, None)
    if not record.scores:
        return record.responses[0]
    best = max(range(len(record.responses)), key=lambda i: sum(record.scores[i]))
    return record.responses[best]


def score_comparison(record: Record) -> Record:
    """Turns a human's comparison into a scored list: 1 for the chosen response and 0 for the other.

    Raises:
      UserError: the record is no comparison, or has several objectives.
    """
    where = record.origin or record.id
    if len(record.objectives) > 1:
        raise UserError(f"{where}: a game has one objective, found {', '.join(record.objectives)}")
    if record.desirable or len(record.responses) < 2:
        raise UserError(f"{where}: a game's reward model needs pairs or scored lists")
    scores = record.scores
    if not scores:
        scores = ((1.0,), *((0.0,),) * (len(record.responses) - 1))
    return dataclasses.replace(record, scores=scores, objectives=(OBJECTIVE,))


def adversarial_row(record: Record, answer: str, samples: Sequence[str]) -> Record:
    """Makes an adversarial row: the golden answer, of score 1, and a policy's samples, of score 0.

    Args:
      record: any of the prompt's.
      answer: golden.
      samples: all of them, those that repeat or equal the golden answer as well. Pairs are of
        independent draws of both: without these the policy's distribution would be another, and the
        golden one no fixed point.
    """
    return Record(
        id=f"adversarial:{record.id}",
        prompt=record.prompt,
        responses=(answer, *samples),
        scores=((1.0,), *((0.0,),) * len(samples)),
        objectives=(OBJECTIVE,),
        adversarial=True,
        repeats=True,
        domain=record.domain,
    )
