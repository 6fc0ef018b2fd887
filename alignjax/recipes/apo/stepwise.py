"""A game step by step: policy and reward model in turns inside one loop, on fresh samples.

As `apo.rounds`, with the same prompts, golden answers and measures, but every turn samples from the
policy as it is at that turn (`training.on_policy_game`). Read it downwards: `run` is the order of
events. What is written into the workdir, besides what `recipes.align` writes of config, data and
the supervised stage:

    base/                                the reward model of the pairs alone; the loop's goes on
    metrics.jsonl  checkpoints/          the loop: turns of both players
    policy/  reward/  players.json       what it ended with; `score` takes reward
    round-0/  round-1/                   what was measured before the loop and after it
    history.json  summary.json           what came of it
    report.png

Of the config, ``train`` and ``optim`` are the policy's: its steps are counted in its own turns, and
so is its learning rate. Of ``game.train`` the batch size is read: a turn of the reward model has so
many golden answers against samples, and as many comparisons. ``reward_steps=0`` is the control: the
reward model of the pairs alone stays as it is. The reference is the supervised
policy, which stays: the loop settles between it and the golden answers, see docs/papers/apo.md.
"""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.batching import Batches, Bucketed, bucket, deal_batches, shuffled
from alignjax.data.records import Record
from alignjax.errors import UserError
from alignjax.recipes.apo import measure as round_measures
from alignjax.recipes.apo import reward_turn, rounds, setup
from alignjax.recipes.apo.setup import Player, Table
from alignjax.recipes.run import open_run
from alignjax.runtime import checkpoint, workdirs
from alignjax.runtime.faults import fault_point
from alignjax.stages import bricks, evaluation, fresh_samples, learners, pretrained
from alignjax.training import on_policy_game
from alignjax.training.game import Cycle
from alignjax.training.job import Feed
from alignjax.training.on_policy_game import Opponent
from alignjax.types import GameState, Params

log = logging.getLogger("alignjax")


def run(
    config: Config, workdir: str | pathlib.Path, *, allow_config_change: bool = False
) -> dict[str, Any]:
    """Plays the game; started again, continues.

    Args:
      config: what to do; its ``game`` has ``policy_steps`` above 0.
      workdir: the run's folder.
      allow_config_change: continue although the config differs from the one the run began with.

    Returns:
      What ``summary.json`` holds.

    Raises:
      UserError: see `alignjax.errors` for the kinds and their exit codes.
    """
    _refuse_unread(config)
    with open_run(config, workdir, allow_config_change) as run:
        table = setup.lay(run)
        if config.game is not None and config.game.reward_model:
            reward_turn.given(table)  # refused, if it has to be, before anything is trained
        reference = bricks.supervised(run)
        supervised = Player(run.workdir / "sft", reference.digest, reference.load)
        base = reward_turn.base(table, supervised)
        policy, reward, counts = _play(table, supervised, base)
        measure = functools.partial(
            round_measures.measure, table, base=base, before=supervised, supervised=supervised
        )
        history = [
            measure(0, policy=supervised, reward=base),
            measure(1, policy=policy, reward=reward),
        ]
        workdirs.write_json(run.workdir / "history.json", history)
        columns = ["before", f"after {counts['steps']} turns"]
        return rounds.report_game(table, history, columns, reward.folder, counts)


def _refuse_unread(config: Config) -> None:
    """What a game in rounds reads and this one would not."""
    settings = config.game
    assert settings is not None
    for ok, field, wanted in (
        (settings.reference == "supervised", "reference", "supervised: it stays during the loop"),
        (settings.adversarial, "adversarial", "True; see reward_loss.sample_weight=0"),
        (not settings.sequential, "sequential", "False: the reward model goes on in any case"),
        (not settings.learning_rates, "learning_rates", "none: see optim.learning_rate"),
    ):
        if not ok:
            raise UserError(
                f"game.{field}: with policy_steps above 0, one loop, wanted {wanted}; found "
                f"{getattr(settings, field)!r}"
            )
    if config.reference.mode not in ("auto", "live"):  # fresh samples are in no cache
        raise UserError(
            "reference.mode: wanted auto or live for a game in one loop, found "
            f"{config.reference.mode!r}"
        )


