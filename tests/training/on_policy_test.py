"""Training on a policy's own samples: what they are, what resumes, what compiles, who moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alignjax.config import SamplingConfig, TrainConfig
from alignjax.data.batching import Batches, bucket, deal_batches, shuffled
from alignjax.errors import NumericalError, UserError
from alignjax.losses import apo, grpo, xpo
from alignjax.models import lora, reward_head, transformer
from alignjax.models.config import LoraConfig
from alignjax.models.logps import response_logps
from alignjax.runtime import checkpoint, metrics, sharding, stores
from alignjax.runtime.faults import FaultError
from alignjax.sampling import decode
from alignjax.sampling.generate import Question
from alignjax.training import game, on_policy, on_policy_game
from alignjax.training.job import Feed, Job, Learner
from alignjax.training.step import (
    Update,
    init_state,
    reward_scores,
    score,
    train_step,
    with_adapters,
)
from alignjax.types import Batch, GameState
from tests import runs, tiny
from tests.tiny import bits, same_bits

CONFIG = tiny.model(vocab_size=64, width=16, layers=1, heads=2, kv_heads=1, mlp_width=16)
EOS, LIKED = 1, 32
B, K, R, P = 4, 3, 4, 4
STEPS = 3
KEY = jax.random.key(3)
OPTIMIZER = optax.adam(0.1, eps=1e-2)
REWARD_LOSS = functools.partial(apo.reward_loss, sample_weight=0.5)
SAMPLE = functools.partial(
    decode.sample, config=CONFIG, settings=SamplingConfig(samples=K, max_new_tokens=R), eos=(EOS,)
)
ASKED = [
    Question(i, f"prompt {i}", np.random.default_rng(i).integers(2, 64, 1 + i % P).astype(np.int32))
    for i in range(10)
]


def start():
    return transformer.init_params(CONFIG, jax.random.key(1))


def start_reward():
    return reward_head.from_language_model(start())


def on(mesh, make):
    """The same, on a mesh."""
    return jax.jit(make, out_shardings=sharding.shard_tree(jax.eval_shape(make), mesh))


def prompts(**changes):
    batches = on_policy.deal_prompts(
        ASKED, buckets=1, multiple=P, batch_size=B, seed=0, steps=STEPS
    )
    parts = dict(
        questions=ASKED, batches=batches, sample=SAMPLE, eos=(EOS,), max_empty_fraction=0.9
    )
    return on_policy.Prompts(**{**parts, **changes})


def job(workdir, mesh=None, *, save_every=2):
    mesh = mesh or sharding.make_mesh(1, 1, 1)
    return (
        Job(
            name="online",
            workdir=workdir,
            mesh=mesh,
            identity={"data": "d"},
            train=TrainConfig(save_every=save_every, log_every=3, keep=10, max_skipped=2),
            extendable=True,
        ),
        Learner(
            update=Update(
                apply=functools.partial(response_logps, config=CONFIG),
                loss=functools.partial(apo.loss, beta=0.1),
                optimizer=OPTIMIZER,
            ),
            learning_rate=optax.constant_schedule(0.1),
            params_shape=jax.eval_shape(start),
            load_start=on(mesh, start),
            ref_params=on(mesh, start)(),
        ),
    )


def liked(batch):
    """``[B, K]`` how many of a response's ids are low ones; on the host."""
    return np.asarray((batch.response < LIKED).sum(-1))


def fit(settings, *, score=liked, **changes):
    return on_policy.fit(*settings, prompts(**changes), score, KEY)


def opponent(mesh, *, reward_steps=2, policy_steps=1, loss=REWARD_LOSS):
    """A reward model with golden responses and pairs of its own, in the same shapes."""
    cycle = game.Cycle(reward_steps=reward_steps, policy_steps=policy_steps)
    turns = cycle.turns_until(STEPS) - STEPS

    def feed(k):
        rows = bucket(tiny.dataset(8, k=k, longest=(P, R), seed=k), count=1, multiple=P)
        if not turns:
            nothing = np.zeros(0, np.int32), np.zeros((0, B), np.int64)
            return Feed(rows.dataset, Batches(rows.shapes, *nothing))
        order = shuffled(8, 1)
        return Feed(
            rows.dataset,
            deal_batches(rows.shapes, rows.assignment, batch_size=B, order=order, batches=turns),
        )

    return on_policy_game.Opponent(
        learner=Learner(
            update=Update(
                apply=functools.partial(reward_head.response_scores, config=CONFIG),
                loss=loss,
                optimizer=OPTIMIZER,
                forward=reward_scores,
            ),
            learning_rate=optax.constant_schedule(0.1),
            params_shape=jax.eval_shape(start_reward),
            load_start=on(mesh, start_reward),
        ),
        golden=feed(1),
        pairs=feed(2),
        cycle=cycle,
    )


