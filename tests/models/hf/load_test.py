"""Folders that are wrong in one place: all of it said in one line, and nothing opened or run."""

import dataclasses
import json
import os
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load, tensorfile
from alignjax.models.hf.save import save_model
from alignjax.runtime import artifacts, sharding
from alignjax.stages import pretrained
from tests import tiny

DATA = pathlib.Path(__file__).resolve().parents[2] / "parity" / "data"


@pytest.fixture
def folder(tmp_path):
    """A good folder of a small Llama, to spoil."""
    to = tmp_path / "model"
    shutil.copytree(DATA / "llama2", to)
    return to


def rewrite(folder, change):
    """Writes the folder's tensors anew after ``change(name -> array)``."""
    file = folder / "model.safetensors"
    arrays = {name: np.array(x.open()) for name, x in tensorfile.read_header(file).items()}
    change(arrays)
    tensorfile.write(file, [(n, x.dtype, x.shape, lambda x=x: x) for n, x in arrays.items()])


def read(folder, mesh=None, **changes):
    config = load.resolve(ModelConfig(path=str(folder), **changes))
    mesh = mesh or sharding.make_mesh(1, 1, 1)
    return load.load_params(folder, pretrained.target(config, mesh), config)


def refused(folder, *said):
    with pytest.raises(UserError) as error:
        read(folder)
    line = str(error.value)
    assert "\n" not in line
    for text in said:
        assert text in line, line


def test_every_tensor_that_does_not_fit_is_listed(folder):
    def change(arrays):
        del arrays["model.norm.weight"]
        arrays["model.layers.0.self_attn.surprise"] = np.zeros(3, np.float32)
        arrays["model.layers.1.mlp.up_proj.weight"] = arrays["model.layers.1.mlp.up_proj.weight"].T
        arrays["lm_head.weight"] = np.zeros((60, 16), np.float32)
        arrays["model.layers.0.mlp.down_proj.weight"] = np.zeros((16, 24), np.int8)

    rewrite(folder, change)
    refused(
        folder,
        f"{folder}: 5 tensors do not fit config.json",
        "model.norm.weight: wanted a float [16], found none",
        "model.layers.0.self_attn.surprise: wanted none, found F32 [3]",
        "model.layers.1.mlp.up_proj.weight: wanted a float [24, 16], found BF16 [16, 24] (transp",
        "lm_head.weight: wanted a float [64, 16], found F32 [60, 16]",
        "model.layers.0.mlp.down_proj.weight: wanted a float [16, 24], found I8 [16, 24]",
    )


def test_a_config_that_disagrees_with_the_tensors_is_refused(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "num_key_value_heads": 2}))
    refused(folder, "4 tensors", "model.layers.1.self_attn.v_proj.weight: wanted a float [8, 16]")


def test_mixed_dtypes_are_read_exactly(folder):
    rng = np.random.default_rng(0)
    kinds = [jnp.bfloat16, np.float16, np.float32]
    kept = {}

    def change(arrays):
        for i, name in enumerate(arrays):
            arrays[name] = rng.normal(size=arrays[name].shape).astype(kinds[i % 3])
        kept.update(arrays)

    rewrite(folder, change)
    params = read(folder)
    found = {x.dtype for x in tensorfile.read_header(folder / "model.safetensors").values()}
    assert found == {"BF16", "F16", "F32"}
    np.testing.assert_array_equal(params["head"], kept["lm_head.weight"].astype(np.float32))
    for i in range(2):
        name = f"model.layers.{i}.self_attn.k_proj.weight"
        kernel = params["layers"]["k"]["kernel"][i]
        np.testing.assert_array_equal(kernel, kept[name].astype(np.float32).T)


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("model.layers.1.mlp.up_proj.weight", np.nan, np.float32),
        ("model.norm.weight", -np.inf, jnp.bfloat16),
        ("lm_head.weight", 1e39, np.float64),  # no float32
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(folder, name, value, dtype):
    def change(arrays):
        arrays[name] = arrays[name].astype(dtype)
        arrays[name].reshape(-1)[-1] = value

    rewrite(folder, change)
    refused(
        folder, f"{folder}/model.safetensors: tensor {name!r}: holds numbers that are not finite"
    )


def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "llama32", folder)

    def store(arrays):
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
        arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    rewrite(folder, store)
    params = read(folder)
    assert "head" not in params

    def retype(arrays):  # an exported head may have another type, rounded or not
        arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.float16)
        arrays["model.embed_tokens.weight"] = arrays["lm_head.weight"].astype(np.float32)

    rewrite(folder, retype)
    assert "head" not in read(folder)

    def widen(arrays):
        arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"] * (1 + 2**-20)

    rewrite(folder, widen)
    assert "head" not in read(folder)

    def only_head(arrays):
        arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")

    shutil.copy(folder / "model.safetensors", folder / "both")
    rewrite(folder, only_head)
    found = read(folder)["embed"]["embedding"]
    np.testing.assert_allclose(found, params["embed"]["embedding"], rtol=1e-2)
    (folder / "both").rename(folder / "model.safetensors")
    rewrite(folder, lambda arrays: arrays.update({"lm_head.weight": arrays["lm_head.weight"] * 2}))
    refused(folder, "config.json ties the head to the embedding, and lm_head.weight differs")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "m.pkl"])
def test_pickles_are_not_opened(folder, name):
    canary = folder.parent / "canary"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    refused(folder, f"{folder}: {name} is a pickle, which can run code, and is not opened")
    assert not canary.exists()
    (folder / name).unlink()
    refused(folder, "wanted model.safetensors or model.safetensors.index.json, found neither")


def index(folder, weight_map):
    (folder / load.INDEX).write_text(json.dumps({"weight_map": weight_map}))