def _play(table: Table, supervised: Player, base: Player) -> tuple[Player, Player, dict[str, int]]:
    """The loop; what it ended with is saved, and read back when all of it is there."""
    config, workdir, data = table.config, table.workdir, table.data
    settings = config.game
    assert settings is not None
    policy_config = dataclasses.replace(config, game=None, reward_loss=None, sft=None)
    run = dataclasses.replace(table.run, config=policy_config)
    learner, asking = fresh_samples.asking(
        policy_config,
        table.mesh,
        table.policy.asked,
        data.tokenizer,
        supervised.load,
        sampling=settings.sampling,
        steps=fresh_samples.steps_of(config, table.policy.asked),
        max_empty_fraction=settings.max_empty_fraction,
    )
    opponent = _opponent(table, base, turns=len(asking.batches))
    made_of = {
        **table.made_of,
        "reward_model": base.digest,
        "golden_rows": opponent.golden.dataset.digest,
        "pairs": opponent.pairs.dataset.digest,
    }
    job = bricks.make_job("game", run, supervised.digest, made_of)

    def during(state: GameState) -> dict[str, float]:
        return evaluation.during(run, state.policy.params, learner.ref_params, None)

    key = jax.random.key(config.train.seed)
    state, counts = on_policy_game.play(job, learner, asking, opponent, key, during)
    ended = {
        "policy": checkpoint.tree_digest(state.policy.params),
        "reward": checkpoint.tree_digest(state.reward.params),
    }
    record = workdir / "players.json"
    if workdirs.find_json(record) != ended:
        checkpoint.save_params(workdir / "policy", state.policy.params)
        _save_reward_model(table, workdir / "reward", state.reward.params, ended["reward"])
        fault_point("params", "")
        workdirs.write_json(record, ended)
    del state
    load_policy = functools.partial(
        checkpoint.load_params, workdir / "policy", pretrained.target(config.model, table.mesh)
    )
    load_reward = functools.partial(
        checkpoint.load_params,
        workdir / "reward" / "params",
        pretrained.target(config.model, table.mesh, objectives=1),
    )
    return (
        Player(workdir / "policy", ended["policy"], load_policy),
        Player(workdir / "reward", ended["reward"], load_reward),
        counts,
    )


def _opponent(table: Table, base: Player, *, turns: int) -> Opponent:
    """The reward model's side of the loop, which has so many turns of the policy."""
    config, settings = table.config, table.config.game
    assert settings is not None
    cycle = Cycle(reward_steps=settings.reward_steps, policy_steps=settings.policy_steps)
    steps = cycle.turns_until(turns) - turns
    answers = [
        Record(id=f"golden:{r.id}", prompt=r.prompt, responses=(answer,), domain=r.domain)
        for r, answer in zip(table.reward.originals, table.answers, strict=True)
    ]
    golden = _one_shape(table, setup.rows(table, answers, "golden", "golden answers"))
    pairs = _one_shape(table, setup.rows(table, table.pairs, "pairs", "comparisons"))
    learner = learners.reward_model(
        reward_turn.config_of(config), table.mesh, steps, load_start=base.load
    )
    return Opponent(
        learner=learner,
        golden=Feed(golden.dataset, _batches(config, golden, steps, stream=1)),
        pairs=Feed(pairs.dataset, _batches(config, pairs, steps, stream=2)),
        cycle=cycle,
    )


def _one_shape(table: Table, rows: Bucketed) -> Bucketed:
    """Golden rows and pairs go into one batch: with several shapes each, all would meet all."""
    return bucket(rows.dataset, count=1, multiple=table.config.data.pad_multiple)


def _batches(config: Config, rows: Bucketed, steps: int, *, stream: int) -> Batches:
    """Deals one batch of rows for each turn of the reward model; it may have none."""
    assert config.game is not None
    b = config.game.train.batch_size
    if not steps:
        return Batches(rows.shapes, np.zeros(0, np.int32), np.zeros((0, b), np.int64))
    return deal_batches(
        rows.shapes,
        rows.assignment,
        batch_size=b,
        order=shuffled(len(rows.dataset), config.train.seed + stream),
        batches=steps,
    )


def _save_reward_model(table: Table, folder: pathlib.Path, params: Params, digest: str) -> None:
    """A folder that `scorers.reward_model` takes."""
    config = reward_turn.config_of(table.config)
    workdirs.write_json(folder / "config.json", describe(config))
    checkpoint.save_params(folder / "params", params)
    if not config.tokenizer.path:
        workdirs.copy(table.workdir / "tokenizer.model", folder / "tokenizer.model")
    said = {"objectives": [], "tokenizer": table.data.tokenizer.digest, "params": digest}
    workdirs.write_json(folder / "summary.json", {"reward_model": said})