def play(settings, **changes):
    its = opponent(settings[0].mesh, **changes)
    return on_policy_game.play(*settings, prompts(), its, KEY)


LOOPS = {"fit": fit, "play": play}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Both loops as they never stop: state, counts, lines."""
    found = {"seen": []}

    def score(batch):
        found["seen"].append(jax.device_get(batch))
        return liked(batch)

    for name, loop in {"fit": functools.partial(fit, score=score), "play": play}.items():
        folder = tmp_path_factory.mktemp(name)
        state, counts = loop(job(folder, save_every=1))
        found[name] = (folder, bits(state), counts, runs.lines(folder))
        found[f"{name} target"] = jax.eval_shape(lambda: state)  # noqa: B023
    return found


def stored(folder, step, target):
    layout = sharding.shard_tree(target, sharding.make_mesh(1, 1, 1))
    with stores.open_store(folder / "checkpoints", keep=20) as store:
        return checkpoint.restore(store, step, sharding.abstract(target, layout))


def test_what_a_step_is_trained_on_is_sampled_from_the_policy_as_it_then_is(clean):
    seen, folder = clean["seen"], clean["fit"][0]
    assert len(seen) == STEPS
    params, old = [on(sharding.make_mesh(1, 1, 1), start)()], []
    params += [stored(folder, step, clean["fit target"]).params for step in range(1, STEPS)]
    for step, (batch, policy) in enumerate(zip(seen, params, strict=True)):
        key = jax.random.fold_in(jax.random.fold_in(KEY, on_policy.SAMPLES), step)
        asked = batch.prompt, batch.prompt_length, batch.prompt_id
        response, length, _ = SAMPLE(policy, *asked, key)
        np.testing.assert_array_equal(batch.response, response)
        np.testing.assert_array_equal(batch.response_length, length)
        old.append((np.asarray(SAMPLE(params[0], *asked, key)[0]) != batch.response).any())
    assert (old[0], any(old)) == (
        False,
        True,
    )  # the control: the policy of the start would give others


def test_the_second_half_of_the_responses_is_the_opponents_and_is_not_measured(tmp_path):
    """The opponent is the network of the start, whatever the policy has become."""
    settings, learner = job(tmp_path, save_every=1)
    loss = functools.partial(xpo.loss, alpha=0.5)
    learner = dataclasses.replace(learner, update=dataclasses.replace(learner.update, loss=loss))
    seen = []

    def noted(batch):
        seen.append(jax.device_get(batch))
        return np.concatenate([liked(batch)[:, :K], np.full((B, K), 100)], axis=1)

    fit((settings, learner), score=noted, opponent=lambda params, base: base)
    first = on(sharding.make_mesh(1, 1, 1), start)()
    for step, batch in enumerate(seen):
        assert batch.response.shape == (B, 2 * K, R)
        key = jax.random.fold_in(jax.random.fold_in(KEY, on_policy.SAMPLES), step)
        asked = batch.prompt, batch.prompt_length, batch.prompt_id
        np.testing.assert_array_equal(
            batch.response[:, K:], SAMPLE(first, *asked, jax.random.fold_in(key, 1))[0]
        )
        own = SAMPLE(first, *asked, key)[0]
        assert (batch.response[:, :K] == own).all() == (step == 0)  # then the policy has moved
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert all(line["scores"] < 100 for line in lines)


def test_several_updates_are_steps_on_the_same_samples(tmp_path):
    """One step of three updates, taken again one by one; the first sees the policy that drew."""
    settings, learner = job(tmp_path)
    loss = functools.partial(grpo.loss_clipped, beta=0.1, clip=0.05)
    learner = dataclasses.replace(learner, update=dataclasses.replace(learner.update, loss=loss))
    seen = []

    def noted(batch):
        seen.append(jax.device_get(batch))
        return liked(batch)

    state, counts = fit((settings, learner), score=noted, updates=3)
    assert (int(state.step), counts["steps"], counts["compiles"]) == (3 * STEPS, STEPS, 2)
    wanted = init_state(learner.load_start(), OPTIMIZER, KEY)
    once = jax.jit(functools.partial(train_step, update=learner.update))
    for step, batch in enumerate(seen):
        key = jax.random.fold_in(jax.random.fold_in(KEY, on_policy.SAMPLES), step)
        asked = batch.prompt, batch.prompt_length, batch.prompt_id
        nats = SAMPLE(wanted.params, *asked, key)[2]
        scores = jnp.asarray(liked(batch), jnp.float32)
        batch = dataclasses.replace(batch, scores=scores, drawn_logps=nats)
        for _ in range(3):
            wanted, _ = once(wanted, learner.ref_params, batch)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-4)
    jax.tree.map(close, state.params, wanted.params)


@pytest.mark.parametrize("name", LOOPS)
def test_programs_are_compiled_once(name, clean):
    _, _, counts, _ = clean[name]
    assert counts["compiles"] == {"fit": 2, "play": 3}[name]
    assert counts["steps"] == {"fit": STEPS, "play": 3 * STEPS}[name]


@pytest.mark.long
@pytest.mark.parametrize(("name", "stop"), [("fit", 2), ("play", 2), ("play", 5)])
def test_resuming_after_a_turn_of_either_gives_the_same_bits(
    name, stop, clean, tmp_path, monkeypatch
):
    _, wanted, _, lines = clean[name]
    monkeypatch.setenv("ALIGNJAX_FAULT", f"step:online-{stop + 1}=raise")
    with pytest.raises(FaultError):
        LOOPS[name](job(tmp_path))
    state, counts = LOOPS[name](job(tmp_path))
    assert counts["resumed_from"] == stop // 2 * 2
    assert same_bits(state, wanted)
    assert runs.lines(tmp_path) == lines


def test_the_policy_alone_is_read_from_a_games_checkpoint(clean):
    folder, wanted, counts, _ = clean["play"]
    layout = sharding.shard_tree(clean["play target"].policy.params, sharding.make_mesh(1, 1, 1))
    target = sharding.abstract(clean["play target"].policy.params, layout)
    with stores.open_store(folder / "checkpoints", keep=20) as store:
        params = checkpoint.restore_params(store, counts["steps"], target)
    assert same_bits(params, wanted.policy.params)


def test_lines_keep_the_players_apart(clean):
    lines = [{k: float.fromhex(v) for k, v in x.items()} for x in clean["play"][3]]
    assert [x["step"] for x in lines] == [1, 3, 6, 9]
    for line in lines[1:]:  # only one of them has a turn in the first step
        assert {"scores", "kl", "entropy", "empty", "unfinished", "response_tokens"} <= set(line)
        assert {"reward_model/rewards/accuracies", "reward_model/learning_rate"} <= set(line)
        assert line["reward_model/adversarial"] == 0.5
        assert (line["weight"], line["reward_model/weight"]) == (B, 2 * B)


def test_a_share_of_empty_responses_ends_the_run(tmp_path):
    def silent(params, prompt, prompt_length, prompt_id, key):
        b = len(prompt)
        tokens = jnp.zeros((b, K, R), jnp.int32).at[..., 0].set(EOS)
        return tokens, jnp.ones((b, K), jnp.int32), jnp.zeros((b, K))

    with pytest.raises(UserError, match=r"online: step 1: wanted at most .* empty .* found 100%"):
        fit(job(tmp_path), sample=silent)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_bad_steps_of_one_player_in_a_row_end_the_game(tmp_path):
    """Good turns of the policy lie between them."""

    def broken(scores, batch):
        return scores.sum(axis=1) * jnp.nan, {}

    with pytest.raises(NumericalError, match=r"2 steps in a row \(1 to 3;"):
        play(job(tmp_path), reward_steps=1, loss=broken)


@pytest.mark.long
@pytest.mark.parametrize("name", LOOPS)
def test_several_devices_give_what_one_gives(name, clean, tmp_path):
    mesh = sharding.make_mesh(2, 2, 1)
    state, counts = LOOPS[name](job(tmp_path, mesh))
    assert counts["compiles"] == clean[name][2]["compiles"]
    alone = stored(clean[name][0], counts["steps"], clean[f"{name} target"])
    both = [(x.policy, x.reward) if name == "play" else (x,) for x in (state, alone)]
    for ours, theirs in zip(*both, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (ours.params, theirs.params)), strict=True):
            # Adam divides what rounding leaves of a gradient, 1e-7, by eps, 1e-2, and moves by a
            # tenth of that in each of up to 9 turns.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_a_reward_model_without_turns_stays_as_it_is(tmp_path):
    settings = job(tmp_path)
    state, counts = play(settings, reward_steps=0)
    assert (counts["steps"], counts["compiles"]) == (STEPS, 2)
    begun = on(settings[0].mesh, start_reward)()
    assert same_bits(state.reward.params, begun)


def part(b, k, p, r, seed, **more):
    rng = np.random.default_rng(seed)
    return Batch(
        prompt=jnp.asarray(rng.integers(2, 9, (b, p)), jnp.int32),
        prompt_length=jnp.full(b, p, jnp.int32),
        response=jnp.asarray(rng.integers(2, 9, (b, k, r)), jnp.int32),
        response_length=jnp.full((b, k), r, jnp.int32),
        weight=jnp.ones(b),
        prompt_id=jnp.arange(b),
        **more,
    )


def test_rows_of_the_reward_model():
    golden, sampled, pairs = part(2, 1, 3, 5, 0), part(2, 3, 3, 4, 1), part(1, 2, 4, 6, 2)
    rows = on_policy_game.comparisons(golden, sampled, pairs)
    assert (rows.prompt.shape, rows.response.shape) == ((3, 4), (3, 4, 6))
    assert rows.prompt[:2, 0].tolist() == [0, 0]
    np.testing.assert_array_equal(rows.prompt[:2, 1:], golden.prompt)
    np.testing.assert_array_equal(rows.response[:2, 0, :5], golden.response[:, 0])
    np.testing.assert_array_equal(rows.response[:2, 1:, :4], sampled.response)
    np.testing.assert_array_equal(rows.response[2, :2], pairs.response[0])
    assert rows.response_length.tolist() == [[5, 4, 4, 4], [5, 4, 4, 4], [6, 6, 0, 0]]
    assert rows.scores.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert rows.adversarial.tolist() == [True, True, False]
    scored = dataclasses.replace(pairs, scores=jnp.array([[0.2, 0.7]]))
    rows = on_policy_game.comparisons(golden, sampled, scored)
    np.testing.assert_allclose(rows.scores[2], [0.2, 0.7, 0, 0])


LORA = LoraConfig(rank=2, alpha=4.0)


def both_steps(policy, reward, base, *, thin):
    """A turn of each player on fixed samples: their scalars, states, and bytes of arguments."""

    def forward(of, live):
        parts = dict(forward=of, config=LORA, live=live)
        return functools.partial(with_adapters, **parts) if thin else of

    its = opponent(sharding.make_mesh(1, 1, 1)).learner.update
    own = job(None)[1].update
    its = dataclasses.replace(its, forward=forward(reward_scores, False))
    own = dataclasses.replace(own, forward=forward(score, True))
    state = GameState(
        policy=init_state(policy, OPTIMIZER, KEY), reward=init_state(reward, OPTIMIZER, KEY)
    )
    scores = jnp.tile(jnp.array([1.0, 0.0, 0.0]), (B, 1))
    batch = part(B, K, P, R, 0, scores=scores, adversarial=jnp.arange(B) % 2 == 0)
    steps = {
        "reward": functools.partial(game.reward_step, update=its),
        "policy": functools.partial(game.policy_step, update=own, reward=its),
    }
    found = {}
    for name, step in steps.items():
        program = jax.jit(step).lower(state, base, batch).compile()
        size = program.memory_analysis().argument_size_in_bytes
        found[name] = (*program(state, base, batch), size)
    return state, batch, found


def test_players_of_adapters_start_as_whole_networks_do_beside_one_base():
    """Both losses, the scores and the norm of the head's gradient; the base is there once."""
    base, key = start(), jax.random.key(5)
    head = {"kernel": jax.random.normal(key, (16, 1))}
    thin = lora.init(LORA, base, key)
    _, _, whole = both_steps(base, {**start_reward(), "reward": head}, base, thin=False)
    state, batch, found = both_steps(thin, {**thin, "reward": head}, base, thin=True)
    for name in ("reward", "policy"):
        for scalar in {"loss", "scores", "num_tokens"} & set(found[name][1]):
            np.testing.assert_allclose(found[name][1][scalar], whole[name][1][scalar], rtol=1e-5)
        moved = getattr(found[name][0], name).params
        still = jax.tree.map(np.array_equal, moved, getattr(state, name).params)
        assert not any(jax.tree.leaves([x["lora_b"] for x in still["layers"].values()]))
        # Beside the states and the rows one network, though both players run through it.
        size = sum(x.nbytes for x in jax.tree.leaves(base))
        mine, rows = (
            [x for x in jax.tree.leaves(y) if hasattr(x, "nbytes")] for y in (state, batch)
        )
        most = size + sum(x.nbytes for x in mine) + sum(x.nbytes for x in rows)
        assert size < found[name][2] <= most + 64
    assert same_bits(base, start())
