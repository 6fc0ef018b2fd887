"""The reward model's move in a round: golden answers against the policy's samples, beside pairs."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from alignjax.config import Config
from alignjax.config.fields import describe, differences
from alignjax.data.batching import Bucketed
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.models.hf import load as hf
from alignjax.recipes import reward_model
from alignjax.recipes.apo import golden, setup
from alignjax.recipes.apo.setup import Player, Table
from alignjax.rewards import reward_models
from alignjax.runtime import artifacts, checkpoint, workdirs
from alignjax.stages import pretrained

# Of a model's config: what two may differ in and still have the same parameters.
FREE = ("path", "remat", "attention", "logits_chunk", "dtype", "param_dtype")


def given(table: Table) -> Player:
    """The reward model of ``game.reward_model``.

    Raises:
      UserError: there is none, or of another tokenizer, of another size or of several objectives.
    """
    config, game = table.config, table.config.game
    assert game is not None
    try:
        found = reward_models.find(game.reward_model)
    except UserError as error:
        raise type(error)(f"game.reward_model: {error}") from None
    where = f"game.reward_model: {found.path}"
    if found.tokenizer.digest != table.data.tokenizer.digest:
        raise UserError(
            f"{where}: wanted the policy's tokenizer {table.data.tokenizer.digest[:12]}, found "
            f"{found.tokenizer.digest[:12]}"
        )
    mine, theirs = (describe(model) for model in (config.model, found.model))
    other = [x for x in differences(mine, theirs) if not x.startswith(FREE)]
    if other:
        raise UserError(f"{where}: wanted a model of the policy's size, found {'; '.join(other)}")
    if len(found.objectives) > 1:
        raise UserError(f"{where}: wanted one objective, found {', '.join(found.objectives)}")
    target = pretrained.target(config.model, table.mesh, objectives=1)
    if (found.path / "params").is_dir():
        load: Any = functools.partial(checkpoint.load_params, found.path / "params", target)
    else:
        load = functools.partial(hf.load_params, found.path, target, found.model)
    return Player(found.path, found.digest, load)


def base(table: Table, language_model: Player) -> Player:
    """The reward model of the pairs alone: the one before the first round."""
    assert table.config.game is not None
    if table.config.game.reward_model:
        return given(table)
    rows = setup.rows(table, table.pairs, "pairs", "comparisons")
    return _fit(table, table.workdir / "base", rows, language_model, None, "reward model, base")


def move(table: Table, number: int, language_model: Player, policy: Player, last: Player) -> Player:
    """The reward model of a round.

    Args:
      number: of the round.
      language_model: what it starts from, unless the game is ``sequential``.
      policy: of the round before, whose samples it learns to score below golden answers.
      last: the reward model of the round before.
    """
    game = table.config.game
    assert game is not None
    file, digest = setup.respond(
        table,
        number,
        "reward",
        policy,
        [(answer,) for answer in table.answers],
        _golden_first,
        {"golden": True},
    )
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [
        golden.against(original, answer, [y for y in line["responses"] if y != answer])
        for original, answer, line in zip(table.reward.originals, table.answers, lines, strict=True)
    ]
    bucketed = setup.rows(
        table, [*table.pairs, *rows], digest, f"round {number}: comparisons and golden answers"
    )
    folder = table.workdir / f"round-{number}" / "reward"
    start = last if game.sequential else None
    name = f"round {number}: reward model"
    return _fit(table, folder, bucketed, language_model, start, name)


def _golden_first(records: list[Record]) -> list[np.ndarray]:
    return [(np.arange(len(record.responses)) == 0).astype(np.float64) for record in records]


def _fit(
    table: Table,
    folder: pathlib.Path,
    rows: Bucketed,
    language_model: Player,
    start: Player | None,
    name: str,
) -> Player:
    """Trains one in a folder that `scorers.reward_model` takes; what is done is skipped."""
    config = config_of(table.config)
    key = {
        "rows": rows.dataset.digest,
        "start": (start or language_model).digest,
        "config": _bound(describe(config)),
    }

    def fit() -> dict[str, Any]:
        artifacts.begin(folder, key)
        if not config.tokenizer.path:
            workdirs.copy(table.workdir / "tokenizer.model", folder / "tokenizer.model")
        workdirs.write_json(folder / "config.json", describe(config))
        held = table.data.held_out.dataset.digest
        held_out = setup.rows(table, table.held_out, held, "comparisons, held out")
        data = dataclasses.replace(table.data, train=rows, held_out=held_out)
        run = dataclasses.replace(table.run, config=config, workdir=folder, data=data)
        load_start = None if start is None else start.load
        fitted = reward_model.fit(run, language_model.network, name=name, load_start=load_start)
        return {"params": fitted.summary["reward_model"]["params"]}

    digest = workdirs.kept(folder / "record.json", key, fit)["params"]
    target = pretrained.target(config.model, table.mesh, objectives=1)
    load: Any = functools.partial(checkpoint.load_params, folder / "params", target)
    return Player(folder, digest, load)


def config_of(config: Config) -> Config:
    """The config of a reward model's run."""
    assert config.game is not None
    return dataclasses.replace(
        config,
        loss=None,
        game=None,
        sft=None,
        select=None,
        baseline=None,
        optim=config.game.optim,
        train=config.game.train,
        evaluate=dataclasses.replace(config.evaluate, judge=None, scorers=()),
    )


def _bound(description: dict[str, Any]) -> dict[str, Any]:
    """What of a config the parameters depend on."""
    train = {f.removeprefix("train.") for f in workdirs.FREE if f.startswith("train.")}
    return {
        "reward_loss": description["reward_loss"],
        "optim": description["optim"],
        "train": {k: x for k, x in description["train"].items() if k not in train},
    }
