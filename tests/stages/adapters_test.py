"""Runs that train adapters: what they keep, going on, sampling, scoring, and what is exported."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from alignjax.commands import export, finished_run, generate
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.losses import bradley_terry
from alignjax.models import lora
from alignjax.models.config import LoraConfig
from alignjax.models.hf import load, tensorfile
from alignjax.recipes import align, reward_model
from alignjax.rewards import reward_models
from alignjax.runtime import checkpoint, sharding, stores
from alignjax.stages import adapters, pretrained
from alignjax.training import optim, step
from tests import runs

pytestmark = pytest.mark.usefixtures("whole_run")

LORA = LoraConfig(rank=2, alpha=8.0, dropout=0.1)


def config(*overrides, **changes):
    small = ("train.steps=4", "sft.steps=2", "evaluate.during=0", "data.source.size=120")
    return dataclasses.replace(runs.changed(*small, *overrides), **{"lora": LORA, **changes})


def state_of(workdir, at, objectives=0):
    """The whole state of a checkpoint, which holds nothing but what adapters need."""

    def start():
        new = adapters.init(LORA, config().model, jax.random.key(0), objectives=objectives)
        return step.init_state(new, optim.make(config().optim, 1), jax.random.key(0))

    shapes = jax.eval_shape(start)
    target = sharding.abstract(shapes, sharding.shard_tree(shapes, sharding.make_mesh(1, 1, 1)))
    with stores.open_store(workdir / "checkpoints", keep=9) as store:
        return checkpoint.restore(store, at, target)


def base_of(workdir):
    return pretrained.supervised(config().model, workdir, sharding.make_mesh(1, 1, 1))()


@pytest.fixture(scope="module")
def base(tmp_path_factory, whole_run):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    return workdir, align.run(config(), workdir)


def test_a_checkpoint_holds_adapters_alone_and_the_base_is_as_it_was(base):
    workdir, summary = base
    state = state_of(workdir, 4)  # refused if anything else were in it
    count = sum(x.size for x in jax.tree.leaves(state.params))
    whole = sum(x.size for x in jax.tree.leaves(base_of(workdir)))
    assert count < whole / 5
    with stores.open_store(workdir / "checkpoints", keep=9) as store:
        record = checkpoint.read_record(store, 4)
    assert record["identity"]["reference"] == checkpoint.tree_digest(base_of(workdir))
    assert all(np.abs(x["lora_b"]).max() > 0 for x in state.params["layers"].values())
    rewards = summary["table"]["rewards/margins"]
    assert rewards["before"]["mean"] == 0
    assert rewards["after"]["mean"] != 0


def test_a_run_that_was_killed_goes_on_bit_for_bit_and_only_beside_its_base(base, tmp_path):
    workdir = tmp_path / "again"
    shutil.copytree(base[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    (workdir / "summary.json").unlink()
    assert align.run(config(), workdir)["resumed_from"] == 3
    assert runs.leaves(state_of(workdir, 4)) == runs.leaves(state_of(base[0], 4))
    other = jax.tree.map(lambda x: x + 0.01, base_of(workdir))
    checkpoint.save_params(workdir / "sft" / "params", other)
    with pytest.raises(UserError, match=r"its adapters need the base \w+, but .*sft.params is"):
        finished_run.load_policy(config(), str(workdir))
    align.run(config(), workdir)  # makes the supervised parameters again: the same
    finished_run.load_policy(config(), str(workdir))


def test_the_policy_that_is_sampled_later_is_the_one_that_was_trained(base, tmp_path):
    workdir, _ = base
    generate.run(config(), str(workdir), str(tmp_path / "said.jsonl"))
    lines = (tmp_path / "said.jsonl").read_text(encoding="utf-8").splitlines()
    found = [text for line in lines for text in json.loads(line)["responses"]]
    after = json.loads((workdir / "after.json").read_text())
    assert found == [s["response"] for s in after["samples"]]
    assert after["key"]["params"] == checkpoint.tree_digest(
        finished_run.load_policy(config(), str(workdir))
    )


def test_merged_weights_and_adapters_are_exported(base, tmp_path):
    """The merged model of one run is the base of the next, whose adapters are PEFT's."""
    workdir, first, run = base[0], tmp_path / "first", tmp_path / "run"
    with pytest.raises(UserError, match="its supervised stage, which is not exported"):
        export.export(str(workdir), str(first), adapter=True)
    export.export(str(workdir), str(first))
    merged = lora.merge(base_of(workdir), state_of(workdir, 4).params, LORA)
    model = dataclasses.replace(config().model, path=str(first))
    found = pretrained.load(model, sharding.make_mesh(1, 1, 1))
    jax.tree.map(np.testing.assert_array_equal, found, merged)

    align.run(config("evaluate.prompts=0", "train.steps=1", model=model, sft=None), run)
    export.export(str(run), str(tmp_path / "second"))
    export.export(str(run), str(tmp_path / "peft"), adapter=True)
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"]) == (2, 8.0)
    assert told["base_model_name_or_path"] == "first"
    read, given = (tokenizers.load(str(tmp_path / x)) for x in ("peft", "second"))
    assert (read.digest, set(read.ends)) == (given.digest, set(given.ends))
    export.export(str(run), str(tmp_path / "named"), adapter=True, base="org/first")
    named = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert named == {**told, "base_model_name_or_path": "org/first"}
    card = (tmp_path / "named" / "README.md").read_text()
    assert 'library_name: peft\nbase_model: "org/first"\n' in card
    assert "AutoPeftModelForCausalLM.from_pretrained" in card
    assert {"q_proj", "o_proj", "down_proj"} < set(told["target_modules"])
    thin = tensorfile.read_header(tmp_path / "peft" / "adapter_model.safetensors")
    before, after = (load.find_tensors(tmp_path / x) for x in ("first", "second"))
    assert len(thin) == 14
    for name, tensor in before.items():
        module = "base_model.model." + name.removesuffix(".weight")
        wanted = tensor.open()
        if f"{module}.lora_A.weight" in thin:
            a, b = (thin[f"{module}.lora_{x}.weight"].open() for x in "AB")
            assert np.abs(b).max() > 0
            wanted = wanted + 4 * b @ a
        np.testing.assert_allclose(after[name].open(), wanted, atol=1e-7)


