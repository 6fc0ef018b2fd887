"""Builds the programs of a run from shapes, with the functions that a run calls.

No data or weights are read: the model's shape is in the config, or in the model's config.json.
Instead of the data there are rows of the maximum length; the kind of rows that the loss takes
(pairs, labels, scored lists) is found by trying each.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.config.fields import keywords
from alignjax.config.validate import get
from alignjax.data.batching import Batches, Bucketed, assemble
from alignjax.errors import UserError
from alignjax.models import logps
from alignjax.planning import resolved
from alignjax.planning.measure import bytes_per_device, forward_flops
from alignjax.planning.rows import everywhere, on_mesh, two_rows
from alignjax.recipes.apo.config import StepsConfig
from alignjax.recipes.multi_objective.method import AtOnce
from alignjax.runtime import sharding
from alignjax.sampling.decode import sample
from alignjax.stages import fresh_samples, learners, pretrained, reference, sft
from alignjax.stages.check import bind_fraction, check_losses, count_responses, keeps_cache
from alignjax.training import microbatches, offline, on_policy, on_policy_game
from alignjax.training.job import Learner
from alignjax.training.on_policy import Prompts
from alignjax.training.schedules import resolve
from alignjax.types import Batch, Params, TrainState

PARTS = ("step", "sft", "reward", "score", "sample")
_NO_BATCHES = Batches((), np.zeros(0, np.int32), np.zeros((0, 1), np.int64))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A function that a run compiles, its arguments, and facts that need no compiler."""

    name: str
    function: Any  # of jax.jit
    args: tuple[Any, ...]
    static: dict[str, Any]
    tokens: int  # of a call; a prompt counts once
    model_flops: float  # of a call, without recomputation, over all devices
    parts: int  # number of parts that a step splits its batch into
    holds: dict[str, int]  # bytes per device of its arguments, by kind
    reference: str = ""  # how steps score the reference, and why


def make(config: Config, mesh: Mesh, part: str, responses: int = 0) -> Program:
    """Builds a program of a run: its function, and its arguments as shapes on a mesh.

    Args:
      config: of the run.
      mesh: of the devices to compile for.
      part: one of `PARTS`; step is that of the policy, or of the reward model if the config trains
        no policy; reward is the reward model's step in a game.
      responses: per prompt, in the data; 0: 2, or 1 with labels.

    Raises:
      UserError: the run has no such part, or its loss takes no kind of rows.
    """
    if part in ("score", "sample"):
        return _inference(config, mesh, part, responses)
    if part != "sft" and isinstance(get(config, "recipe.game"), StepsConfig):
        return _turn(config, mesh, part, responses)
    made = make_learner(config, mesh, part, responses)
    of, learner, batch, scored = made.config, made.learner, made.batch, made.scored
    networks, key = _networks(config, part), jax.random.key(0)
    if networks > 1:
        batch = _side_by_side(batch, networks, mesh)
        key = jax.random.split(key, networks)
    _, state, step = offline.make_step(learner, mesh, key)
    (b, p), r = batch.prompt.shape, batch.response.shape[2]
    # A backward pass costs two forward passes, or one where frozen weights need no gradient.
    live = of.reward_loss is None and part != "sft" and batch.ref_logps is None
    passes = (3 if of.lora is None else 2) + (live and of.reference.mode != "none")
    # A reward model has one output instead of the vocabulary.
    counted = of.model
    if of.reward_loss is not None:
        counted = dataclasses.replace(of.model, vocab_size=1)
    names = {"sft": "the supervised step", "reward": "the reward model's step"}
    return Program(
        name=names.get(part, "the step") + (f" of {networks} networks" if networks > 1 else ""),
        function=step,
        args=(state, learner.ref_params, batch),
        static={},
        tokens=b * (p + scored * r),
        model_flops=passes * forward_flops(counted, b, scored, p, r),
        parts=_parts(learner, batch, networks),
        holds=_holds(state, learner),
        reference="" if made.choice is None else made.choice.text,
    )


