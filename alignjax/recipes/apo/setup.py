"""Sets up a game: the split of the prompts, golden answers, and sampling from the policy."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.config.fields import describe, identity
from alignjax.data.batching import Bucketed
from alignjax.data.encode import enforce
from alignjax.data.records import DataError, DataReport, Record, check
from alignjax.data.splits import prompt_digest
from alignjax.errors import CheckpointError, UserError
from alignjax.recipes.apo import golden
from alignjax.recipes.apo.config import GameConfig
from alignjax.rewards.scorers import Cuts
from alignjax.runtime import checkpoint, stores
from alignjax.sampling.generate import Question, take_questions
from alignjax.stages import adapters, pretrained, sample_lists
from alignjax.stages.data import Prepared, rows_of, split
from alignjax.stages.reference import Reference
from alignjax.stages.run import Run
from alignjax.types import Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model at one point of the game; a policy is a `Reference`."""

    folder: pathlib.Path  # for `scorers.reward_model`
    digest: str  # of the parameters
    load: Callable[[], Params]  # loads them for training; with ``lora`` only adapters and head


@dataclasses.dataclass(frozen=True)
class Prompts:
    """One side's distinct prompts, and a record of each."""

    questions: Sequence[Question]
    originals: Sequence[Record]


@dataclasses.dataclass(frozen=True)
class Game:
    """A run with its prompts split between the two players; see `set_up`."""

    run: Run
    settings: GameConfig
    pairs: list[Record]  # human comparisons on the reward model's side
    held_out: list[Record]  # the same of held-out prompts
    reward: Prompts  # those with a golden answer
    answers: list[str]  # golden, of these prompts
    policy: Prompts

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def workdir(self) -> pathlib.Path:
        return self.run.workdir

    @property
    def data(self) -> Prepared:
        return self.run.data

    @property
    def mesh(self) -> Mesh:
        return self.run.mesh

    @property
    def made_of(self) -> dict[str, Any]:
        """The inputs of a stage of a round, except the players, as JSON data."""
        digest = hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()
        return {
            "data": self.data.train.dataset.digest,
            "tokenizer": self.data.tokenizer.digest,
            "policy_fraction": self.settings.policy_fraction,
            "seed": self.config.train.seed,
            "golden": digest,
        }


def set_up(run: Run, settings: GameConfig) -> Game:
    """Splits the prompts in two and finds the golden answers.

    Raises:
      UserError: a side has no prompts, the data are no comparisons, or too many prompts have no
        golden answer.
    """
    config, data = run.config, run.data
    train, held_out = split(config, {side: DataReport() for side in ("train", "held_out")})
    mine, others = golden.split_sides(
        train, policy_fraction=settings.policy_fraction, seed=config.train.seed
    )
    pairs = [golden.score_comparison(record) for record in mine]
    answers, _ = golden.find_answers(config.data, settings, mine)
    texts = {record.id: record for record in train}
    policy = {prompt_digest(record.prompt) for record in others}
    sides: dict[bool, list[tuple[Question, Record]]] = {True: [], False: []}
    for question in take_questions(data.train, len(data.train.dataset)):
        original = texts[data.train.dataset[question.number].id]
        digest = prompt_digest(original.prompt)
        if digest in policy or digest in answers:
            sides[digest in policy].append((question, original))
    for is_policy, name in ((False, "reward model"), (True, "policy")):
        if not sides[is_policy]:
            raise UserError(
                f"recipe.game.policy_fraction: wanted prompts for the {name}, found none"
            )
    log.info(
        "prompts: %s of the reward model, with golden answers and %s comparisons; %s of the policy",
        *(f"{len(x):,}" for x in (sides[False], pairs, sides[True])),
    )
    reward, others_questions = (
        Prompts([q for q, _ in sides[x]], [r for _, r in sides[x]]) for x in (False, True)
    )
    return Game(
        run=run,
        settings=settings,
        pairs=pairs,
        held_out=[golden.score_comparison(record) for record in held_out],
        reward=reward,
        answers=[answers[prompt_digest(r.prompt)] for r in reward.originals],
        policy=others_questions,
    )


def prepare_rows(game: Game, records: Sequence[Record], made_of: Any, name: str) -> Bucketed:
    """Prepares scored records as rows to train or to measure on.

    Args:
      made_of: JSON data that identifies the records.
      name: of the rows, for messages.

    Raises:
      UserError: too many cannot be used (``game.max_drop_fraction``).
    """
    report = DataReport(rows_in=len(records))
    rows = rows_of(
        game.config,
        game.workdir,
        check(records, report),
        game.data.tokenizer,
        report,
        {**game.made_of, "rows": name, "of": made_of},
    )
    log.info("%s:\n%s", name, report.render())
    enforce_drops(game, report, name)
    return rows


