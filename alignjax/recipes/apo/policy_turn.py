"""Trains the policy in its turn of a round: on its own samples, scored by the reward model."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.batching import Bucketed
from alignjax.data.records import DataReport, Record
from alignjax.recipes.apo import setup
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.rewards.scorers import Cuts, open_scorer, reward_model
from alignjax.runtime import artifacts, checkpoint
from alignjax.stages import adapters, evaluation, learners, sample_lists
from alignjax.stages.check import bind_score_sd
from alignjax.stages.reference import Reference, attach
from alignjax.stages.run import Run
from alignjax.training import offline
from alignjax.training.job import Feed


def train(
    game: Game,
    number: int,
    policy: Reference,
    reference: Reference,
    supervised: Reference,
    reward: RewardModel,
    learning_rate: float,
) -> Reference:
    """Trains the policy of a round.

    Args:
      number: of the round.
      policy: of the round before; samples come from it, and training starts with it.
      reference: the reference of the round.
      supervised: the policy before the first round, the base of adapters.
      reward: the round's reward model.
      learning_rate: the round's peak.
    """
    batch_size = game.config.evaluate.batch_size
    by_reward = functools.partial(reward_model, path=str(reward.folder), batch_size=batch_size)
    scorer = open_scorer(by_reward, f"round {number}", game.config)
    file, digest = setup.respond(
        game,
        number,
        "policy",
        policy,
        [()] * len(game.policy.questions),
        functools.partial(score_once, scorer.means),
        {"reward": reward.digest},
    )
    rows = open_lists(game, number, file, digest)
    own = dataclasses.replace(game.run.on(rows), config=_config(game.config, learning_rate))
    run = bind_score_sd(own)
    config = run.config
    folder = game.workdir / f"round-{number}" / "policy"
    key = {
        **game.made_of,
        "lists": rows.dataset.digest,
        "start": policy.digest,
        "reference": reference.digest,
        "config": {
            name: describe(getattr(config, name))
            for name in ("loss", "select", "baseline", "optim")
        }
        | setup.describe_adapters(config),
        "length": [config.train.steps, config.train.epochs, config.train.batch_size],
    }
    artifacts.begin(folder, key)
    summary = artifacts.reuse_json(
        folder / "summary.json",
        key,
        lambda scratch: _fit(run, number, folder, policy, reference, supervised),
    )
    load = functools.partial(setup.load_trained, config, folder, game.mesh)
    if config.lora is None:
        return Reference(load, summary["params"])
    network = functools.partial(setup.load_beside, config, supervised, load)
    return Reference(network, summary["params"], load)


def open_lists(game: Game, number: int, file: pathlib.Path, digest: str) -> Bucketed:
    """Opens the round's scored samples as rows to train on."""
    report = DataReport()
    made_of = {"lists": digest}
    rows = sample_lists.open_lists(game.run, file, report, made_of, repeats=True)
    setup.enforce_drops(game, report, f"round {number}, lists")
    return rows


def score_once(
    score: Callable[[list[Record], Cuts], list[np.ndarray]], records: list[Record], cuts: Cuts
) -> list[np.ndarray]:
    """Scores each distinct response of a record once, so that repeated ones tie exactly."""
    distinct = [tuple(dict.fromkeys(record.responses)) for record in records]
    scored = score(
        [dataclasses.replace(r, responses=y) for r, y in zip(records, distinct, strict=True)], cuts
    )
    return [
        scores[[texts.index(response) for response in record.responses]]
        for record, texts, scores in zip(records, distinct, scored, strict=True)
    ]


def _fit(
    run: Run,
    number: int,
    folder: pathlib.Path,
    start: Reference,
    reference: Reference,
    supervised: Reference,
) -> dict[str, Any]:
    """Trains on the run's rows, in a folder of the round; returns the summary."""
    config, rows = run.config, run.data.train
    name = f"round {number}: policy"
    batches = run.batches()
    ref_logps, choice, base, made_of = None, None, None, {"start": start.digest}
    if config.lora is not None:
        # The reference is the base, or the base with adapters, which the trained ones replace.
        base, made_of["base"] = reference.load(), supervised.digest
    if config.reference.mode != "none":
        base = reference.load() if base is None else base
        title = f"round {number}: reference"
        ref_logps, choice = attach(
            run, reference, title, trained_rows=batches.row_count, params=base
        )
    live = choice is not None and choice.mode == "live"
    learner = learners.policy(
        config,
        run.mesh,
        len(batches),
        load_reference=start.load,
        base=base,
        live=live,
        load_start=start.load_adapters,
    )
    network = functools.partial(adapters.whole, config, learner.ref_params)
    del base  # frees its memory, unless steps need it
    state, counts = offline.fit(
        dataclasses.replace(run, workdir=folder).job(name, reference.digest, made_of),
        learner,
        Feed(rows.dataset, batches, ref_logps),
        jax.random.fold_in(jax.random.key(config.train.seed), number),
        lambda params: evaluation.history_line(run, network(params), learner.ref_params, None),
    )
    return {
        **counts,
        "params": checkpoint.tree_digest(network(state.params)),
        "reference": None if choice is None else dataclasses.asdict(choice),
        "rows": len(rows.dataset),
        "learning_rate": config.optim.learning_rate,
    }


def _config(config: Config, learning_rate: float) -> Config:
    """Makes the config of the policy's run in a round."""
    return dataclasses.replace(
        config,
        recipe=None,
        reward_loss=None,
        optim=dataclasses.replace(config.optim, learning_rate=learning_rate),
    )