def _turn(config: Config, mesh: Mesh, part: str, responses: int) -> Program:
    """Builds the turn of a player in a game in one loop, with both players and one base."""
    game: StepsConfig = get(config, "recipe.game")
    mine, its = _part_of(config, "step"), _part_of(config, "reward")
    base, steps, k = _frozen_params(config, mesh), 2, game.sampling.samples
    learner = learners.policy(mine, mesh, steps, load_reference=_nothing, base=base, live=True)
    opponent = learners.reward_model(its, mesh, steps, load_start=_nothing, base=base)
    prompts = Prompts(
        questions=(), batches=_NO_BATCHES, sample=_no_samples, eos=(1,), max_empty_fraction=0.5
    )
    _, state, *programs = on_policy_game.make_steps(
        mesh, learner, opponent, prompts, jax.random.key(0), []
    )
    is_policy = part == "step"
    b = (mine if is_policy else its).train.batch_size
    drawn, r = _drawn(config, b, k, mesh), game.sampling.max_new_tokens
    nats = on_mesh(np.zeros((b, k), np.float32), mesh)
    p = drawn.prompt.shape[1]
    rewards = dataclasses.replace(config.model, vocab_size=1)  # of a reward model's forward pass
    frozen = 3 if config.lora is None else 2  # see `make`
    if is_policy:
        args: tuple[Any, ...] = (state, base, drawn, nats)
        tokens = b * (p + k * r)
        flops = (frozen + 1) * forward_flops(mine.model, b, k, p, r)
        flops += forward_flops(rewards, b, k, p, r)
    else:
        golden, pairs = (_of_width(config, b, n, mesh) for n in (1, responses or 2))
        width = golden.response.shape[2]
        args = (state, opponent.ref_params, golden, drawn, nats, pairs)
        tokens = b * (2 * p + k * r + (1 + (responses or 2)) * width)
        flops = frozen * forward_flops(rewards, 2 * b, max(1 + k, responses or 2), p, width)
    players = state.policy, state.reward
    return Program(
        name=f"the {'policy' if is_policy else 'reward model'}'s turn of a game in one loop",
        function=programs[not is_policy],
        args=args,
        static={},
        tokens=tokens,
        model_flops=flops,
        parts=_parts(learner if is_policy else opponent, drawn, 1),
        holds={
            "params of both players": sum(bytes_per_device(x.params) for x in players),
            "optimizer of both": sum(bytes_per_device(x.opt_state) for x in players),
            "frozen params": bytes_per_device(args[1]),
        },
    )


def _parts(learner: Learner, batch: Batch, networks: int) -> int:
    """Counts the parts of a step of padded rows, after its draw of responses."""
    update = learner.update

    def step(batch: Batch) -> Batch:
        if networks > 1:
            batch = jax.tree.map(lambda x: x[0], microbatches.split(batch, networks))
        if update.select is None:
            return batch
        return resolve(update.select, jnp.int32(0), update.steps)(jax.random.key(0), batch)

    parts: list[int] = []
    jax.eval_shape(lambda b: parts.append(update.rooms.equal_parts(step(b))), batch)
    return parts[0]


def _no_samples(*args: Any) -> Any:
    raise AssertionError("a turn is compiled from shapes; nothing is sampled")


def _of_width(config: Config, b: int, k: int, mesh: Mesh) -> Batch:
    """Describes b rows of k responses of the maximum length, on the mesh."""
    rows = two_rows(config, k)
    return on_mesh(assemble(rows.dataset, np.arange(b) % 2, rows.shapes[0]), mesh)


def _drawn(config: Config, b: int, k: int, mesh: Mesh) -> Batch:
    """Describes b rows with k samples each."""
    r = get(config, "recipe.game").sampling.max_new_tokens
    rows = _of_width(config, b, k, mesh)
    return dataclasses.replace(rows, response=on_mesh(np.zeros((b, k, r), np.int32), mesh))


