"""Splits the game's prompts between the players, and finds golden answers.

The reward model's side uses golden answers and human comparisons; the policy's side uses only the
prompts.
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

OBJECTIVE = "preferred"  # name of the scores of the reward model's rows


def split_sides(
    records: Sequence[Record], *, policy_fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Splits records into the reward model's and the policy's; no prompt is on both sides.

    The split is independent of that of the held-out prompts, and depends on the run's seed.

    Raises:
      UserError: the policy has no prompt.
    """
    reward, policy = split_by_prompt(records, seed=seed + 2**31, eval_fraction=policy_fraction)
    if not policy:
        raise UserError(
            f"recipe.game.policy_fraction: wanted prompts for the policy, found none with "
            f"{policy_fraction} of {len(records)} training rows"
        )
    return reward, policy


def find_answers(
    data: DataConfig, settings: GameConfig, records: Sequence[Record]
) -> tuple[dict[str, str], DataReport]:
    """Finds golden answers to the prompts of these records.

    Args:
      data: of the run.
      settings: its ``golden`` is their source; None: the records themselves.
      records: of the reward model's side.

    Returns:
      The answer by `prompt_digest`, from the first golden row of the prompt; and a report of the
      prompts, in which those without an answer are dropped as ``no_golden_answer``.

    Raises:
      UserError: the source cannot be read, or too many prompts have no answer
        (``game.max_missing_fraction``).
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
            "recipe.game.golden_path: wanted none without a game.golden to read it (such as "
            f"golden=sources.auto), found {settings.golden_path!r}"
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
    """Explains missing golden answers if one source has texts as prompts, the other messages."""
    forms = {isinstance(record.prompt, str) for record in golden}
    other = [record for record in missing if isinstance(record.prompt, str) not in forms]
    if not golden or not other:
        return ""
    mine, theirs = (
        ("text", "messages") if isinstance(other[0].prompt, str) else ("messages", "text")
    )
    return (
        f"; wanted the same form of prompts in data.source and recipe.game.golden, found {mine} "
        f"({len(other)} of these prompts) and {theirs}: use messages for models with a chat "
        "template, such as partial(sources.hh, chat=True)"
    )


def preferred_response(record: Record) -> str | None:
    """Returns a record's preferred response: its only one, the chosen one, or the best scored.

    Of labelled responses it is the first desirable one; None if there is none.
    """
    if record.desirable:
        good = (y for y, label in zip(record.responses, record.desirable, strict=True) if label)
        return next(good, None)
    if not record.scores:
        return record.responses[0]
    best = max(range(len(record.responses)), key=lambda i: sum(record.scores[i]))
    return record.responses[best]


def score_comparison(record: Record) -> Record:
    """Turns a human comparison into a scored list: 1 for the chosen response and 0 for the others.

    Raises:
      UserError: the record is no comparison, or has several objectives.
    """
    where = record.origin or record.id
    if len(record.objectives) > 1:
        names = ", ".join(record.objectives)
        raise UserError(f"{where}: wanted one objective for a game, found {names}")
    if record.desirable or len(record.responses) < 2:
        kind = "labels" if record.desirable else "one response"
        raise UserError(
            f"{where}: wanted pairs or scored lists for a game's reward model, found {kind}"
        )
    scores = record.scores
    if not scores:
        scores = ((1.0,), *((0.0,),) * (len(record.responses) - 1))
    return dataclasses.replace(record, scores=scores, objectives=(OBJECTIVE,))


def adversarial_row(record: Record, answer: str, samples: Sequence[str]) -> Record:
    """Makes an adversarial row: the golden answer with score 1, a policy's samples with score 0.

    Args:
      record: any record of the prompt.
      answer: the golden answer.
      samples: all of them, also repeated ones and those equal to the golden answer. Without these
        the pairs would not be independent draws from both distributions, and the golden
        distribution would not be a fixed point of the game.
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