@pytest.mark.long
def test_a_reward_model_s_adapters_and_head_are_trained(tmp_path):
    evaluate = dataclasses.replace(config().evaluate, judge=None)
    settings = config(loss=None, reward_loss=bradley_terry.reward_loss, evaluate=evaluate)
    summary = reward_model.run(settings, tmp_path / "rm")
    state = state_of(tmp_path / "rm", 4, objectives=1)
    assert np.abs(state.params["reward"]["kernel"]).max() > 0
    found = reward_models.find(str(tmp_path / "rm"))
    params = reward_models.load_params(found, sharding.make_mesh(1, 1, 1))
    assert checkpoint.tree_digest(params) == summary["reward_model"]["params"]
    kernel = base_of(tmp_path / "rm")["layers"]["q"]["kernel"]
    assert np.abs(params["layers"]["q"]["kernel"] - kernel).max() > 0


def test_a_run_without_adapters_has_none_to_export(tmp_path, base):
    content = json.loads((base[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "lora": None}))
    with pytest.raises(UserError, match="has no adapters: its config has no lora"):
        export.export(str(tmp_path), str(tmp_path / "out"), adapter=True)


def test_a_rank_too_large_for_the_model_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match=r"lora\.rank: wanted 32 at most, .* found 33"):
        pretrained.resolve(config(lora=LoraConfig(rank=33)))


@pytest.mark.long
def test_a_quantised_base_is_sampled_trained_beside_and_merged(tmp_path):
    """The policy is the decoded base with its adapters; the export is that network."""
    quantize = dataclasses.replace(LORA, quantize="nf4")
    workdir = tmp_path / "run"
    settings = config("train.steps=2", "data.max_drop_fraction=0.2", lora=quantize)
    align.run(settings, workdir)
    state = state_of(workdir, 2)
    wide = base_of(workdir)
    coded = pretrained.quantize_params(wide, "nf4", sharding.make_mesh(1, 1, 1))
    with stores.open_store(workdir / "checkpoints", keep=9) as store:
        record = checkpoint.read_record(store, 2)
    assert record["identity"]["reference"] == checkpoint.tree_digest(coded)
    assert checkpoint.tree_digest(coded) != checkpoint.tree_digest(wide)
    export.export(str(workdir), str(tmp_path / "out"))
    merged = lora.merge(coded, state.params, quantize)
    model = dataclasses.replace(settings.model, path=str(tmp_path / "out"))
    found = pretrained.load(model, sharding.make_mesh(1, 1, 1))
    jax.tree.map(np.testing.assert_array_equal, found, merged)
    policy = finished_run.load_policy(settings, str(workdir))
    assert policy["layers"]["q"]["kernel"]["codes"].dtype == np.uint8

    # the folder itself as a base: quantised as it is read, parameter by parameter
    mesh = sharding.make_mesh(1, 1, 1)
    streamed = pretrained.load(model, mesh, "int8")
    jax.tree.map(
        np.testing.assert_array_equal, streamed, pretrained.quantize_params(found, "int8", mesh)
    )
