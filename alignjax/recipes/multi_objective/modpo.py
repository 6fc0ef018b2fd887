"""Trains MODPO: a policy (or adapters) for each preference, on pairs ordered by one objective.

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
from alignjax.recipes.multi_objective.method import Rows, Setting, require
from alignjax.types import Loss

log = logging.getLogger("alignjax")


def train(
    setting: Setting, *, main: int | None = None, log_odds: float = 1.0, noisy: bool = False
) -> Policies:
    """Trains a policy for every preference of the config, each from the same reference.

    A step draws one pair of every list in its batch (`modpo.select`). Scores are scaled to rewards
    in log-odds: the standard deviation of each objective over the training responses becomes
    ``log_odds``, so that weights mean the same for all objectives.

    Args:
      setting: the config's ``loss`` is `modpo.loss` without ``preference`` and ``main``.
      main: the objective that orders the pairs. If it is None, or its weight, which the loss
        divides by, is 0: the first objective of the largest weight.
      log_odds: standard deviation of an objective in log-odds; > 0.
      noisy: see `modpo.select`.

    Raises:
      UserError: the loss takes no preference, a keyword is out of its range, no prompt has two
        responses, an objective has only one value; or as `training.fit`.

    Differs from the authors' code: there pairs come from a data set of one objective and margins
    from a reward model; here both come from the scores of a list.
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
    require(main is None or 0 <= main < count, "main", f"0 to {count - 1}", main)
    require(0 < log_odds < np.inf, "log_odds", "a positive number", log_odds)


def _log_order(
    setting: Setting, preference: Preference, order: int, records: Sequence[Record]
) -> None:
    """Logs which objective orders the pairs, and for how many prompts it orders none."""
    tied = sum(len({scores[order] for scores in record.scores}) < 2 for record in records)
    log.info(
        "preference %s: pairs ordered by %s (%s of %s prompts have none)",
        ", ".join(f"{w:.2f}" for w in preference),
        *(setting.objectives.names[order], f"{tied:,}", f"{len(records):,}"),
    )


def ordering(preference: Preference, main: int | None) -> int:
    """Chooses the objective that orders the pairs: ``main``, or the one with the largest weight.

    >>> ordering((0.3, 0.7), None), ordering((0.3, 0.7), 0), ordering((0.0, 1.0), 0)
    (1, 0, 1)
    """
    if main is not None and preference[main] > 0:
        return main
    return int(np.argmax(preference))


def make_lists(objectives: ObjectivesConfig, scored: Rows, log_odds: float) -> list[Record]:
    """Makes a record of each prompt of the data, with M rewards in log-odds for each response.

    Raises:
      UserError: an objective has only one value, or no prompt has two responses.
    """
    for name, values in zip(objectives.names, scored.scores.T, strict=True):
        if values.max() == values.min():
            raise UserError(
                f"recipe.objectives.names: wanted objectives that order pairs, found {name}, which "
                f"has one value, {values[0]}, in all {len(values)} rows: leave it out"
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
