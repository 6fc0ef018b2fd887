"""MODPO: one policy (or one adapter) for each preference, trained on pairs of one objective.

What it writes into the workdir: ``modpo-00/`` and so on, one per preference, as `training.fit`
leaves them.
"""

import functools
import itertools
import logging
from collections.abc import Sequence

import numpy as np

from alignjax.config.fields import keywords, name_of, plain
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.losses import modpo
from alignjax.recipes.multi_objective import training
from alignjax.recipes.multi_objective.method import Preference, Respond, Rows, Setting, normalised
from alignjax.sampling.generate import Question, Sample
from alignjax.types import Params

log = logging.getLogger("alignjax")


def train(
    setting: Setting, *, main: int | None = None, log_odds: float = 1.0, noisy: bool = False
) -> Respond:
    """Trains for every preference of the config, one after the other, from the same reference.

    A step draws one pair of every list in its batch (`modpo.select`). Scores become rewards in
    log-odds: an objective's deviation over the training responses is ``log_odds`` of them, so that
    weights weigh objectives of like size.

    Args:
      setting: the config's ``loss`` is `modpo.loss`, its ``preference`` and ``main`` left open.
      main: the objective that orders the pairs. None, and wherever its weight is 0, which the loss
        divides by: the objective of the largest weight, the first one if several are.
      log_odds: what one standard deviation of an objective is worth in comparisons; > 0.
      noisy: see `modpo.select`.

    Raises:
      UserError: the loss takes no preference, a keyword is out of its range, no prompt has two
        responses, an objective has one value; or as `training.fit`.

    Differs from the authors' code: there the pairs of one objective are data of their own and the
    margins a reward model's; here all are scores of one list.
    """
    loss = setting.config.loss
    assert loss is not None  # a config with objectives trains policies
    if "preference" not in keywords(plain(loss)):
        raise UserError(f"loss: wanted modpo.loss with this method, found {name_of(loss)}")
    names = setting.objectives.names
    if main is not None and not 0 <= main < len(names):
        raise UserError(
            f"recipe.objectives.method.main: wanted 0 to {len(names) - 1}, found {main}"
        )
    if not 0 < log_odds < np.inf:
        raise UserError(
            f"recipe.objectives.method.log_odds: wanted a positive number, found {log_odds}"
        )
    records = lists(setting, training.scored_rows(setting), log_odds)
    rows = training.prepared(setting, records, "modpo rows")
    folders = {
        normalised(weights): f"modpo-{i:02d}"
        for i, weights in enumerate(setting.objectives.preferences)
    }

    def policy(preference: Preference) -> Params:
        order = ordering(preference, main)
        return training.fit(
            setting,
            folders[preference],
            rows,
            loss=functools.partial(loss, preference=preference, main=order),
            select=functools.partial(modpo.select, main=order, noisy=noisy),
        )

    for preference in folders:
        order = ordering(preference, main)
        tied = sum(len({s[order] for s in record.scores}) < 2 for record in records)
        log.info(
            "preference %s: pairs ordered by %s (%s of %s prompts have none)",
            ", ".join(f"{w:.2f}" for w in preference),
            *(names[order], f"{tied:,}", f"{len(records):,}"),
        )
        policy(preference)

    def respond(preference: Preference, asked: Sequence[Question]) -> list[Sample]:
        if preference not in folders:
            raise UserError(f"preference: wanted one of the config's, found {preference}")
        return training.respond_with(setting, policy(preference))(asked)

    return respond


def ordering(preference: Preference, main: int | None) -> int:
    """The objective that orders the pairs: ``main``, or the one of the largest weight.

    >>> ordering((0.3, 0.7), None), ordering((0.3, 0.7), 0), ordering((0.0, 1.0), 0)
    (1, 0, 1)
    """
    if main is not None and preference[main] > 0:
        return main
    return int(np.argmax(preference))


def lists(setting: Setting, rows: Rows, log_odds: float) -> list[Record]:
    """One record per prompt of the data, with M rewards in log-odds for each of its responses.

    Raises:
      UserError: an objective has one value everywhere, or no prompt has two responses.
    """
    names = setting.objectives.names
    deviation = rows.scores.std(axis=0)
    for name, values in zip(names, rows.scores.T, strict=True):
        if values.max() == values.min():
            raise UserError(
                f"recipe.objectives.names: {name} has one value, {values[0]}, in all {len(values)} "
                "rows, and orders no pair: leave it out"
            )
    rewards = rows.scores * (log_odds / deviation)
    found, single = [], 0
    for id, group in itertools.groupby(range(len(rows.ids)), key=lambda i: rows.ids[i]):
        picked = list(group)
        if len(picked) < 2:
            single += 1
            continue
        found.append(
            Record(
                id=id,
                prompt=rows.prompts[picked[0]],
                responses=tuple(rows.responses[i] for i in picked),
                scores=tuple(tuple(rewards[i].tolist()) for i in picked),
                objectives=names,
            )
        )
    log.info("modpo: %s lists; %s prompts have one response", f"{len(found):,}", f"{single:,}")
    if not found:
        raise UserError(f"data: wanted prompts with two responses or more, found {single} with one")
    return found
