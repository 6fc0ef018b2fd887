"""The policy's move in a round: its samples, scored by the reward model, and what they teach."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.batching import Bucketed
from alignjax.data.records import Receipt
from alignjax.recipes.apo import setup
from alignjax.recipes.apo.setup import Player, Table
from alignjax.rewards.scorers import open_scorer, reward_model
from alignjax.runtime import artifacts, checkpoint, workdirs
from alignjax.stages import bricks, evaluation, learners, pretrained, referenced, sample_lists
from alignjax.training import offline
from alignjax.training.job import Feed
from alignjax.types import Params


def move(table: Table, number: int, policy: Player, supervised: Player, reward: Player) -> Player:
    """The policy of a round.

    Args:
      number: of the round.
      policy: of the round before; it is sampled, and goes on.
      supervised: the reference, where ``game.reference`` says so; else that is ``policy``.
      reward: the round's reward model.
    """
    game = table.config.game
    assert game is not None
    batch_size = table.config.evaluate.batch_size
    by_reward = functools.partial(reward_model, path=str(reward.folder), batch_size=batch_size)
    scorer = open_scorer(by_reward, f"round {number}", table.config.mesh)
    file, digest = setup.respond(
        table,
        number,
        "policy",
        policy,
        [()] * len(table.policy.asked),
        scorer.means,
        {"reward": reward.digest},
    )
    receipt = Receipt()
    rows = sample_lists.opened(table.run, file, receipt, {"lists": digest})
    setup.refuse_drops(table, receipt, f"round {number}, lists")
    reference = supervised if game.reference == "supervised" else policy
    config = _config(table.config, number)
    folder = table.workdir / f"round-{number}" / "policy"
    key = {
        **table.made_of,
        "lists": rows.dataset.digest,
        "start": policy.digest,
        "reference": reference.digest,
        "config": {
            name: describe(getattr(config, name))
            for name in ("loss", "select", "baseline", "optim")
        },
        "length": [config.train.steps, config.train.epochs, config.train.batch_size],
    }
    told = workdirs.kept(
        folder / "summary.json",
        key,
        lambda: _fit(table, config, number, folder, rows, policy, reference, key),
    )
    load = functools.partial(stored, config, folder, table)
    return Player(folder, told["params"], load)


def stored(config: Config, folder: pathlib.Path, table: Table) -> Params:
    """The parameters that a finished move ended with."""
    steps = int(workdirs.read_json(folder / "summary.json")["steps"])
    target = pretrained.target(config.model, table.mesh)
    with checkpoint.open_store(folder / "checkpoints", keep=1_000_000) as store:
        return checkpoint.restore_params(store, steps, target)


def _fit(
    table: Table,
    config: Config,
    number: int,
    folder: pathlib.Path,
    rows: Bucketed,
    start: Player,
    reference: Player,
    key: dict[str, Any],
) -> dict[str, Any]:
    artifacts.begin(folder, key)
    run = dataclasses.replace(table.run.on(rows), config=config)
    name = f"round {number}: policy"
    batches = bricks.run_batches(config, rows)
    ref_logps, choice, base = None, None, None
    if config.reference.mode != "none":
        base = reference.load()
        title = f"round {number}: reference"
        ref_logps, choice = referenced.attach(
            run, base, reference.digest, title, trained_rows=batches.row_count
        )
    live = choice is not None and choice.mode == "live"
    learner = learners.policy(
        config, run.mesh, len(batches), load_reference=start.load, base=base, live=live
    )
    del base  # unless steps are given it, its memory is free from here on
    state, counts = offline.fit(
        bricks.make_job(
            name,
            dataclasses.replace(run, workdir=folder),
            reference.digest,
            {"start": start.digest},
        ),
        learner,
        Feed(rows.dataset, batches, ref_logps),
        jax.random.fold_in(jax.random.key(config.train.seed), number),
        lambda params: evaluation.during(run, params, learner.ref_params, None),
    )
    return {
        **counts,
        "params": checkpoint.tree_digest(state.params),
        "reference": None if choice is None else dataclasses.asdict(choice),
        "rows": len(rows.dataset),
        "learning_rate": config.optim.learning_rate,
    }


def _config(config: Config, number: int) -> Config:
    """The config of the policy's run in a round."""
    game = config.game
    assert game is not None
    rates = game.learning_rates or (config.optim.learning_rate,)
    rate = rates[min(number, len(rates)) - 1]
    return dataclasses.replace(
        config,
        reward_loss=None,
        game=None,
        optim=dataclasses.replace(config.optim, learning_rate=rate),
    )
