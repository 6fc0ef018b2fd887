"""GGUF files, read as transformers reads them."""

import json
import pathlib

import gguf
import jax
import numpy as np
import pytest

from alignjax.commands.import_model import export_model, import_model
from alignjax.data.records import Message
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer import training
from alignjax.errors import UserError
from alignjax.models.config import RopeScaling
from alignjax.models.hf import load
from tests.parity.live import PYTHON, ask
from tests.parity.parity_test import answers, compare, loaded


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_are_those_of_transformers(name, reference, tmp_path):
    """Of the file, and of the folder that it is imported to."""
    folder = reference / "gguf"
    with np.load(folder / f"{name}.npz") as found:
        inputs = dict(found)
    config, params = loaded(folder / f"{name}.gguf")
    compare(config, params, inputs)
    if name == "llama":
        import_model(str(folder / "llama.gguf"), str(tmp_path / "imported"))
        _, same = loaded(tmp_path / "imported")
        jax.tree.map(np.testing.assert_array_equal, same, params)
        ours = tokenizers.load(str(tmp_path / "imported"))
        assert ours.digest == tokenizers.load(str(folder / "llama.gguf")).digest


def test_token_ids_and_template_are_those_of_transformers(reference):
    found = json.loads((reference / "gguf" / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.load(str(reference / "gguf" / "llama.gguf"))
    for case in found["texts"][:2]:  # in the third, a special token is text of the data
        assert tokenizer.encode(case["text"], ()).prompt_ids.tolist() == case["ids"]
    assert tokenizer.render(tuple(Message(**turn) for turn in found["turns"])) == found["rendered"]
    assert dict(tokenizer.ends) == {2: "chat template, tokenizer, generation_config.json"}


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_transformers_reads_what_is_written_here(kind, reference, tmp_path):
    """Both read the same network from it, and the same ids and texts."""
    if not PYTHON:
        pytest.skip("needs torch and transformers: make test-parity")
    file, out = tmp_path / "written.gguf", tmp_path / "out.npz"
    export_model(str(reference / "story"), str(file), dtype=kind)
    given = reference / "llama2" / "answers.npz"
    ask("logits", file, given, out)
    config, params = loaded(file)
    with np.load(out) as theirs:
        compare(config, params, {**answers(given.parent), **theirs})
    told = json.loads(pathlib.Path(f"{out}.json").read_text(encoding="utf-8"))
    wanted = reference / "tokenizers" / "qwen" / "answers.json"
    assert told == json.loads(wanted.read_text(encoding="utf-8"))


def write(file, arch, fields=(), tensors=()):
    """A file with these fields and tensors, and with the sizes of a small network."""
    writer = gguf.GGUFWriter(str(file), arch)
    sizes = {"block_count": 1, "embedding_length": 32, "feed_forward_length": 64,
             "attention.head_count": 2, "context_length": 64, "vocab_size": 8}  # fmt: skip
    for key, value in sizes.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    for key, value in dict(fields).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, value in dict(tensors).items():
        writer.add_tensor(name, np.asarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_frequencies_of_llama_3_are_found(tmp_path):
    """llama.cpp writes what they are divided by and not the options that give it."""
    scaling = RopeScaling(factor=32.0)
    turns = scaling.original_length / (2 * np.pi * 5e5 ** (np.arange(0, 64, 2) / 64))
    keep = np.clip((turns - 1) / 3, 0, 1)
    fields = {"llama.rope.freq_base": 5e5, "llama.rope.dimension_count": 64}
    divisors = {"rope_freqs.weight": 1 / (keep + (1 - keep) / 32)}
    read = load.read_config(write(tmp_path / "a.gguf", "llama", fields, divisors))
    assert (read.rope_scaling, read.rope_theta, read.head_dim) == (scaling, 5e5, 64)
    divisors = {"rope_freqs.weight": np.linspace(1, 4, 32)}
    with pytest.raises(UserError, match=r"rope_freqs\.weight': wanted a scaling as Llama 3's"):
        load.read_config(write(tmp_path / "b.gguf", "llama", fields, divisors))


@pytest.mark.parametrize(
    ("arch", "fields", "said"),
    [
        ("phi3", {}, "general.architecture: 'phi3' is not supported; llama, qwen2"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count: wanted 0, found 8"),
        ("llama", {"llama.rope.dimension_count": 8}, None),
        ("qwen3", {"qwen3.attention.key_length": 16, "qwen3.rope.dimension_count": 8},
         "qwen3.rope.dimension_count: wanted 16, found 8"),
        ("llama", {"llama.logit_scale": 0.5}, "llama.logit_scale: this field is not supported"),
        ("llama", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
         "rope_scaling: 'yarn' is not supported"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(tmp_path, arch, fields, said):
    file = write(tmp_path / "a.gguf", arch, fields)
    if said is None:
        assert load.read_config(file).head_dim == 8
        return
    with pytest.raises(UserError, match=f"^{file}: {said}"):
        load.read_config(file)


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(9))
    with pytest.raises(UserError, match=r"a\.gguf: not a readable GGUF file"):
        load.read_config(tmp_path / "a.gguf")
    with pytest.raises(UserError, match=r"b\.gguf: cannot be read"):
        load.read_config(tmp_path / "b.gguf")


def test_a_sentencepiece_vocabulary_gives_the_same_ids(tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    path = tmp_path / "t.model"
    training.train_sentencepiece(["how much is it, five"] * 9, vocab_size=320, path=str(path))
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in model.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in model.pieces],
        "tokenizer.ggml.token_type": [int(piece.type) for piece in model.pieces],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
    }
    read = tokenizers.load(str(write(tmp_path / "a.gguf", "llama", fields)))
    wanted = tokenizers.load(str(path))
    for text in (" how much  is it\n", "ünseen 語", "</s> five"):
        found, other = read.encode(text, [text]), wanted.encode(text, [text])
        assert found.prompt_ids.tolist() == other.prompt_ids.tolist()
        assert found.response_ids[0].tolist() == other.response_ids[0].tolist()
        assert read.decode(found.prompt_ids) == text
    pre = {**fields, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "poro"}
    with pytest.raises(UserError, match=r"b\.gguf: tokenizer\.ggml\.pre: 'poro' is not supported"):
        tokenizers.load(str(write(tmp_path / "b.gguf", "llama", pre)))
