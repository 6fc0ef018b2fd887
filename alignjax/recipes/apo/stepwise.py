"""Plays a game step by step: policy and reward model in turns inside one loop, on new samples.

Prompts, golden answers and measurements are those of `apo.rounds`, but every turn samples from the
current policy (`training.on_policy_game`). `run` has the events in order. They write into the
workdir, besides the files of `recipes.align` for config, data and the supervised stage:

    base/                                the reward model of pairs only, which the loop starts with
    metrics.jsonl  checkpoints/          the loop: turns of both players
    policy/  reward/  players.json       the trained players; `score` takes reward
    round-0/  round-1/                   measurements before and after the loop
    history.json  summary.json           the results
    .artifacts/                          digests of what is reused, unfinished parts
    report.png  report.html

The config's ``train`` and ``optim`` are the policy's; its steps and learning rate count only its
own turns. The batch size of ``game.train`` is the number of golden answers, and of comparisons, in
a turn of the reward model. ``reward_steps=0`` is the control: the reward model of pairs only does
not change. The reference is always the supervised policy, and the loop converges between it and the
golden answers, see docs/papers/apo.md.
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
from alignjax.models import lora, reward_head
from alignjax.recipes.apo import reward_turn, setup
from alignjax.recipes.apo.config import StepsConfig
from alignjax.recipes.apo.game import open_game, report_game
from alignjax.recipes.apo.measure import Players, measure
from alignjax.recipes.apo.setup import Game, RewardModel
from alignjax.runtime import checkpoint, storage
from alignjax.stages import adapters, evaluation, fresh_samples, learners, pretrained
from alignjax.stages.reference import Reference
from alignjax.training import on_policy_game
from alignjax.training.game import Cycle
from alignjax.training.job import Feed
from alignjax.training.on_policy_game import Opponent
from alignjax.types import GameState, Params

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str | pathlib.Path,
    settings: StepsConfig,
    allow_config_change: bool = False,
) -> dict[str, Any]:
    """Plays the game; see `alignjax.recipes.run_config`."""
    with open_game(config, workdir, settings, allow_config_change) as (game, supervised, base):
        policy, reward, counts = _play(game, settings, supervised, base)
        first = Players(supervised, supervised, base, base, supervised)
        last = dataclasses.replace(first, policy=policy, reward=reward)
        history = [measure(game, number, who) for number, who in enumerate((first, last))]
        storage.keep_json(game.workdir / "history.json", history)
        columns = ["before", f"after {counts['steps']} turns"]
        return report_game(game, history, columns, reward.folder, counts)


def _play(
    game: Game, settings: StepsConfig, supervised: Reference, base: RewardModel
) -> tuple[Reference, RewardModel, dict[str, int]]:
    """Plays the loop; returns the trained policy and reward model, and counts."""
    config = dataclasses.replace(game.config, recipe=None, reward_loss=None, sft=None)
    run = dataclasses.replace(game.run, config=config)
    learner, prompts = fresh_samples.make_policy(
        config,
        game.mesh,
        game.policy.questions,
        game.data.tokenizer,
        supervised.load,
        sampling=settings.sampling,
        steps=fresh_samples.steps_of(config, game.policy.questions),
        max_empty_fraction=settings.max_empty_fraction,
    )
    opponent = _opponent(game, settings, base, learner.ref_params, turns=len(prompts.batches))
    made_of = {
        **game.made_of,
        "reward_model": base.digest,
        "golden_rows": opponent.golden.dataset.digest,
        "pairs": opponent.pairs.dataset.digest,
    }
    job = run.job("game", supervised.digest, made_of, extendable=True)

    def during(state: GameState) -> dict[str, float]:
        policy = adapters.whole(config, learner.ref_params, state.policy.params)
        return evaluation.history_line(run, policy, learner.ref_params, None)

    key = jax.random.key(config.train.seed)
    state, counts = on_policy_game.play(job, learner, prompts, opponent, key, during)
    made = {"steps": counts["steps"], "identity": job.identity}
    return *_keep(game, state, supervised, learner.ref_params, made), counts


def _keep(
    game: Game,
    state: GameState,
    supervised: Reference,
    base: Params | None,
    made: dict[str, Any],
) -> tuple[Reference, RewardModel]:
    """Saves both players, unless it was done; returns them as loaders.

    Args:
      supervised: the base of the policy's adapters, to load it later.
      base: the same on the mesh, for both players' adapters; the reward model is merged into it,
        and its adapters and head are saved as a checkpoint.
      made: the job's identity and steps.
    """
    policy, reward = game.workdir / "policy", game.workdir / "reward"
    config, trained = game.config, state.reward.params
    digests = {"policy": pretrained.keep_params(policy, state.policy.params)}
    load, target = checkpoint.load_params, pretrained.target(config.model, game.mesh)
    load_policy = functools.partial(load, policy, target)
    if config.lora is not None:
        assert base is not None
        network = adapters.whole(config, base, state.policy.params)
        digests["policy"] = checkpoint.tree_digest(network)
        thin = adapters.target(config.lora, config.model, game.mesh)
        load_thin = functools.partial(load, policy, thin)
        load_policy = functools.partial(setup.load_beside, config, supervised, load_thin)
        record = {"identity": made["identity"], "holds": "parameters"}
        checkpoint.save_final(reward / "checkpoints", made["steps"], trained, record)
        trained = lora.merge(reward_head.from_language_model(base), trained, config.lora)
    digests["reward"] = pretrained.keep_params(reward / "params", trained)
    _describe_reward_model(game, reward, digests["reward"], made)
    storage.keep_json(game.workdir / "players.json", digests)
    rewards = pretrained.target(config.model, game.mesh, objectives=1)
    return (
        Reference(load_policy, digests["policy"]),
        RewardModel(reward, digests["reward"], functools.partial(load, reward / "params", rewards)),
    )


def _opponent(
    game: Game, settings: StepsConfig, start: RewardModel, base: Params | None, *, turns: int
) -> Opponent:
    """Makes the reward model's side of a loop.

    Args:
      start: the initial reward model.
      base: of both players' adapters.
      turns: number of the policy's turns.
    """
    cycle = Cycle(reward_steps=settings.reward_steps, policy_steps=settings.policy_steps)
    steps = cycle.turns_until(turns) - turns
    answers = [
        Record(id=f"golden:{r.id}", prompt=r.prompt, responses=(answer,), domain=r.domain)
        for r, answer in zip(game.reward.originals, game.answers, strict=True)
    ]
    golden = _one_shape(game, setup.prepare_rows(game, answers, "golden", "golden answers"))
    pairs = _one_shape(game, setup.prepare_rows(game, game.pairs, "pairs", "comparisons"))
    learner = learners.reward_model(
        reward_turn.config_of(game), game.mesh, steps, load_start=start.load, base=base
    )
    return Opponent(
        learner=learner,
        golden=Feed(golden.dataset, _batches(game, golden, steps, stream=1)),
        pairs=Feed(pairs.dataset, _batches(game, pairs, steps, stream=2)),
        cycle=cycle,
    )


def _one_shape(game: Game, rows: Bucketed) -> Bucketed:
    """Pads rows to one shape, because golden rows and pairs of any shape can share a batch."""
    return bucket(rows.dataset, count=1, multiple=game.config.data.pad_multiple)


def _batches(game: Game, rows: Bucketed, steps: int, *, stream: int) -> Batches:
    """Deals one batch of rows for each turn of the reward model, of which there may be none."""
    b = game.settings.train.batch_size
    if not steps:
        return Batches(rows.shapes, np.zeros(0, np.int32), np.zeros((0, b), np.int64))
    return deal_batches(
        rows.shapes,
        rows.assignment,
        batch_size=b,
        order=shuffled(len(rows.dataset), game.config.train.seed + stream),
        batches=steps,
    )


def _describe_reward_model(
    game: Game, folder: pathlib.Path, digest: str, made: dict[str, Any]
) -> None:
    """Writes the files that `scorers.reward_model` and ``export`` need beside the parameters."""
    config = reward_turn.config_of(game)
    storage.keep_json(folder / "config.json", describe(config))
    if not config.tokenizer.path:
        storage.copy(game.workdir / "tokenizer.model", folder / "tokenizer.model")
    described = {"objectives": [], "tokenizer": game.data.tokenizer.digest, "params": digest}
    storage.keep_json(folder / "summary.json", {"reward_model": described, **made})
