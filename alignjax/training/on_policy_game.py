"""A policy and its reward model trained in turns inside one loop, on samples of that very step.

A turn of the policy samples responses to its prompts and moves on them, scored by the reward model
as it then is. A turn of the reward model samples responses to prompts that have a golden one, puts
that above them, and adds human comparisons. Whose turn it is depends on the number of the step
alone (`game.player`). Steps in names, saves and lines are turns of either player, and the reward
model's numbers are called ``reward_model/...``.

The original work alternates in rounds of several epochs and never step by step. Against a reference
that stays, such a loop settles between it and the golden distribution: docs/papers/apo.md.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.runtime.sharding import abstract, shard_tree
from alignjax.training import game, on_policy
from alignjax.training.loop import Feed, Job, Learner, loop
from alignjax.training.on_policy import Asking
from alignjax.training.step import init_state
from alignjax.types import Array, Batch, GameState, Params

# Folded into the run's key for the reward model's draws; see `on_policy.SAMPLES`.
REWARD = np.uint32(2**32 - 3)
REWARD_MODEL = "reward_model/"  # what its numbers' names begin with


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opponent:
    """The reward model of a game, what it learns from, and when."""

    learner: Learner
    golden: Feed  # prompts with their golden response first; one batch per turn
    pairs: Feed  # human comparisons; one batch per turn
    reward_steps: int  # turns of the reward model in a cycle
    policy_steps: int  # and then of the policy; > 0


def play(
    job: Job,
    learner: Learner,
    asking: Asking,
    opponent: Opponent,
    key: Array,
    evaluate: Callable[[GameState], dict[str, float]] | None = None,
) -> tuple[GameState, dict[str, int]]:
    """Trains both players, from the newest checkpoint if there is one.

    Args:
      job: as for `loop.fit`.
      learner: the policy.
      asking: what the policy is asked.
      opponent: the reward model's side.
      key: as in `loop.fit`.
      evaluate: as in `loop.fit`, of both.

    Returns:
      As `loop.fit`, of both; ``steps`` are turns.

    Raises:
      UserError: as `on_policy.fit`.
    """
    its = opponent.learner
    schedule = {"reward_steps": opponent.reward_steps, "policy_steps": opponent.policy_steps}
    total = game.turns_until(len(asking.batches), **schedule)

    def start(policy: Params, reward: Params) -> GameState:
        return GameState(
            policy=init_state(policy, learner.update.optimizer, key),
            reward=init_state(reward, its.update.optimizer, jax.random.fold_in(key, REWARD)),
        )

    shapes = jax.eval_shape(start, learner.params_shape, its.params_shape)
    layout = shard_tree(shapes, job.mesh)
    traced: list[str] = []
    ask = on_policy.asker(job, learner, asking, key, traced)

    def policy(
        state: GameState, ref_params: Params | None, batch: Batch, nats: Array
    ) -> tuple[GameState, dict[str, Array]]:
        traced.append("policy")
        state, scalars = game.policy_step(
            state, ref_params, batch, learner.update, reward_apply=its.update.apply
        )
        return state, {**on_policy.told(batch, asking, nats, {}), **scalars}

    def reward(
        state: GameState, golden: Batch, sampled: Batch, nats: Array, pairs: Batch
    ) -> tuple[GameState, dict[str, Array]]:
        traced.append("reward")
        state, scalars = game.reward_step(state, against(golden, sampled, pairs), its.update)
        return state, {**on_policy.told(sampled, asking, nats, {}), **scalars}

    policy_fn = jax.jit(policy, donate_argnums=0, out_shardings=(layout, None))
    reward_fn = jax.jit(reward, donate_argnums=0, out_shardings=(layout, None))

    def batches(begin: int) -> Iterator[Any]:
        begin_at = game.turns_before(begin, **schedule)["reward"]
        golden = opponent.golden.read(begin_at, job.mesh)
        pairs = opponent.pairs.read(begin_at, job.mesh)
        for done in range(begin, total):
            if game.player(done, **schedule) == "reward":
                yield next(golden), next(pairs)
            else:
                yield asking.prompts(game.turns_before(done, **schedule)["policy"], job.mesh)

    def turn(state: GameState, batch: Any, done: int) -> tuple[GameState, dict[str, Array]]:
        if game.player(done, **schedule) == "policy":
            return policy_fn(state, learner.ref_params, *ask(state.policy.params, batch, done))
        golden, pairs = batch
        return reward_fn(state, golden, *ask(state.policy.params, golden, done), pairs)

    def tell(step: int) -> dict[str, float]:
        turns = game.turns_before(step, **schedule)
        line = on_policy.policy_line(learner, asking, turns["policy"])
        if turns["reward"]:
            line[REWARD_MODEL + "learning_rate"] = float(its.learning_rate(turns["reward"] - 1))
        return line

    return loop(
        job,
        total=total,
        target=abstract(shapes, layout),
        start=lambda: jax.jit(start, out_shardings=layout, donate_argnums=(0, 1))(
            learner.load_start(), its.load_start()
        ),
        batches=batches,
        turn=turn,
        compiled=lambda: len(traced),
        tell=tell,
        player=lambda done: REWARD_MODEL if game.player(done, **schedule) == "reward" else "",
        watch=lambda step, values: on_policy.refuse_empty(job, asking, step, values),
        evaluate=evaluate,
    )


def against(golden: Batch, sampled: Batch, pairs: Batch) -> Batch:
    """What the reward model compares at one turn.

    Args:
      golden: B prompts, their golden response first.
      sampled: the same prompts with K responses of the policy.
      pairs: human comparisons of other prompts: two responses, the chosen one first, or scored.

    Returns:
      The rows of both, those of ``golden`` first and ``adversarial``, with score 1 for the golden
      response and 0 for the samples; padded alike.
    """
    b, k = sampled.response_length.shape
    n, own = pairs.response_length.shape
    scores = pairs.scores
    if scores is None:
        scores = jnp.broadcast_to(jnp.array([1.0, 0.0]), (n, own))

    def stack(one: Array, other: Array, *, left: tuple[int, ...] = ()) -> Array:
        """One above the other, filled up with zeros at the end of an axis, or before it."""
        wanted = [max(x, y) for x, y in zip(one.shape[1:], other.shape[1:], strict=True)]

        def fill(x: Array) -> Array:
            room = [w - size for w, size in zip(wanted, x.shape[1:], strict=True)]
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
