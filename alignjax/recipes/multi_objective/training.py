"""What methods of several objectives share: scored rows, training, responding.

Everything here may be killed and called again: what is done is read back from the workdir.

    rows.json                     the scores that ``objectives.scorer`` gave the training responses
    NAME/checkpoints/             what `fit` trained under that name
    NAME.json                     what `sampling.sampled` drew
    seconds/NAME.json             the time that either took, see `cost`
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.config import Config
from alignjax.data.batching import Bucketed
from alignjax.data.encode import enforce
from alignjax.data.records import Receipt, Record
from alignjax.errors import UserError
from alignjax.models.mixture import Mixture
from alignjax.recipes.multi_objective import cost, scores
from alignjax.recipes.multi_objective.method import Rows, Setting
from alignjax.sampling import generate
from alignjax.sampling.generate import Question, Sample
from alignjax.stages.data import rows_of, split
from alignjax.types import Params

log = logging.getLogger("alignjax")


def scored_rows(setting: Setting) -> Rows:
    """Every training response with its M scores, as ``objectives.names`` orders them.

    From the data where their records have these objectives, else from ``objectives.scorer``; those
    are kept in the workdir. A response that lacks an objective is left out and counted.

    Raises:
      UserError: more of them lack one than ``objectives.max_missing_fraction``; a name that neither
        the data nor the scorer has; scores of another shape.
    """
    receipt = Receipt()
    records, _ = split(setting.config, {"train": receipt, "held_out": Receipt()})
    several = setting.objectives
    names = records[0].objectives
    if set(several.names) <= set(names):
        columns = [names.index(name) for name in several.names]
        tables = [np.array(r.scores, np.float64)[:, columns] for r in records]
    else:
        tables = scores.kept(setting, records)
    short = receipt.warned.get("removed_null_scores", 0)  # rows of which null scores were left out
    return with_scores(setting, records, tables, short=short)


def with_scores(
    setting: Setting, records: Sequence[Record], tables: Sequence[np.ndarray], *, short: int = 0
) -> Rows:
    """The responses of records with their scores; those that lack one are left out and counted.

    Args:
      records: any number.
      tables: ``[k, M]`` for each; NaN for a score that is missing.
      short: responses that were left out before, to be counted too.

    Raises:
      UserError: more of them lack one than ``objectives.max_missing_fraction``.
    """
    several = setting.objectives
    ids, prompts, responses, found = [], [], [], []
    for record, table in zip(records, tables, strict=True):
        for text, row in zip(record.responses, table, strict=True):
            if np.isnan(row).any():
                short += 1
                continue
            ids.append(record.id)
            prompts.append(record.prompt)
            responses.append(text)
            found.append(row)
    total = short + len(found)
    log.info(
        "scored rows: %s responses to %s prompts; %s lack an objective",
        *(f"{x:,}" for x in (len(found), len(set(ids)), short)),
    )
    if short > several.max_missing_fraction * total:
        raise UserError(
            f"{short} of {total} responses ({short / total:.1%}) lack one of "
            f"{', '.join(several.names)}, more than recipe.objectives.max_missing_fraction = "
            f"{several.max_missing_fraction:g} allows"
        )
    return Rows(
        tuple(ids),
        tuple(prompts),
        tuple(responses),
        np.array(found).reshape(-1, len(several.names)),
    )


def records_of(rows: Rows, picked: Sequence[int]) -> list[Record]:
    """One record of one response, without scores, for each picked row: for supervised training."""
    return [
        Record(id=f"{rows.ids[i]}-{i}", prompt=rows.prompts[i], responses=(rows.responses[i],))
        for i in picked
    ]


def prepared(setting: Setting, records: Sequence[Record], name: str) -> Bucketed:
    """Records as rows to train on, tokenised and cut as the data are.

    Args:
      records: all of one kind (scores, labels); kept in their order. Their texts are the key under
        which the rows are cached.
      name: what the rows are called in messages.

    Raises:
      UserError: no record, or too many that cannot be used (``data.max_drop_fraction``).
    """
    config, receipt = setting.config, Receipt(rows_in=len(records))
    plain = [dataclasses.asdict(dataclasses.replace(r, origin="")) for r in records]
    identity = {"records": hashlib.sha256(json.dumps(plain).encode()).hexdigest()}
    tokenizer = setting.data.tokenizer
    found = rows_of(config, setting.workdir, records, tokenizer, receipt, identity)
    log.info("%s:\n%s", name, receipt.render())
    enforce(receipt, max_drop_fraction=config.data.max_drop_fraction)
    return found


def fit(
    setting: Setting,
    name: str,
    rows: Bucketed,
    *,
    loss: Callable[..., Any] | None = None,
    select: Callable[..., Any] | None = None,
    start: Params | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    reference: bool | None = None,
) -> Params:
    """Trains in ``workdir/name`` with the config's optimizer, batches and adapters.

    Args:
      name: of the folder, the progress bar and the time; the same call under one name is skipped
        once it is done.
      rows: from `prepared`.
      loss, select: None: the config's.
      start: what training starts from, adapters where the config has ``lora``; None: the
        reference, or fresh adapters.
      steps: None: ``train.steps`` or ``train.epochs``.
      learning_rate: peak; None: ``optim.learning_rate``.
      reference: whether the loss reads log-probabilities of the reference; None: as
        ``reference.mode`` says, where "none" is no.

    Returns:
      The trained parameters: of the whole network, or adapters where the config has ``lora``.

    Raises:
      UserError: the loss does not fit the rows; or as `offline.fit`.
    """
    from alignjax.runtime import checkpoint
    from alignjax.stages import bricks, check, learners
    from alignjax.stages import reference as references
    from alignjax.training import offline
    from alignjax.training.job import Feed

    config = stage(setting.config, loss=loss, select=select, steps=steps, rate=learning_rate)
    if reference is not None:
        mode = config.reference.mode
        mode = "none" if not reference else "auto" if mode == "none" else mode
        config = dataclasses.replace(
            config, reference=dataclasses.replace(config.reference, mode=mode)
        )
    check.check_losses(config, rows)
    run = setting.training(name, config, rows)
    begins = "reference" if start is None else checkpoint.tree_digest(start)
    batches = bricks.run_batches(config, rows)
    base = setting.load_reference() if config.lora is not None else None
    ref_logps, choice = references.attach(
        dataclasses.replace(run, workdir=setting.workdir),
        references.Reference(setting.load_reference, setting.digest),
        f"reference, {name}",
        trained_rows=batches.row_count,
        params=base,
    )
    live = choice.mode == "live"
    if live and base is None:
        base = setting.load_reference()
    load_start = None
    if start is not None:  # the loop takes its buffers; the caller keeps its own
        load_start = functools.partial(jax.tree.map, jnp.copy, start)
    state, _ = offline.fit(
        bricks.make_job(name, run, setting.digest, {"start": begins}),
        learners.policy(
            config,
            setting.mesh,
            len(batches),
            load_reference=setting.load_reference,
            base=base,
            live=live,
            load_start=load_start,
        ),
        Feed(rows.dataset, batches, ref_logps),
        jax.random.key(config.train.seed),
    )
    cost.note_steps(setting, name)
    return state.params


def stage(
    config: Config,
    *,
    loss: Callable[..., Any] | None = None,
    select: Callable[..., Any] | None = None,
    steps: int | None = None,
    rate: float | None = None,
) -> Config:
    """The config of one training inside a method: none of the stages before it."""
    optim, train = config.optim, config.train
    if rate is not None:
        optim = dataclasses.replace(optim, learning_rate=rate)
    if steps is not None:
        train = dataclasses.replace(train, steps=steps)
    return dataclasses.replace(
        config,
        loss=loss or config.loss,
        select=select or config.select,
        optim=optim,
        train=train,
        sft=None,
        recipe=None,
    )


def network(setting: Setting, params: Params) -> Params:
    """The whole network of what `fit` returned: itself, or the reference with these adapters.

    A mixture of whole networks is left as it is.
    """
    from alignjax.stages import adapters

    if isinstance(params, Mixture) or "embed" in params:
        return params
    return adapters.whole(setting.config, setting.load_reference(), params)


def respond_with(setting: Setting, params: Params) -> Callable[[Sequence[Question]], list[Sample]]:
    """Sampling from trained parameters, as ``evaluate`` says.

    Args:
      params: of a whole network, adapters of `fit`, or a mixture of whole networks.
    """
    config = setting.config

    def respond(asked: Sequence[Question]) -> list[Sample]:
        return generate.respond(
            network(setting, params),
            None,
            asked,
            model=config.model,
            tokenizer=setting.data.tokenizer,
            settings=config.evaluate,
            key=jax.random.key(config.train.seed),
            mesh=setting.mesh,
            title="  sampling",
        )

    return respond
