"""MODPO: one policy (or one adapter) for each preference, trained on pairs of one objective.

It writes ``modpo-00/`` and so on into the workdir, one per preference, see `training`.
"""

import functools
import itertools
import logging
from collections.abc import Sequence

import numpy as np

from alignjax.commands.policies import TRAINED, Network, Policies, Preference
from alignjax.config.fields import keywords, name_of, plain
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.losses import modpo
from alignjax.recipes.multi_objective import ObjectivesConfig, rows, training
from alignjax.recipes.multi_objective.method import Rows, Setting
from alignjax.types import Loss

log = logging.getLogger("alignjax")


def train(
    setting: Setting, *, main: int | None = None, log_odds: float = 1.0, noisy: bool = False
) -> Policies:
    """Trains for every preference of the config, one after the other, from the same reference.

    A step draws one pair of every list in its batch (`modpo.select`). Scores become rewards in
    log-odds: one standard deviation of an objective over the training responses is ``log_odds``, so
    that weights compare objectives of the same size.

    Args:
      setting: the config's ``loss`` is `modpo.loss`, its ``preference`` and ``main`` left open.
      main: the objective that orders the pairs. If it is None, or its weight is 0, which the loss
        divides by: the objective of the largest weight, the first of several.
      log_odds: of one standard deviation of an objective; > 0.
      noisy: see `modpo.select`.

    Raises:
      UserError: the loss takes no preference, a keyword is out of its range, no prompt has two
        responses, an objective has one value; or as `training.fit`.

    Differs from the authors' code: there the pairs of one objective are data of their own and the
    margins a reward model's; here all are scores of one list.
    """
    loss = setting.run.config.loss
    assert loss is not None  # a config with objectives trains policies
    _check(loss, len(setting.objectives.names), main, log_odds)
    records = make_lists(setting.objectives, rows.scored_rows(setting), log_odds)
    lists = rows.prepare_rows(setting, records, "modpo rows")
    networks = []
    for i, preference in enumerate(setting.preferences):
        name, order = f"modpo-{i:02d}", ordering(preference, main)
        _log_order(setting, preference, order, records)
        config = training.stage_config(
            setting.run.config,
            loss=functools.partial(loss, preference=preference, main=order),
            select=functools.partial(modpo.select, main=order, noisy=noisy),
        )
        training.fit(setting, name, lists, config)
        networks.append(Network(preference, name))
    return setting.policies(TRAINED, networks)


def _check(loss: Loss, count: int, main: int | None, log_odds: float) -> None:
    if "preference" not in keywords(plain(loss)):
        raise UserError(f"loss: wanted modpo.loss with this method, found {name_of(loss)}")
    if main is not None and not 0 <= main < count:
        raise UserError(f"recipe.objectives.method.main: wanted 0 to {count - 1}, found {main}")
    if not 0 < log_odds < np.inf:
        raise UserError(
            f"recipe.objectives.method.log_odds: wanted a positive number, found {log_odds}"
        )


def _log_order(
    setting: Setting, preference: Preference, order: int, records: Sequence[Record]
) -> None:
    """Logs which objective orders the pairs, and how many prompts have no pair by it."""
    tied = sum(len({scores[order] for scores in record.scores}) < 2 for record in records)
    log.info(
        "preference %s: pairs ordered by %s (%s of %s prompts have none)",
        ", ".join(f"{w:.2f}" for w in preference),
        *(setting.objectives.names[order], f"{tied:,}", f"{len(records):,}"),
    )


def ordering(preference: Preference, main: int | None) -> int:
    """Chooses the objective that orders the pairs: ``main``, or the one of the largest weight.

    >>> ordering((0.3, 0.7), None), ordering((0.3, 0.7), 0), ordering((0.0, 1.0), 0)
    (1, 0, 1)
    """
    if main is not None and preference[main] > 0:
        return main
    return int(np.argmax(preference))


def make_lists(objectives: ObjectivesConfig, scored: Rows, log_odds: float) -> list[Record]:
    """Makes a record of each prompt of the data, with M rewards in log-odds for each response.

    Raises:
      UserError: an objective has one value everywhere, or no prompt has two responses.
    """
    for name, values in zip(objectives.names, scored.scores.T, strict=True):
        if values.max() == values.min():
            raise UserError(
                f"recipe.objectives.names: {name} has one value, {values[0]}, in all {len(values)} "
                "rows, and orders no pair: leave it out"
            )
    rewards = scored.scores * (log_odds / scored.scores.std(axis=0))
    records, single = [], 0
    for id, group in itertools.groupby(range(len(scored.ids)), key=lambda i: scored.ids[i]):
        own = list(group)
        if len(own) < 2:
            single += 1
            continue
        records.append(
            Record(
                id=id,
                prompt=scored.prompts[own[0]],
                responses=tuple(scored.responses[i] for i in own),
                scores=tuple(tuple(rewards[i].tolist()) for i in own),
                objectives=objectives.names,
            )
        )
    log.info("modpo: %s lists; %s prompts have one response", f"{len(records):,}", f"{single:,}")
    if not records:
        raise UserError(f"data: wanted prompts with two responses or more, found {single} with one")
    return records
