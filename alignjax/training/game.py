"""Takes the steps of a game between a policy and a reward model.

Each player's step is `step.train_step` on its half of a `GameState`; the other half stays the same,
bit for bit. The two programs are compiled separately, and the host chooses between them::

    if Cycle(reward_steps=1, policy_steps=4).player(int(state.step)) == "reward":
        state, scalars = reward(state, base, batch)
    else:
        state, scalars = policy(state, ref_params, batch)

Both receive their loss and import none. Both may donate ``state``: then none of its arrays may be
used elsewhere (such as in the reference), nor twice inside it.
"""

import dataclasses
import functools
from typing import Literal

import jax.numpy as jnp

from alignjax.errors import UserError
from alignjax.models import stream
from alignjax.training.microbatches import weighted_sums
from alignjax.training.step import Update, train_step
from alignjax.types import Array, Batch, GameState, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cycle:
    """The order of turns: ``reward_steps`` of the reward model, ``policy_steps`` of the policy.

    Whose turn it is depends only on the step number, so a game can resume in the middle of a cycle.

    Raises:
      UserError: a count is negative, or both are 0.
    """

    reward_steps: int  # turns of the reward model in a cycle; 0: it is not trained
    policy_steps: int  # turns of the policy in a cycle; 0: it is not trained

    def __post_init__(self) -> None:
        steps = self.reward_steps, self.policy_steps
        if min(steps) < 0 or sum(steps) == 0:
            raise UserError(
                "reward_steps, policy_steps: wanted whole numbers >= 0, at least one above 0, "
                f"found {self.reward_steps} and {self.policy_steps}"
            )

    def player(self, step: int) -> Literal["reward", "policy"]:
        """Tells whose turn it is after ``step`` turns (`GameState.step`)."""
        place = step % (self.reward_steps + self.policy_steps)
        return "reward" if place < self.reward_steps else "policy"

    def turns_before(self, step: int) -> dict[str, int]:
        """Counts each player's turns among the first ``step``, by its name."""
        cycles, rest = divmod(step, self.reward_steps + self.policy_steps)
        reward = cycles * self.reward_steps + min(rest, self.reward_steps)
        return {"reward": reward, "policy": step - reward}

    def turns_until(self, policy_turns: int) -> int:
        """Counts all turns up to and including turn ``policy_turns`` (from 1) of the policy."""
        cycles, rest = divmod(policy_turns - 1, self.policy_steps)
        return cycles * (self.reward_steps + self.policy_steps) + self.reward_steps + rest + 1


def reward_step(
    state: GameState, base: Params | None, batch: Batch, update: Update
) -> tuple[GameState, dict[str, Array]]:
    """Takes one optimizer step of the reward model; the policy does not change.

    Args:
      state: both players.
      base: the network under the adapters of both players; None: without adapters. Never donated.
      batch: responses to compare, such as golden ones with samples of the policy.
      update: the reward model's; its ``forward`` is `step.reward_scores`, or
        `step.with_adapters` of it.

    Returns:
      The new state, and the scalars of `step.train_step`.
    """
    reward, scalars = train_step(state.reward, base, batch, update)
    return dataclasses.replace(state, reward=reward), scalars


def policy_step(
    state: GameState,
    ref_params: Params | None,
    batch: Batch,
    update: Update,
    *,
    reward: Update,
) -> tuple[GameState, dict[str, Array]]:
    """Takes one optimizer step of the policy on responses that the current reward model scores.

    Args:
      state: both players; the reward model does not change.
      ref_params: the frozen reference, as in `step.train_step`; with adapters, the base of both
        players. Never donated.
      batch: B prompts with K responses, usually the policy's own samples. Its ``scores``, if any,
        are replaced before ``select`` sees them.
      update: the policy's.
      reward: the reward model's; its ``[B, K]`` scores are without dropout.

    Returns:
      The new state, and the scalars of `step.train_step`; ``scores``, the mean score of a response.
    """
    # Not inside the loss: scores have no gradient.
    forward = functools.partial(
        reward.forward, state.reward.params, ref_params, apply=reward.apply, key=None
    )
    scores = forward(batch) if reward.rooms.padded else stream.in_parts(forward, batch)
    scored = dataclasses.replace(batch, scores=scores)
    policy, scalars = train_step(state.policy, ref_params, scored, update)
    mean = jnp.where(batch.present, scores, 0.0).sum(1) / jnp.maximum(batch.present.sum(1), 1)
    total, _ = weighted_sums(mean, {}, batch.weight)
    mean_score = total / jnp.maximum(batch.weight.sum(), 1e-9)
    return dataclasses.replace(state, policy=policy), {"scores": mean_score, **scalars}