def _networks(config: Config, part: str) -> int:
    """Counts the networks that one program trains, for several preferences: `stacked.fit_each`."""
    several = get(config, "recipe.objectives")
    if several is None or part != "step":
        return 1
    for keyword in keywords(several.method).values():
        if keyword.annotation == AtOnce:  # the default is the value that the config binds
            return min(keyword.default, len(several.preferences))
    return 1


def _side_by_side(batch: Batch, networks: int, mesh: Mesh) -> Batch:
    """Repeats the batch for several networks in one program, see `step.stacked_step`."""
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((networks * x.shape[0], *x.shape[1:]), x.dtype), batch
    )
    return on_mesh(rows, mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """The inputs of `offline.fit` in a part of a run, with shapes instead of arrays."""

    config: Config  # of the part
    learner: Learner
    batch: Batch  # shapes on the mesh
    scored: int  # responses per prompt that a step scores
    choice: reference.Choice | None  # how steps score the reference; None: the part has none


def make_learner(config: Config, mesh: Mesh, part: str, responses: int = 0) -> Made:
    """Makes the learner and batch of a part of a run from the shapes of its rows."""
    of = _part_of(config, part)
    rows = _stand_in(config, of, part, responses)
    of = bind_fraction(of, rows)
    picked = np.arange(of.train.batch_size) % len(rows.dataset)
    batch = assemble(rows.dataset, picked, rows.shapes[0])
    base = _frozen_params(of, mesh)
    scored, choice = count_responses(of, rows), None
    steps = 2  # any number gives the same program
    if of.reward_loss is not None:
        learner = learners.reward_model(of, mesh, steps, load_start=_nothing, base=base)
    else:
        if part != "sft":
            choice = resolved.choose_reference(
                of,
                responses=batch.response.shape[1],
                scored=scored,
                cacheable=keeps_cache(of, rows) and not resolved.is_online(of),
            )
        if choice is not None and choice.mode == "cache":
            zeros: Any = np.zeros(batch.response_length.shape, np.float32)
            batch = dataclasses.replace(batch, ref_logps=zeros)
        live = choice is not None and choice.mode == "live"
        learner = learners.policy(of, mesh, steps, load_reference=_nothing, base=base, live=live)
    return Made(
        config=of, learner=learner, batch=on_mesh(batch, mesh), scored=scored, choice=choice
    )


def _nothing() -> Params:
    raise AssertionError("a program is compiled from shapes; no parameters are loaded")


def _frozen_params(config: Config, mesh: Mesh) -> Params:
    """Describes the frozen network: the reference, or a base that may be quantised."""
    whole = pretrained.target(config.model, mesh)
    if config.lora is None:
        return whole
    quantize = functools.partial(pretrained.quantize_params, kind=config.lora.quantize, mesh=mesh)
    shapes = jax.eval_shape(quantize, whole)
    return sharding.abstract(shapes, sharding.shard_tree(shapes, mesh))


def _part_of(config: Config, part: str) -> Config:
    """Makes the config of one part of a run, as of a separate run."""
    game = get(config, "recipe.game")
    if part == "sft":
        if config.sft is None:
            raise UserError("--parts=sft: wanted a supervised stage in the config, found none")
        return sft.stage_config(config, config.sft)
    if part == "reward":
        if game is None:
            raise UserError(
                "--parts=reward: wanted a game in the config, found none; for a reward model's own "
                "step use --parts=step"
            )
        return dataclasses.replace(
            config,
            loss=None,
            select=None,
            optim=game.optim,
            train=game.train,
            recipe=None,
            evaluate=dataclasses.replace(config.evaluate, judge=None, scorers=()),
        )
    return config if game is None else dataclasses.replace(config, recipe=None, reward_loss=None)


def _inference(config: Config, mesh: Mesh, part: str, responses: int) -> Program:
    """Builds scoring, as for the reference's table, or sampling, as in training or evaluation."""
    rows = two_rows(config, responses or 2)
    params = pretrained.target(config.model, mesh)
    settings = resolved.sampling_settings(config)
    b, shape = (settings if part == "sample" else config.evaluate).batch_size, rows.shapes[0]
    batch = assemble(rows.dataset, np.arange(b) % len(rows.dataset), shape)
    holds = {"params": bytes_per_device(params)}
    split = on_mesh(batch, mesh)
    if part == "score":
        k = batch.response.shape[1]
        return Program(
            name="scoring",
            function=logps.score_responses,
            args=(params, split),
            static={"config": config.model},
            tokens=b * (shape.prompt + k * shape.response),
            model_flops=forward_flops(config.model, b, k, shape.prompt, shape.response),
            parts=1,
            holds=holds,
        )
    if resolved.is_online(config):
        return _sampling_in_steps(config, mesh, split)
    k, r = settings.samples, settings.max_new_tokens
    return Program(
        name="sampling",
        function=sample,
        args=(params, split.prompt, split.prompt_length, split.prompt_id, everywhere(mesh, _a_key)),
        static=dict(config=config.model, settings=settings, eos=(1,)),
        tokens=b * (shape.prompt + k * r),
        model_flops=forward_flops(config.model, b, k, shape.prompt, r),
        parts=1,
        holds=holds,
    )


def _a_key() -> Any:
    return jax.random.key(0)


def _sampling_in_steps(config: Config, mesh: Mesh, rows: Batch) -> Program:
    """Builds the sampling of a step of `recipes.train_online`, beside all that the step keeps."""
    base, settings = _frozen_params(config, mesh), resolved.sampling_settings(config)
    weight = get(config, "recipe.opponent")
    learner = learners.policy(config, mesh, 2, load_reference=_nothing, base=base, live=True)
    _, state, _ = offline.make_step(learner, mesh, jax.random.key(0))
    prompts = fresh_samples.make_prompts(
        *(config, (), _NO_BATCHES, (1,)),
        sampling=settings,
        max_empty_fraction=0.5,
        opponent=weight,
    )
    program = on_policy.sampling_program(prompts, jax.random.key(0), mesh, [])

    def among_all(state: TrainState, base: Params, *inputs: Any) -> Any:
        return program(state.params, base, *inputs)

    done = everywhere(mesh, lambda: jnp.int32(0))
    (b, p), k, r = rows.prompt.shape, settings.samples, settings.max_new_tokens
    networks = 1.0 if weight in (None, 1) else 1.5  # half of the samples run through two
    return Program(
        name="the sampling of a step" + ("" if weight is None else ", half by an opponent"),
        # What is kept and not read takes memory as well.
        function=jax.jit(among_all, keep_unused=True),
        args=(state, learner.ref_params, rows.prompt, rows.prompt_length, rows.prompt_id, done),
        static={},
        tokens=b * (p + k * r),
        model_flops=networks * forward_flops(config.model, b, k, p, r),
        parts=1,
        holds=_holds(state, learner),
    )


def _holds(state: TrainState, learner: Learner) -> dict[str, int]:
    """Counts what a training keeps on a device, in bytes."""
    return {
        "params": bytes_per_device(state.params),
        "optimizer": bytes_per_device(state.opt_state),
        "frozen params": bytes_per_device(learner.ref_params),
        "reference that follows": bytes_per_device(state.reference),
    }


def _stand_in(config: Config, of: Config, part: str, responses: int) -> Bucketed:
    """Makes two rows of the greatest length, of the kind that the part is given or accepts."""
    if part == "step" and config.candidates is not None:
        k = config.candidates.samples + (responses or 2) * config.candidates.keep_own
        return two_rows(of, k, scored=True)
    game = get(config, "recipe.game")
    if game is not None and part in ("step", "reward"):
        k = game.sampling.samples
        golden = part == "reward"
        return two_rows(of, k + golden, scored=True, adversarial=golden)
    refused: list[UserError] = []
    for k, labels, scored in ((2, False, False), (1, True, False), (2, False, True)):
        rows = two_rows(of, responses or k, labels=labels, scored=scored)
        try:
            check_losses(bind_fraction(of, rows), rows)
        except UserError as error:
            refused.append(error)
        else:
            return rows
    raise refused[0]
