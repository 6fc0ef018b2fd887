"""The game's two steps: who moves and who does not, whose turn it is, and a game taken up again."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.errors import UserError
from alignjax.losses import apo, bradley_terry, dpo
from alignjax.models import reward_head, transformer
from alignjax.runtime import checkpoint, sharding, stores
from alignjax.testing import loss_inputs
from alignjax.training import game
from alignjax.training.microbatches import Rooms
from alignjax.training.step import Update, init_state, reward_scores, train_step
from alignjax.types import GameState
from tests import tiny
from tests.tiny import bits, same_bits

OPTIMIZER = optax.adamw(0.05)
B, K, WIDTH = 8, 3, 3


def apply(params, batch):
    """``[B, K]`` of either player, from the response ids."""
    return jnp.tanh(batch.response.astype(jnp.float32) @ params["w"]) @ params["v"]


def params(seed):
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=(WIDTH, 4)) / 8, rng.normal(size=4)
    return {"w": jnp.asarray(w, jnp.float32), "v": jnp.asarray(v, jnp.float32)}


def make_state():
    policy, reward = (init_state(params(i), OPTIMIZER, jax.random.key(i)) for i in (1, 2))
    return GameState(policy=policy, reward=reward)


def make_batch(step=0, b=B):
    """Golden responses and samples, different ones at each step."""
    rng = np.random.default_rng(step)
    scores = np.tile([1.0, 0.0, 0.0], (b, 1))
    _, batch = loss_inputs(np.zeros((b, K)), scores=scores, adversarial=np.arange(b) % 2 == 0)
    response = jnp.asarray(rng.integers(0, 9, (b, K, WIDTH)), jnp.int32)
    return dataclasses.replace(batch, response=response)


def policy_update(**changes):
    loss = functools.partial(apo.loss, beta=0.2)
    return Update(**{**dict(apply=apply, optimizer=OPTIMIZER, loss=loss), **changes})


REWARD_UPDATE = policy_update(
    loss=functools.partial(apo.reward_loss, sample_weight=0.5), forward=reward_scores
)
REWARD = functools.partial(game.reward_step, update=REWARD_UPDATE)
POLICY = functools.partial(game.policy_step, update=policy_update(), reward=REWARD_UPDATE)


@functools.cache
def compiled():
    """The two programs of a run, which donate the state."""
    return jax.jit(REWARD, donate_argnums=0), jax.jit(POLICY, donate_argnums=0)


def play(state, steps, *, reward_steps=2, policy_steps=1):
    """So many turns from wherever the state is; the data position is its step."""
    reward, policy = compiled()
    reference, whose = params(1), []
    for _ in range(steps):
        step = int(state.step)
        cycle = game.Cycle(reward_steps=reward_steps, policy_steps=policy_steps)
        whose.append(cycle.player(step))
        if whose[-1] == "reward":
            state, _ = reward(state, None, make_batch(step))
        else:
            state, _ = policy(state, reference, make_batch(step))
    return state, whose


@pytest.mark.parametrize("mover", ["reward", "policy"])
def test_only_the_mover_moves(mover):
    other = {"reward": "policy", "policy": "reward"}[mover]
    turns = {"reward_steps": int(mover == "reward"), "policy_steps": int(mover == "policy")}
    state = make_state()
    before = make_state()
    for _ in range(3):
        state, whose = play(state, 1, **turns)
        assert whose == [mover]
        assert same_bits(getattr(state, other), getattr(before, other))
    moved = getattr(state, mover)
    for field in ("params", "opt_state"):
        pairs = zip(
            jax.tree.leaves(bits(getattr(moved, field))),
            jax.tree.leaves(bits(getattr(getattr(before, mover), field))),
            strict=True,
        )
        assert all(new != old for new, old in pairs), field
    assert int(moved.step) == 3


def test_one_bit_of_the_other_player_would_be_seen():
    state = make_state()
    v = np.array(state.reward.params["v"])
    v[0] = np.nextafter(v[0], np.float32(9))
    assert not same_bits({**state.reward.params, "v": v}, state.reward.params)
    assert same_bits(make_state(), state)


def test_steps_are_those_of_each_network_alone():
    """The same programs' arithmetic as training the one network on the other's scores."""
    state, batch, reference = make_state(), make_batch(), params(1)
    scored = batch.replace(scores=jax.jit(apply)(state.reward.params, batch))
    alone = functools.partial(train_step, update=policy_update())
    wanted, scalars = jax.jit(alone)(state.policy, reference, scored)
    new, found = jax.jit(POLICY)(state, reference, batch)
    chex.assert_trees_all_close((new.policy.params, found), (wanted.params, scalars), rtol=1e-5)
    np.testing.assert_allclose(found["scores"], scored.scores.mean(), rtol=1e-5)

    alone = functools.partial(train_step, update=REWARD_UPDATE)
    wanted, scalars = jax.jit(alone)(state.reward, None, batch)
    new, found = jax.jit(REWARD)(state, None, batch)
    chex.assert_trees_all_close((new.reward.params, found), (wanted.params, scalars), rtol=1e-5)


def test_selects_see_the_reward_models_scores():
    """DPO on its best and worst sample: the data's own scores, here all tied, are not used."""
    state, reference = make_state(), params(3)
    batch = make_batch().replace(scores=jnp.zeros((B, K)))
    update = policy_update(
        loss=dpo.loss, select=bradley_terry.select, rooms=Rooms(given=1, padded=True)
    )
    step = functools.partial(POLICY, update=update)
    _, scalars = jax.jit(step)(state, reference, batch)
    assert float(scalars["weight"]) == B
    scores = np.asarray(apply(state.reward.params, batch))
    ratio = np.asarray(apply(state.policy.params, batch) - apply(reference, batch))
    rows = np.arange(B)
    margin = 0.1 * (ratio[rows, scores.argmax(1)] - ratio[rows, scores.argmin(1)])
    np.testing.assert_allclose(scalars["rewards/margins"], margin.mean(), rtol=1e-4, atol=1e-6)


