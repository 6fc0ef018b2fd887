"""What whole runs and PEFT's library make of exports: adapters, and a reward model from its run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from alignjax.commands import export
from alignjax.data.records import Record
from alignjax.losses import bradley_terry
from alignjax.models import lora, reward_head
from alignjax.models.config import LoraConfig
from alignjax.models.hf import configjson, load, tensorfile
from alignjax.models.hf.families import tensor_name
from alignjax.models.hf.peft import PREFIX, save_adapters
from alignjax.models.hf.save import save_model
from alignjax.recipes import reward_model
from alignjax.rewards import scorers
from alignjax.runtime import checkpoint, sharding
from alignjax.stages import pretrained
from tests import runs
from tests.parity.live import HERE, PYTHON, ask
from tests.parity.parity_test import CLOSE, answers, as_batch, compare, loaded

LORA = LoraConfig(rank=3, alpha=6.0)


def read_adapters(folder, config):
    """Our tree of the adapters that PEFT wrote."""
    tensors = tensorfile.read_header(folder / "adapter_model.safetensors")

    def stacked(name, letter):
        module = tensor_name(f"layers/{name}/kernel", config).removesuffix("weight")
        names = [f"{PREFIX}{module.format(i)}lora_{letter}.weight" for i in range(config.layers)]
        return np.stack([tensors[name].open().T for name in names])

    layers = {n: {"lora_a": stacked(n, "A"), "lora_b": stacked(n, "B")} for n in LORA.targets}
    return tensors, {"layers": layers}


def test_an_adapter_file_is_the_one_that_peft_writes(reference, tmp_path):
    config, _ = loaded(reference / "qwen2")
    tensors, adapters = read_adapters(reference / "peft", config)
    save_adapters(tmp_path, adapters, LORA, config, "qwen2")
    found = tensorfile.read_header(tmp_path / "adapter_model.safetensors")
    assert set(found) == set(tensors)
    for name, wanted in tensors.items():
        assert found[name].shape == wanted.shape, name
        np.testing.assert_array_equal(found[name].open(), wanted.open())
    said, told = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (tmp_path, reference / "peft")
    )
    told["base_model_name_or_path"] = "qwen2"  # there it has no folder
    for key, value in said.items():
        assert told[key] == value if key != "target_modules" else set(told[key]) == set(value), key


def test_the_network_with_adapters_is_that_of_peft(reference, tmp_path):
    """Beside the base and merged into it; live, PEFT loads what is exported here."""
    config, params = loaded(reference / "qwen2")
    _, adapters = read_adapters(reference / "peft", config)
    found = answers(reference / "peft")
    joined = lora.join(params, jax.tree.map(np.asarray, adapters), LORA)
    merged = lora.merge(params, adapters, LORA)
    for network in (joined, merged):
        compare(config, network, found)
    with pytest.raises(AssertionError):
        compare(config, params, found)
    if not PYTHON:
        return
    save_adapters(tmp_path, adapters, LORA, config, str(reference / "qwen2"))
    given = reference / "peft" / "answers.npz"
    ask("adapted", "-", tmp_path, given, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as theirs:
        compare(config, joined, {**found, **theirs})
        merged_theirs = {name: theirs[f"merged_{name}"] for name in ("logits", "logps")}
        compare(config, merged, {**found, **merged_theirs})
    # a merged export is a model like any other
    original = load.read_json(reference / "qwen2" / "config.json")
    whole = tmp_path / "whole"
    whole.mkdir()
    save_model(whole, merged, config, dtype="float32", original=original)
    ask("logits", whole, given, tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz") as theirs:
        compare(config, joined, {**found, **theirs})


def test_adapters_of_a_reward_model_have_its_head(reference, tmp_path):
    config, params = loaded(reference / "qwen2")
    _, adapters = read_adapters(reference / "peft", config)
    head = np.random.default_rng(5).normal(size=(config.width, 1)).astype(np.float32)
    adapters["reward"] = {"kernel": head}
    save_adapters(tmp_path, adapters, LORA, config, str(reference / "qwen2"))
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (told["task_type"], told["modules_to_save"]) == ("SEQ_CLS", ["score"])
    base = reward_head.from_language_model(params)
    found = answers(reference / "peft")
    networks = lora.join(base, adapters, LORA), lora.merge(base, adapters, LORA)
    ours, merged = (
        reward_head.score_responses(x, as_batch(found), config=config) for x in networks
    )
    np.testing.assert_allclose(ours, merged, **CLOSE)
    if PYTHON:
        given = reference / "peft" / "answers.npz"
        ask("adapted", reference / "qwen2", tmp_path, given, tmp_path / "out.npz")
        with np.load(tmp_path / "out.npz") as theirs:
            np.testing.assert_allclose(ours, theirs["scores"][..., 0], **CLOSE)
            np.testing.assert_allclose(ours, theirs["merged_scores"][..., 0], **CLOSE)


@pytest.mark.slow
def test_a_reward_model_s_run_is_exported_bit_for_bit(tmp_path):
    policy = runs.changed(
        "train.steps=3", "sft.steps=1", "data.source.size=120", "data.pad_multiple=8"
    )
    evaluate = dataclasses.replace(policy.evaluate, judge=None)
    config = dataclasses.replace(
        policy, loss=None, reward_loss=bradley_terry.reward_loss, evaluate=evaluate
    )
    run, to = tmp_path / "run", tmp_path / "rm"
    reward_model.run(config, run)
    export.export(str(run), str(to))
    shape = load.read_config(to, reward=True)
    assert configjson.labels(load.read_json(to / "config.json"), "") == ("reward",)
    target = pretrained.target(shape, sharding.make_mesh(1, 1, 1), objectives=1)
    params = load.load_params(to, target, shape)
    kept = checkpoint.load_params(run / "params", target)
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    assert np.abs(params["reward"]["kernel"]).max() > 0
    # Short ones: the run cuts texts to its own limits, a folder from elsewhere has none.
    records = [Record(id="a", origin="", prompt="How?", responses=("A plan.", "No.", "Maybe so."))]
    ours, again = (scorers.reward_model(records, path=str(x), batch_size=1) for x in (run, to))
    jax.tree.map(np.testing.assert_array_equal, ours, again)
    if PYTHON:
        given = HERE / "data" / "llama2" / "answers.npz"
        ask("logits", to, given, tmp_path / "out.npz")
        found = reward_head.score_responses(params, as_batch(answers(given.parent)), config=shape)
        with np.load(tmp_path / "out.npz") as theirs:
            np.testing.assert_allclose(found, theirs["scores"][..., 0], **CLOSE)
            assert tuple(theirs["names"]) == ("reward",)
