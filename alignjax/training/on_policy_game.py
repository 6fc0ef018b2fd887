"""Trains a policy and its reward model in turns inside one loop, on samples of the same step.

In its turn, the policy samples responses to its prompts and is updated on them, with scores of the
current reward model. In the reward model's turn, the policy samples responses to prompts that have
a golden one; the reward model learns to score that above the samples, and learns from human
comparisons. Whose turn it is depends only on the number of the step (`game.Cycle`). A step is a
turn of either player, and the reward model's metrics begin with ``reward_model/``.

The original work alternates in rounds of several epochs, never step by step. With a fixed
reference, such a loop converges to a policy between it and the golden distribution:
docs/papers/apo.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.training import game, on_policy
from alignjax.training.compiled import compile_start, compile_step
from alignjax.training.job import Feed, Job, Learner, Turns
from alignjax.training.loop import loop
from alignjax.training.on_policy import Prompts
from alignjax.training.step import init_state
from alignjax.types import Array, Batch, GameState, Params

# Folded into the run's key for the reward model's draws; see `on_policy.SAMPLES`.
REWARD = np.uint32(2**32 - 3)
REWARD_MODEL = "reward_model/"  # prefix of its metrics


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opponent:
    """The reward model of a game, what it learns from, and when."""

    learner: Learner  # adapters are of the same base as the policy's
    golden: Feed  # prompts with their golden response first; one batch per turn
    pairs: Feed  # human comparisons; one batch per turn
    cycle: game.Cycle  # of both players; its policy_steps are above 0


def play(
    job: Job,
    learner: Learner,
    prompts: Prompts,
    opponent: Opponent,
    key: Array,
    evaluate: Callable[[GameState], dict[str, float]] | None = None,
) -> tuple[GameState, dict[str, int]]:
    """Trains both players, from the newest checkpoint if there is one.

    Args:
      job: as for `offline.fit`.
      learner: the policy.
      prompts: of the policy's turns.
      opponent: the reward model's side.
      key: as in `offline.fit`.
      evaluate: as in `offline.fit`, called with the state of both.

    Returns:
      As `offline.fit`, the state of both; ``steps`` are turns.

    Raises:
      UserError: as `on_policy.fit`.
    """
    its, cycle = opponent.learner, opponent.cycle
    traced: list[str] = []
    start, target, policy_step, reward_step = make_steps(
        job.mesh, learner, its, prompts, key, traced
    )
    sample = on_policy.compile_sampling(job, learner, prompts, key, traced)

    def take(state: GameState, batch: Any, done: int) -> tuple[GameState, dict[str, Array]]:
        samples, nats = sample(state.policy.params, batch[0], done)
        if cycle.player(done) == "policy":
            return policy_step(state, learner.ref_params, samples, nats)
        golden, pairs = batch
        return reward_step(state, its.ref_params, golden, samples, nats, pairs)

    turns = Turns(
        total=cycle.turns_until(len(prompts.batches)),
        target=target,
        start=lambda: start(learner.load_start(), its.load_start()),
        batches=lambda begin: _batches(job, prompts, opponent, begin),
        take=take,
        traced=traced,
        line=lambda who, step: _line(learner, prompts, opponent, who, step),
        player=lambda done: REWARD_MODEL if cycle.player(done) == "reward" else "",
        watch=lambda step, values: on_policy.refuse_empty(job, prompts, step, values),
    )
    return loop(job, turns, evaluate)


def make_steps(
    mesh: Mesh, learner: Learner, its: Learner, prompts: Prompts, key: Array, traced: list[str]
) -> tuple[Callable[..., GameState], GameState, Any, Any]:
    """Makes the programs that `play` runs.

    Args:
      mesh: the devices.
      learner: the policy.
      its: the reward model.
      prompts: see `play`.
      key: see `play`.
      traced: gets a name whenever a turn is traced.

    Returns:
      A function from both players' parameters to the state at step 0; shapes, dtypes and shardings
      of the state; the policy's turn, ``(state, ref_params, samples, nats) -> (state, scalars)``,
      and the reward model's, ``(state, base, golden, samples, nats, pairs) -> (state, scalars)``.
    """

    def init(policy: Params, reward: Params) -> GameState:
        return GameState(
            policy=init_state(policy, learner.update.optimizer, key),
            reward=init_state(reward, its.update.optimizer, jax.random.fold_in(key, REWARD)),
        )

    start, target = compile_start(init, learner.params_shape, its.params_shape, mesh=mesh)
    policy = compile_step(_policy_step(learner, prompts, its, traced), target)
    return start, target, policy, compile_step(_reward_step(prompts, its, traced), target)


def _policy_step(
    learner: Learner, prompts: Prompts, its: Learner, traced: list[str]
) -> Callable[..., tuple[GameState, dict[str, Array]]]:
    """Makes a turn of the policy: an update on its samples, scored by the reward model."""

    def policy(
        state: GameState, ref_params: Params | None, samples: Batch, nats: Array
    ) -> tuple[GameState, dict[str, Array]]:
        traced.append("policy")
        state, scalars = game.policy_step(
            state, ref_params, samples, learner.update, reward=its.update
        )
        return state, {**on_policy.sample_means(samples, prompts, nats, {}), **scalars}

    return policy


def _reward_step(
    prompts: Prompts, its: Learner, traced: list[str]
) -> Callable[..., tuple[GameState, dict[str, Array]]]:
    """Makes a turn of the reward model: golden responses against samples, and comparisons."""

    def reward(
        state: GameState,
        base: Params | None,
        golden: Batch,
        samples: Batch,
        nats: Array,
        pairs: Batch,
    ) -> tuple[GameState, dict[str, Array]]:
        traced.append("reward")
        rows = comparisons(golden, samples, pairs)
        state, scalars = game.reward_step(state, base, rows, its.update)
        return state, {**on_policy.sample_means(samples, prompts, nats, {}), **scalars}

    return reward


def _batches(
    job: Job, prompts: Prompts, opponent: Opponent, begin: int
) -> Iterator[tuple[Batch, ...]]:
    """Reads the prompts of each turn, in the reward model's turns golden rows and pairs."""
    cycle = opponent.cycle
    done = cycle.turns_before(begin)
    golden = opponent.golden.read(done["reward"], job.mesh)
    pairs = opponent.pairs.read(done["reward"], job.mesh)
    own = (prompts.batch(i, job.mesh) for i in range(done["policy"], len(prompts.batches)))
    for step in range(begin, cycle.turns_until(len(prompts.batches))):
        if cycle.player(step) == "reward":
            yield next(golden), next(pairs)
        else:
            yield (next(own),)