def enforce_drops(game: Game, report: DataReport, name: str) -> None:
    """Stops if more than ``game.max_drop_fraction`` of the rows were dropped."""
    field = "recipe.game.max_drop_fraction"
    try:
        enforce(report, max_drop_fraction=game.settings.max_drop_fraction, field=field)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


def make_side(
    game: Game, number: int, name: str, own: Sequence[Sequence[str]]
) -> sample_lists.Side:
    """Makes the side of a round to sample for; keeps repeated samples, because all count."""
    prompts: Prompts = getattr(game, name)
    of_round = jax.random.fold_in(jax.random.key(game.config.train.seed), number)
    return sample_lists.Side(
        name="lists",
        title=f"round {number}: sampling, {name} prompts",
        key=jax.random.fold_in(of_round, ("reward", "policy").index(name)),
        questions=prompts.questions,
        originals=prompts.originals,
        own=own,
        repeats=True,
    )


def respond(
    game: Game,
    number: int,
    name: str,
    policy: Reference,
    own: Sequence[Sequence[str]],
    score: Callable[[list[Record], Cuts], Any],
    made_of: dict[str, Any],
) -> tuple[pathlib.Path, str]:
    """Samples the policy's responses to one side's prompts into a folder of the round; resumes.

    Args:
      number: of the round.
      name: the side: ``reward`` or ``policy``.
      policy: the policy that responds.
      own: responses to put before each prompt's samples.
      score: see `sample_lists.make`.
      made_of: JSON data that identifies the scores.

    Returns:
      The file of the lists, and its digest.

    Raises:
      UserError: too many samples are empty (``game.max_empty_fraction``).
    """
    settings = game.settings
    folder = game.workdir / f"round-{number}" / f"{name}_lists"
    key = {**game.made_of, **made_of, "policy": policy.digest}
    key |= {"sampling": identity(settings.sampling), "round": number, "side": name}
    key |= {"repeats": True}  # older versions made lists without it
    side = make_side(game, number, name, own)
    record = sample_lists.make(game.run, folder, key, [side], policy.load, settings.sampling, score)
    game.run.note_cuts(f"round-{number}/{name}_lists", record.get("cuts", {}).get("lists", {}))
    counts = record["counts"]["lists"]
    log.info(
        "round %d, samples to the %s prompts: %s",
        *(number, name, ", ".join(f"{n:,} {what}" for what, n in counts.items())),
    )
    share = counts.get("empty", 0) / max(counts["sampled"], 1)
    if share > settings.max_empty_fraction:
        raise UserError(
            f"recipe.game.max_empty_fraction: round {number}: wanted at most "
            f"{settings.max_empty_fraction:.1%} empty samples, found {share:.1%} of the policy's "
            f"{counts['sampled']:,} samples to the {name} prompts"
        )
    return folder / "lists.jsonl", record["sha256"]["lists"]


def load_trained(
    config: Config, folder: pathlib.Path, mesh: Mesh, *, objectives: int = 0
) -> Params:
    """Loads the network of a finished turn, with ``lora`` its adapters.

    Args:
      config: of the turn.
      folder: of the turn.
      objectives: outputs of a reward model's head; 0: a policy.
    """
    if config.lora is None:
        target = pretrained.target(config.model, mesh, objectives=objectives)
    else:
        target = adapters.target(config.lora, config.model, mesh, objectives=objectives)
    # A large number, so that opening the folder removes no checkpoint.
    with stores.open_store(folder / "checkpoints", keep=1_000_000) as store:
        newest = stores.latest(store)
        if newest is None:
            raise CheckpointError(
                f"{folder}: wanted its last checkpoint, found none; remove the folder"
            )
        return checkpoint.restore_params(store, newest, target)


def load_beside(config: Config, supervised: Reference, load: Callable[[], Params]) -> Params:
    """Loads the supervised policy, and adds a policy's adapters to it."""
    return adapters.whole(config, supervised.load(), load())


def describe_adapters(config: Config) -> dict[str, Any]:
    """Describes adapters for the key of a turn; empty without ``lora``."""
    return {} if config.lora is None else {"lora": describe(config.lora)}
