"""The game step by step as a run: what it measures and leaves, what resumes, what is refused.

Whole runs are slow; the loop itself is in online_test.
"""

import dataclasses
import functools
import json

import pytest

from alignjax import recipes
from alignjax.commands import export, finished_run
from alignjax.config import OptimConfig, ReferenceConfig, SamplingConfig, TrainConfig
from alignjax.errors import UserError
from alignjax.losses import apo
from alignjax.recipes import StepsConfig
from alignjax.rewards import reward_models
from alignjax.runtime import checkpoint, metrics
from alignjax.runtime.faults import FaultError
from alignjax.training import optim
from alignjax.world import sources as world
from tests import runs, used

STEPS = 3  # of the policy; with two of the reward model before each, 9 turns


def judge(prompt, response):
    """Something that the texts of a network of two steps differ in."""
    return {"es": float(response.count("e")), "length": float(len(response))}


def config(**changes):
    settings = dict(
        golden=functools.partial(world.golden, size=60, seed=0),
        policy_fraction=0.4,
        sampling=SamplingConfig(samples=2, max_new_tokens=4, batch_size=8),
        max_empty_fraction=0.9,
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(steps=2, batch_size=4),
        reward_steps=2,
        policy_steps=1,
    )
    base = runs.changed("data.source.size=60", "sft.steps=2", f"train.steps={STEPS}")
    return dataclasses.replace(
        base,
        train=dataclasses.replace(base.train, batch_size=4, save_every=2, log_every=1),
        evaluate=dataclasses.replace(base.evaluate, judge=judge, prompts=4),
        loss=functools.partial(apo.loss, beta=0.1),
        reward_loss=functools.partial(apo.reward_loss, sample_weight=0.5),
        recipe=functools.partial(recipes.play_steps, game=StepsConfig(**{**settings, **changes})),
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("game")
    return workdir, recipes.run_config(config(), workdir)


def test_both_players_are_measured_before_and_after(clean):
    workdir, summary = clean
    assert summary["steps"] == 3 * STEPS
    before, after = summary["rounds"]
    assert "es" in before["policy"]
    assert {"pairs", "samples"} <= set(after["reward_model"])
    assert str(before["reward_model"]) == str(before["base"])  # NaNs among them
    assert after["reward_model"] != after["base"]
    steps = [float.fromhex(x["step"]) for x in runs.lines(workdir)]
    assert steps == list(range(1, 10))


def test_a_line_holds_nothing_of_the_player_who_is_idle(clean):
    lines = metrics.read(clean[0] / "metrics.jsonl")
    of_any = {"step", "data_wait_seconds", "train_seconds"}
    for turn, line in enumerate(lines):
        told = {name for name in line if name not in of_any}
        if turn % 3 < 2:  # the reward model's
            assert {"reward_model/loss", "reward_model/learning_rate"} <= told
            assert all(name.startswith("reward_model/") for name in told)
        else:
            assert {"loss", "scores", "learning_rate", "epoch", "prompts_per_second"} <= told
            assert not any(name.startswith("reward_model/") for name in told)


def test_what_it_leaves_can_be_used(clean, tmp_path):
    workdir, _ = clean
    ended = json.loads((workdir / "players.json").read_text())
    policy = finished_run.load_policy(config(), str(workdir))
    assert checkpoint.tree_digest(policy) == ended["policy"]
    reward = workdir / "reward"
    assert reward_models.find(str(reward)).digest == ended["reward"]
    for name in ("", "reward"):
        export.export(str(workdir / name), str(tmp_path / f"exported{name}"))
    said = used.samples(used.run_of(config(), workdir), used.exported(tmp_path / "exported"))
    wanted = used.texts_and_nats(workdir / "round-1" / "samples.json")
    assert used.texts_and_nats(said) == wanted
    assert used.generated(config(), workdir, tmp_path / "a.jsonl") == used.written(wanted)
    used.assert_scores_alike(tmp_path / "exportedreward", reward)
    assert f"{3 * STEPS} steps" in (tmp_path / "exportedreward" / "README.md").read_text()


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_bits(clean, tmp_path, monkeypatch):
    """After turn 4, in the middle of the reward model's two; on_policy_test stops at every turn."""
    wanted, summary = clean
    stop = 4
    monkeypatch.setenv("ALIGNJAX_FAULT", f"step:game-{stop + 1}=raise")
    with pytest.raises(FaultError):
        recipes.run_config(config(), tmp_path)
    found = recipes.run_config(config(), tmp_path)
    assert found["resumed_from"] == stop
    for name in ("players.json", "history.json"):
        assert (tmp_path / name).read_bytes() == (wanted / name).read_bytes()
    assert runs.lines(tmp_path) == runs.lines(wanted)
    assert found["table"] == summary["table"]


def test_a_reference_without_new_samples_is_refused():
    with pytest.raises(UserError, match=r"reference.mode: wanted auto or live .* found 'cache'"):
        dataclasses.replace(config(), reference=ReferenceConfig(mode="cache"))