def test_donated_states_are_gone_and_what_they_passed_on_is_whole():
    state, reference = make_state(), params(1)
    wanted, kept = bits(state.policy), bits(reference)
    reward, policy = compiled()
    new, _ = reward(state, None, make_batch())
    assert state.reward.params["w"].is_deleted()
    assert same_bits(new.policy, wanted)
    newer, _ = policy(new, reference, make_batch(1))
    assert new.policy.params["w"].is_deleted()
    assert same_bits(reference, kept)
    play(newer, 3)


def test_one_program_for_each_player_and_shape():
    traced = []

    def counting(name, step):
        def run(*args):
            traced.append((name, args[-1].weight.shape[0]))
            return step(*args)

        return jax.jit(run, donate_argnums=0)

    reward, policy = counting("reward", REWARD), counting("policy", POLICY)
    state, reference = make_state(), params(1)
    for step in range(8):
        b = B if step < 6 else 4
        if game.Cycle(reward_steps=1, policy_steps=1).player(step) == "reward":
            state, _ = reward(state, None, make_batch(step, b))
        else:
            state, _ = policy(state, reference, make_batch(step, b))
    assert traced == [("reward", B), ("policy", B), ("reward", 4), ("policy", 4)]
    assert reward._cache_size() == policy._cache_size() == 2


def test_a_step_that_is_not_finite_is_a_turn_taken():
    def broken(params, batch):
        return apply(params, batch) * jnp.nan

    state = make_state()
    reward = dataclasses.replace(REWARD_UPDATE, apply=broken)
    step = functools.partial(POLICY, update=policy_update(loss=nan_loss), reward=reward)
    new, scalars = jax.jit(step)(state, params(1), make_batch())
    assert int(scalars["skipped"]) == 1
    assert int(new.step) == 1
    assert same_bits((new.reward, new.policy.params), (state.reward, state.policy.params))


def nan_loss(logps, batch):
    return (logps.policy * batch.scores).sum(axis=1), {}


def test_both_players_are_laid_out_as_each_alone():
    config = tiny.model(tied_embeddings=False)
    mesh = sharding.make_mesh(2, 2, 2)

    def states():
        key = jax.random.key(0)
        models = transformer.init_params(config, key), reward_head.init_params(config, key)
        return [init_state(x, OPTIMIZER, key) for x in models]

    policy, reward = jax.eval_shape(states)
    found = sharding.shard_tree(GameState(policy=policy, reward=reward), mesh)
    assert found.policy == sharding.shard_tree(policy, mesh)
    assert found.reward == sharding.shard_tree(reward, mesh)
    assert found.reward.params["reward"]["kernel"].spec[0] == "fsdp"
    assert tuple(found.policy.params["head"].spec) == ("tensor", "fsdp")


# Whose turn it is


@pytest.mark.parametrize(("reward_steps", "policy_steps"), [(1, 1), (3, 2), (1, 4), (0, 1), (2, 0)])
def test_turns_go_in_cycles(reward_steps, policy_steps):
    cycle = ["reward"] * reward_steps + ["policy"] * policy_steps
    player = game.Cycle(reward_steps=reward_steps, policy_steps=policy_steps).player
    found = [player(step) for step in range(4 * len(cycle))]
    assert found == 4 * cycle
    # Far into a run, and asked in any order: nothing but the integer counts.
    far = len(cycle) * 10**9
    assert [player(far + i) for i in reversed(range(len(cycle)))] == cycle[::-1]


@pytest.mark.parametrize(("reward_steps", "policy_steps"), [(0, 0), (-1, 2), (2, -1)])
def test_a_game_that_nobody_plays_is_refused(reward_steps, policy_steps):
    with pytest.raises(UserError, match=f"found {reward_steps} and {policy_steps}"):
        game.Cycle(reward_steps=reward_steps, policy_steps=policy_steps)


def test_a_restored_game_goes_on_bit_for_bit_in_the_middle_of_a_cycle(tmp_path):
    """Saved after 4 turns of cycles of 3: the next turn is the reward model's second."""
    uninterrupted, turns = play(make_state(), 8)
    saved, first = play(make_state(), 4)
    wanted = bits(saved)
    with stores.open_store(tmp_path / "checkpoints", keep=1) as store:
        checkpoint.save(store, int(saved.step), saved, {})
    shapes = jax.eval_shape(lambda: saved)
    target = sharding.abstract(shapes, sharding.shard_tree(shapes, sharding.make_mesh(1, 1, 1)))
    with stores.open_store(tmp_path / "checkpoints", keep=1) as store:
        restored = checkpoint.restore(store, 4, target)
    assert same_bits(restored, wanted)
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    state, rest = play(restored, 4)
    assert first + rest == turns == ["reward", "reward", "policy"] * 2 + ["reward", "reward"]
    assert same_bits(state, uninterrupted)
    assert (int(state.reward.step), int(state.policy.step)) == (6, 2)
    other, _ = play(play(make_state(), 4)[0], 4, reward_steps=1, policy_steps=2)
    assert not same_bits(other, uninterrupted)  # whose turn it is does matter
