"""Trains the reward model in its turn of a round: on golden answers against samples, and pairs."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from alignjax.config import Config
from alignjax.config.fields import describe, differences, identity
from alignjax.data.batching import Bucketed
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.models.hf import load as hf
from alignjax.recipes import reward_model
from alignjax.recipes.apo import golden, setup
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.rewards import reward_models
from alignjax.rewards.scorers import Cuts
from alignjax.runtime import artifacts, checkpoint, storage, stores
from alignjax.stages import pretrained
from alignjax.stages.reference import Reference

DTYPES = ("dtype", "param_dtype")  # fields of a model that do not change its shapes


def find_finished(game: Game) -> RewardModel:
    """Finds the reward model of ``game.reward_model``.

    Raises:
      UserError: there is none, or it has another tokenizer, another size or several objectives.
    """
    config, settings = game.config, game.settings
    try:
        model = reward_models.find(settings.reward_model)
    except UserError as error:
        raise type(error)(f"recipe.game.reward_model: {error}") from None
    where = f"recipe.game.reward_model: {model.path}"
    if model.tokenizer.digest != game.data.tokenizer.digest:
        raise UserError(
            f"{where}: wanted the policy's tokenizer {game.data.tokenizer.digest[:12]}, found "
            f"{model.tokenizer.digest[:12]}"
        )
    wanted, present = (identity(x) for x in (config.model, model.model))
    other = [x for x in differences(wanted, present) if not x.startswith(DTYPES)]
    if other:
        raise UserError(f"{where}: wanted a model of the policy's size, found {'; '.join(other)}")
    if len(model.objectives) > 1:
        raise UserError(f"{where}: wanted one objective, found {', '.join(model.objectives)}")
    target = pretrained.target(config.model, game.mesh, objectives=1)
    if (model.path / "params").is_dir():
        load: Any = functools.partial(checkpoint.load_params, model.path / "params", target)
    else:
        load = functools.partial(hf.load_params, model.path, target, model.model)
    return RewardModel(model.path, model.digest, load)


def train_base(game: Game, language_model: Reference) -> RewardModel:
    """Trains the reward model on pairs only, before the first round."""
    if game.settings.reward_model:
        return find_finished(game)
    rows = setup.prepare_rows(game, game.pairs, "pairs", "comparisons")
    return _fit(game, game.workdir / "base", rows, language_model, None, "reward model, base")


def train(
    game: Game, number: int, language_model: Reference, policy: Reference, start: RewardModel | None
) -> RewardModel:
    """Trains the reward model of a round.

    Args:
      number: of the round.
      language_model: the network that it starts from if ``start`` is None.
      policy: of the round before; its samples should score below golden answers.
      start: an initial reward model.
    """
    file, digest = setup.respond(
        game,
        number,
        "reward",
        policy,
        [(answer,) for answer in game.answers],
        _golden_first,
        {"golden": True},
    )
    rows = [*game.pairs, *adversarial_rows(game, file)]
    bucketed = setup.prepare_rows(
        game, rows, digest, f"round {number}: comparisons and golden answers"
    )
    folder = game.workdir / f"round-{number}" / "reward"
    name = f"round {number}: reward model"
    return _fit(game, folder, bucketed, language_model, start, name)


def adversarial_rows(game: Game, file: pathlib.Path) -> list[Record]:
    """Makes an adversarial row from each of the reward model's lists, golden answers first."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        golden.adversarial_row(original, answer, line["responses"][1:])
        for original, answer, line in zip(game.reward.originals, game.answers, lines, strict=True)
    ]


def _golden_first(records: list[Record], cuts: Cuts) -> list[np.ndarray]:
    del cuts  # no reward model scores them
    return [(np.arange(len(record.responses)) == 0).astype(np.float64) for record in records]


def _fit(
    game: Game,
    folder: pathlib.Path,
    rows: Bucketed,
    language_model: Reference,
    start: RewardModel | None,
    name: str,
) -> RewardModel:
    """Trains a reward model in a folder for `scorers.reward_model`, unless it exists."""
    config = config_of(game)
    key = {
        "rows": rows.dataset.digest,
        "start": (start or language_model).digest,
        "config": {
            "reward_loss": describe(config.reward_loss),
            "optim": describe(config.optim),
            "train": identity(config.train),
            **setup.describe_adapters(config),
        },
    }

    def fit(scratch: pathlib.Path) -> dict[str, Any]:
        del scratch  # a killed training resumes from its checkpoints
        if not config.tokenizer.path:
            storage.copy(game.workdir / "tokenizer.model", folder / "tokenizer.model")
        storage.keep_json(folder / "config.json", describe(config))
        held = game.data.held_out.dataset.digest
        held_out = setup.prepare_rows(game, game.held_out, held, "comparisons, held out")
        data = dataclasses.replace(game.data, train=rows, held_out=held_out)
        run = dataclasses.replace(game.run, config=config, workdir=folder, data=data)
        load_start = None if start is None else start.load
        fitted = reward_model.fit(run, language_model.load, name=name, load_start=load_start)
        return {"params": fitted.summary["reward_model"]["params"]}

    artifacts.begin(folder, key)
    digest = artifacts.reuse_json(folder / "record.json", key, fit)["params"]
    if config.lora is not None:
        return RewardModel(
            folder,
            digest,
            functools.partial(setup.load_trained, config, folder, game.mesh, objectives=1),
        )
    stores.drop_state(folder / "checkpoints")  # the parameters are also in params/
    target = pretrained.target(config.model, game.mesh, objectives=1)
    load: Any = functools.partial(checkpoint.load_params, folder / "params", target)
    return RewardModel(folder, digest, load)


def config_of(game: Game) -> Config:
    """Makes the config of a reward model's training."""
    config = game.config
    return dataclasses.replace(
        config,
        recipe=None,
        loss=None,
        sft=None,
        select=None,
        baseline=None,
        optim=game.settings.optim,
        train=game.settings.train,
        evaluate=dataclasses.replace(config.evaluate, judge=None, scorers=()),
    )
