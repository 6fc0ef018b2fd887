"""Recipes beside the main one by two processes against one: a game, a reward model, fronts."""

import dataclasses
import json
import sys
from functools import partial

import pytest

from alignjax import recipes
from alignjax.config import (
    MeshConfig,
    OptimConfig,
    ReferenceConfig,
    SamplingConfig,
    TrainConfig,
)
from alignjax.losses import apo
from alignjax.recipes.multi_objective import morlhf, soups
from alignjax.runtime import metrics
from alignjax.training import optim
from alignjax.world import sources as world
from tests import runs
from tests.processes import members
from tests.processes.runs_test import read
from tests.recipes import reward_model_test
from tests.recipes.multi_objective import morlhf_test, paretohqd_test

pytestmark = pytest.mark.long

# Both processes do all recipes one after the other: most of what a run costs them is to begin.
SCRIPT = """
    import pathlib, sys

    from alignjax import recipes
    from alignjax.runtime import distributed
    from tests.processes import recipes_test

    distributed.start()
    for make in recipes_test.CONFIGS:
        recipes.run_config(make(), pathlib.Path(sys.argv[1]) / make.__name__)
"""
# Two processes add float32 numbers in another order, and what trains on what was sampled and
# scored builds on it; log-probabilities of whole responses are of order 300 nats.
NEAR = {"rel": 1e-5, "abs": 1e-4}


def judge(prompt, response):
    return {"short": -float(len(response)), "varied": float(len(set(response)))}


def game():
    """One round of two steps of each player, the policy's against a live reference."""
    base = runs.changed(
        *("data.source.size=60", "sft.steps=2", "train.steps=2", "train.save_every=2"),
        *("evaluate.max_new_tokens=5", "mesh.fsdp=2"),
    )
    return dataclasses.replace(
        base,
        loss=partial(apo.loss, beta=0.1),
        reward_loss=apo.reward_loss,
        reference=ReferenceConfig(mode="live"),
        evaluate=dataclasses.replace(base.evaluate, judge=judge),
        recipe=partial(
            recipes.play_rounds,
            game=recipes.RoundsConfig(
                golden=partial(world.golden, size=60, seed=0),
                optim=OptimConfig(learning_rate=1e-2, schedule=optim.constant),
                train=TrainConfig(steps=2, batch_size=8, save_every=2),
                rounds=1,
                sampling=SamplingConfig(samples=3, max_new_tokens=5, batch_size=16),
                max_drop_fraction=0.5,
            ),
        ),
    )


def front():
    """ParetoHqD in two stages for three preferences, as adapters trained side by side."""
    together = partial(paretohqd_test.noted, at_once=3)
    return of_objectives(paretohqd_test.config("mesh.fsdp=2"), method=together)


def soup():
    """Experts by policy gradient on their own samples, and averages of them."""
    config = morlhf_test.config(mesh=MeshConfig(fsdp=2))
    method = partial(soups.train, expert=partial(morlhf.policy, steps=2, max_new_tokens=6))
    return of_objectives(config, method=method, preferences=((1.0, 0.0), (0.5, 0.5)))


def of_objectives(config, **changes):
    objectives = dataclasses.replace(config.recipe.keywords["objectives"], **changes)
    recipe = partial(recipes.trace_front, objectives=objectives)
    return dataclasses.replace(config, recipe=recipe)


def reward_model():
    return reward_model_test.config("mesh.fsdp=2", "train.steps=2")


CONFIGS = (game, reward_model, front, soup)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory, compiled):
    """The folder in which two processes left what each config makes, by its name."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(runs.write(folder / "script.py", SCRIPT)), str(folder)]
    codes, output = members.start(folder, [{}, {}], command, ALIGNJAX_LOST_AFTER="60", **compiled)
    assert codes == [0, 0], output
    return folder


def differences(mine, theirs, at=""):
    """Where two trees of JSON data differ by more than rounding."""
    if type(mine) is not type(theirs):
        return [at]
    if isinstance(theirs, dict):
        names = sorted(mine.keys() | theirs.keys())
        pairs = [(mine.get(n), theirs.get(n), f"{at}/{n}") for n in names]
    elif isinstance(theirs, list):
        pairs = [(*pair, f"{at}/{i}") for i, pair in enumerate(zip(mine, theirs, strict=True))]
    elif isinstance(theirs, float):
        return [] if mine == pytest.approx(theirs, **NEAR, nan_ok=True) else [at]
    else:
        return [] if mine == theirs else [at]
    return [where for pair in pairs for where in differences(*pair)]


def test_differences_are_found():
    one = {"a": [1.0, {"b": "x"}]}
    assert differences({"a": [1.0 + 1e-7, {"b": "x"}]}, one) == []
    assert differences({"a": [1.001, {"b": "y"}]}, one) == ["/a/0", "/a/1/b"]
    assert differences({"c": 1}, one) == ["/a", "/c"]


def lists(folder):
    return [json.loads(line) for line in (folder / "lists.jsonl").read_text().splitlines()]


def test_a_game_in_rounds_by_two_processes(tmp_path, by_two):
    summary = recipes.run_config(game(), tmp_path / "one")
    two = by_two / "game"
    assert summary["rounds"][1]["reward_model"].keys() == {"pairs", "samples", "samples before"}
    assert differences(read(two / "summary.json")["rounds"], summary["rounds"]) == []
    for name in ("reward_lists", "policy_lists"):
        one = lists(tmp_path / "one" / "round-1" / name)
        assert differences(lists(two / "round-1" / name), one) == []


def losses(folder):
    """Every loss of every network that was trained, by the file that tells it."""
    return {
        str(file.relative_to(folder)): [line.get("loss") for line in metrics.read(file)]
        for file in sorted(folder.rglob("metrics.jsonl"))
    }


def test_a_reward_model_by_two_processes(tmp_path, by_two):
    one = tmp_path / "one"
    recipes.run_config(reward_model(), one)
    two = by_two / "reward_model"
    assert differences(losses(two), losses(one)) == []
    found, wanted = (read(w / "summary.json") for w in (two, one))
    for name in ("table", "calibration"):
        assert differences(found[name], wanted[name], name) == []
    assert wanted["table"]


@pytest.mark.parametrize("config", [front, soup])
def test_a_front_by_two_processes(config, tmp_path, by_two):
    one = tmp_path / "one"
    recipes.run_config(config(), one)
    two = by_two / config.__name__
    trained = losses(one)
    assert len(trained) > 1
    assert differences(losses(two), trained) == []
    found, wanted = (read(w / "front.json") for w in (two, one))
    for part in ("scores", "collapsed", "prompts", "reference"):
        assert differences(found[part], wanted[part], part) == []
    samples = sorted((one / "samples").glob("*.json*"))
    assert samples
    for file in samples:
        assert differences(read(two / "samples" / file.name), read(file), file.name) == []
    if config is front:
        assert differences(*(read(w / "stage2.json") for w in (two, one))) == []