SHARD = "model-00001-of-00001.safetensors"


def shard(folder):
    """The one file under a shard's name, for an index to name."""
    return (folder / "model.safetensors").rename(folder / SHARD)


def names(folder, file=SHARD):
    return dict.fromkeys(tensorfile.read_header(next(folder.glob("model*.safetensors"))), file)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "link", "\\x"]
)
def test_an_index_stays_in_its_folder(folder, name):
    shutil.copy(shard(folder), folder.parent / "secret.safetensors")
    (folder / "link").symlink_to(folder.parent / "secret.safetensors")
    index(folder, {**names(folder), "model.norm.weight": name})
    refused(folder, f"{folder}: {name!r}: shard path leaves the model directory")


def test_links_of_a_hub_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in (DATA / "llama2").iterdir():
        shutil.copy(file, blobs / f"hash-of-{file.name}")
        (snapshot / file.name).symlink_to(pathlib.Path("../../blobs") / f"hash-of-{file.name}")
    jax.tree.map(np.testing.assert_array_equal, read(snapshot), read(DATA / "llama2"))


def test_a_single_file_beside_an_index_is_read_as_transformers_does(folder, caplog):
    wanted = read(folder)
    index(folder, dict.fromkeys(names(folder), "an-older-one.safetensors"))
    with caplog.at_level("INFO", logger="alignjax"):
        jax.tree.map(np.testing.assert_array_equal, read(folder), wanted)
    assert f"{folder}: reading model.safetensors; ignoring the files that" in caplog.text
    shard(folder)
    refused(folder, "'an-older-one.safetensors': the index names this file, but it is missing")


def test_an_index_agrees_with_its_files(folder):
    shard(folder)
    index(folder, {**names(folder), "model.more": SHARD})
    refused(folder, f"'model.more': wanted in {SHARD}, found in none: the index does not match")
    shutil.copy(folder / SHARD, folder / "second.safetensors")
    index(folder, {**names(folder), "model.norm.weight": "second.safetensors"})
    refused(folder, "second.safetensors: tensor", "is also in")
    index(folder, ["model.safetensors"])
    refused(folder, "weight_map: wanted a file name for each tensor")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "wanted a JSON object, found list"),
        ("[" * 10**5, "not valid JSON"),
        (" " * (load.MAX_JSON + 1), "wanted at most 16 MiB"),
    ],
    ids=["cut", "list", "deep", "large"],
)
def test_a_config_that_is_no_config(folder, text, said):
    (folder / "config.json").write_text(text)
    refused(folder, f"{folder}/config.json: {said}")


def test_remote_code_is_ignored_and_said(folder, caplog):
    canary = folder.parent / "canary"
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')")
    content = json.loads((folder / "config.json").read_text())
    content["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING", "alignjax"):
        read(folder)
    assert not canary.exists()
    assert f"{folder}/config.json: auto_map is ignored" in caplog.text


def test_the_shape_comes_from_the_folder_and_is_not_contradicted(folder):
    found = load.resolve(ModelConfig(path=str(folder), remat="full", dtype="bfloat16"))
    assert (found.width, found.heads, found.remat, found.dtype) == (16, 4, "full", "bfloat16")
    assert load.resolve(found) == found
    with pytest.raises(UserError, match=r"^model\.width: wanted it unset or 16, as .*found 64$"):
        load.resolve(ModelConfig(path=str(folder), width=64))
    with pytest.raises(UserError, match=r"config\.json: no such file \(no folder "):
        load.resolve(ModelConfig(path=str(folder / "none")))


@pytest.mark.parametrize("family", ["llama2", "qwen2", "gemma2"])
def test_shards_hold_what_one_device_holds(family):
    mesh = sharding.make_mesh(2, 2, 2)
    one, split = read(DATA / family), read(DATA / family, mesh, param_dtype="bfloat16")
    config = load.resolve(ModelConfig(path=str(DATA / family)))
    jax.tree.map(
        lambda x, like: x.sharding == like.sharding or pytest.fail(str(x.sharding)),
        split,
        pretrained.target(config, mesh),
    )
    kernel = split["layers"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), one, split)


@pytest.mark.parametrize("devices", [(1, 1, 1), (1, 2, 4)])
def test_large_tensors_are_read_some_rows_at_a_time(devices, monkeypatch):
    wanted = read(DATA / "llama2")
    written = []
    writer = load._writer
    monkeypatch.setattr(load, "PIECE", 5 * 16 * 4 * devices[2])  # 5 rows of a device's share
    monkeypatch.setattr(load, "_writer", lambda *x: written.append(x) or writer(*x))
    split = read(DATA / "llama2", sharding.make_mesh(*devices))
    jax.tree.map(np.testing.assert_array_equal, split, wanted)
    stacked = 9 * 2
    assert len(written) == stacked + 2 * -(-64 // devices[2] // 5)  # embedding and head


def test_half_an_export_is_no_folder(tmp_path, monkeypatch):
    config = tiny.model()
    params = tiny.params(config)
    to = tmp_path / "out"

    def export():
        with artifacts.new_folder(str(to)) as made:
            save_model(made, params, config, dtype="float32", original={}, shard_bytes=2**14)

    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"^{re.escape(str(to))}: .*No space left"):
        export()
    assert list(tmp_path.iterdir()) == []
    export()
    assert sorted(tmp_path.iterdir()) == [to]
    with pytest.raises(UserError, match="exists already"):
        export()


def test_a_combination_of_no_family_is_not_exported(tmp_path):
    config = dataclasses.replace(tiny.model(), qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match=r"^model: no family of llama, .* has this combination"):
        save_model(tmp_path, tiny.params(config), config, dtype="float32", original={})
    assert list(tmp_path.iterdir()) == []