def _line(
    learner: Learner, prompts: Prompts, opponent: Opponent, who: str, step: int
) -> dict[str, float]:
    """Makes a player's numbers for the metrics line of a step."""
    turns = opponent.cycle.turns_before(step)
    if who != REWARD_MODEL:
        return on_policy.policy_line(learner, prompts, turns["policy"])
    return {"learning_rate": float(opponent.learner.learning_rate(turns["reward"] - 1))}


def comparisons(golden: Batch, sampled: Batch, pairs: Batch) -> Batch:
    """Makes the rows that the reward model learns from in one turn.

    Args:
      golden: B prompts, their golden response first.
      sampled: the same prompts with K responses of the policy.
      pairs: human comparisons of other prompts: two responses, the chosen one first, or scored.

    Returns:
      First the B prompts, marked ``adversarial``, with score 1 for the golden response and 0 for
      the samples; then the pairs; all padded to one shape.
    """
    b, k = sampled.response_length.shape
    n, own = pairs.response_length.shape
    scores = pairs.scores
    if scores is None:
        scores = jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, own))

    def stack(one: Array, other: Array, *, left: tuple[int, ...] = ()) -> Array:
        """Concatenates rows; pads with zeros at the end of an axis, or at its start if in left."""
        sizes = [max(x, y) for x, y in zip(one.shape[1:], other.shape[1:], strict=True)]

        def fill(x: Array) -> Array:
            room = [w - size for w, size in zip(sizes, x.shape[1:], strict=True)]
            return jnp.pad(
                x, [(0, 0), *((r, 0) if i in left else (0, r) for i, r in enumerate(room))]
            )

        return jnp.concatenate([fill(one), fill(other)])

    def above(best: Array, others: Array) -> Array:
        room = max(best.shape[-1], others.shape[-1])
        fill = [jnp.pad(x, ((0, 0), (0, 0), (0, room - x.shape[-1]))) for x in (best, others)]
        return jnp.concatenate(fill, axis=1)

    lengths = jnp.concatenate([golden.response_length[:, :1], sampled.response_length], axis=1)
    return Batch(
        prompt=stack(golden.prompt, pairs.prompt, left=(0,)),
        prompt_length=stack(golden.prompt_length, pairs.prompt_length),
        response=stack(above(golden.response[:, :1], sampled.response), pairs.response),
        response_length=stack(lengths, pairs.response_length),
        weight=stack(golden.weight, pairs.weight),
        prompt_id=stack(golden.prompt_id, pairs.prompt_id),
        scores=stack(jnp.zeros((b, 1 + k)).at[:, 0].set(1.0), scores),
        adversarial=jnp.arange(b + n) < b,
    )
