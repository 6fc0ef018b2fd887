"""Games whose players are adapters beside one base: what moves, what is kept, what is exported."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from alignjax import recipes
from alignjax.commands import export, finished_run
from alignjax.config import ReferenceConfig
from alignjax.errors import UserError
from alignjax.losses import apo
from alignjax.models import lora, reward_head
from alignjax.models.config import LoraConfig
from alignjax.models.hf import load, tensorfile
from alignjax.recipes.apo import setup
from alignjax.rewards import reward_models
from alignjax.runtime import checkpoint, sharding, storage, stores
from alignjax.stages import pretrained
from tests import runs
from tests.recipes.apo import rounds_test, stepwise_test

pytestmark = pytest.mark.long

LORA = LoraConfig(rank=2, alpha=8.0)
THIN = LoraConfig(rank=2, alpha=8.0, dropout=0.1, quantize="nf4")
MESH = sharding.make_mesh(1, 1, 1)


def rounds():
    """Two rounds against the policy of the round before, which each step scores."""
    live = ReferenceConfig(mode="live")
    parts = dict(lora=LORA, loss=partial(apo.loss, beta=0.1), select=None, reference=live)
    return rounds_test.config("train.log_every=1", **parts)


def steps():
    small = dataclasses.replace(stepwise_test.config(), lora=THIN)
    return dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, prompts=0))


@pytest.fixture(scope="module")
def of_rounds(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rounds") / "w"
    return workdir, recipes.run_config(rounds(), workdir)


@pytest.fixture(scope="module")
def of_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("steps") / "w"
    return workdir, recipes.run_config(steps(), workdir)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def policy(workdir, number):
    return setup.load_trained(rounds(), workdir / f"round-{number}" / "policy", MESH)


def reward(folder):
    return setup.load_trained(rounds(), folder, MESH, objectives=1)


def test_each_round_s_policy_goes_on_and_its_reward_model_begins_beside_the_base(of_rounds):
    """The policy at its first step is the reference: that of the round before, adapters and all."""
    workdir, _ = of_rounds
    base = runs.supervised(workdir, rounds())
    for number in (1, 2):
        lines = runs.lines(workdir / f"round-{number}" / "policy")
        kl = [float.fromhex(line["kl"]) for line in lines]
        assert abs(kl[0]) < 1e-5 < abs(kl[1])
    told = [read(workdir / f"round-{n}/policy/summary.json") for n in (1, 2)]
    assert told[1]["key"]["start"] == told[1]["key"]["reference"] == told[0]["params"]
    whole = lora.join(base, policy(workdir, 2), LORA)
    assert told[1]["params"] == checkpoint.tree_digest(whole)
    assert set(policy(workdir, 2)) == {"layers"}  # and nothing else: it is read exactly so
    first, second = policy(workdir, 1), policy(workdir, 2)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), first, second)
    assert min(jax.tree.leaves(moved)) > 0
    assert np.abs(reward(workdir / "round-2" / "reward")["reward"]["kernel"]).max() > 0
    with stores.open_store(workdir / "round-2/policy/checkpoints", keep=9) as store:
        record = checkpoint.read_record(store, stores.latest(store))
    assert record["identity"]["base"] == checkpoint.tree_digest(base)


def test_both_players_of_rounds_are_exported(of_rounds, tmp_path):
    workdir, _ = of_rounds
    config, base = rounds(), runs.supervised(workdir, rounds())
    export.export(str(workdir), str(tmp_path / "policy"))
    model = dataclasses.replace(config.model, path=str(tmp_path / "policy"))
    jax.tree.map(
        np.testing.assert_array_equal,
        pretrained.load(model, MESH),
        lora.merge(base, policy(workdir, 2), LORA),
    )
    assert (
        checkpoint.tree_digest(finished_run.load_policy(config, str(workdir)))
        == read(workdir / "round-2/policy/summary.json")["params"]
    )
    merged = lora.merge(
        reward_head.from_language_model(base), reward(workdir / "round-2/reward"), LORA
    )
    export.export(str(workdir / "round-2" / "reward"), str(tmp_path / "reward"))
    exported = load.find_tensors(tmp_path / "reward")
    np.testing.assert_array_equal(exported["score.weight"].open().T, merged["reward"]["kernel"])
    found = reward_models.find(str(workdir / "round-2" / "reward"))
    jax.tree.map(np.testing.assert_array_equal, reward_models.load_params(found, MESH), merged)


def test_adapters_alone_are_exported_where_others_have_their_base(of_rounds, tmp_path):
    """As for a run from a model of a folder: both players' own files, as PEFT names them."""
    workdir = shutil.copytree(of_rounds[0], tmp_path / "w")
    for folder, last in ((workdir, "down_proj.lora_A"), (workdir / "round-2/reward", "score")):
        content = read(folder / "config.json")
        content["model"]["path"], content["sft"] = "elsewhere", None
        storage.keep_json(folder / "config.json", content)
        out = tmp_path / f"peft-{folder.name}"
        export.export(str(folder), str(out), adapter=True)
        names = tensorfile.read_header(out / "adapter_model.safetensors")
        assert [name for name in names if last in name], names


def test_in_one_loop_both_train_adapters_beside_a_quantised_base(of_steps):
    """The base stays as it was, and both players can be used."""
    workdir, summary = of_steps
    ended, config = read(workdir / "players.json"), steps()
    base = pretrained.supervised(config.model, workdir, MESH, "nf4")()
    with stores.open_store(workdir / "checkpoints", keep=9) as store:
        record = checkpoint.read_record(store, stores.latest(store))
        names = ocp.checkpointables_metadata(store.directory / str(summary["steps"])).metadata[
            "state"
        ]
    assert record["identity"]["reference"] == checkpoint.tree_digest(base)
    assert set(names["policy"]["params"]) == {"layers"}
    assert set(names["reward"]["params"]) == {"layers", "reward"}
    found = finished_run.load_policy(config, str(workdir))
    assert checkpoint.tree_digest(found) == ended["policy"]
    thin = setup.load_trained(config, workdir / "reward", MESH, objectives=1)
    merged = lora.merge(reward_head.from_language_model(base), thin, THIN)
    kept = reward_models.load_params(reward_models.find(str(workdir / "reward")), MESH)
    assert checkpoint.tree_digest(kept) == checkpoint.tree_digest(merged) == ended["reward"]
    assert np.abs(thin["reward"]["kernel"]).max() > 0


@pytest.mark.parametrize("make", [rounds, steps])
def test_adapters_go_on_from_no_reward_model_of_another_base(make):
    config = make()
    game = dataclasses.replace(config.recipe.keywords["game"], reward_model="runs/rm")
    if make is rounds:
        dataclasses.replace(config, recipe=partial(recipes.play_rounds, game=game))  # scores alone
        game = dataclasses.replace(game, sequential=True)
    recipe = partial(config.recipe.func, game=game)
    with pytest.raises(UserError, match=r"recipe\.game\.reward_model: wanted none with lora"):
        dataclasses.replace(config, recipe=recipe)
