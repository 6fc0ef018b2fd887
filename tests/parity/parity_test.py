"""The same numbers, tokens and texts as transformers, family by family.

The answers compared with are committed in ``data/``. With ALIGNJAX_PARITY_PYTHON set to a Python
that has torch and transformers they are made afresh, and transformers loads what is exported here:
``make test-parity``.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from alignjax.config import SamplingConfig
from alignjax.data.records import Message
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson, load
from alignjax.models.hf.save import save_model
from alignjax.models.logps import response_logps
from alignjax.models.transformer import Transformer, unembedding
from alignjax.runtime import sharding
from alignjax.sampling.decode import sample
from alignjax.stages import pretrained
from alignjax.types import Batch
from tests.parity.live import HERE, PYTHON, ask

FAMILIES = sorted(
    p.parent.name for p in (HERE / "data").glob("*/answers.npz") if p.parent.name != "peft"
)
TOKENIZERS = sorted(p.parent.name for p in (HERE / "data" / "tokenizers").glob("*/answers.json"))
# Sums of some tens of float32 products in another order; logits are of order 1.
CLOSE = dict(rtol=0, atol=1e-4)


@functools.cache
def loaded(folder):
    config = load.resolve(ModelConfig(path=str(folder)))
    return config, pretrained.load(config, sharding.make_mesh(1, 1, 1))


def answers(folder):
    with np.load(folder / "answers.npz") as found:
        return dict(found)


def as_batch(found):
    rows = len(found["prompt_length"])
    names = ("prompt", "prompt_length", "response", "response_length")
    return Batch(
        **{name: found[name] for name in names},
        weight=np.ones(rows, np.float32),
        prompt_id=np.arange(rows, dtype=np.int32),
    )


@functools.partial(jax.jit, static_argnames="config")
def ours(params, batch, config):
    """Logits before every response token, and the summed log-probabilities a loss sees."""
    hidden = Transformer(config).apply(
        {"params": params}, batch.prompt, batch.prompt_length, batch.response
    )
    logits = soft_cap(hidden @ unembedding(params, config).T, config.logit_softcap)
    return logits, response_logps(params, batch, config=config)


def compare(config, params, found):
    batch = as_batch(found)
    logits, logps = ours(params, batch, config)
    real = np.arange(batch.response.shape[2]) < batch.response_length[..., None]
    np.testing.assert_allclose(np.asarray(logits)[real], found["logits"][real], **CLOSE)
    np.testing.assert_allclose(logps, found["logps"], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_log_probabilities_and_greedy_tokens(family, reference):
    config, params = loaded(reference / family)
    found = answers(reference / family)
    compare(config, params, found)
    tokens, *_ = sample(
        params,
        found["prompt"],
        found["prompt_length"],
        np.arange(len(found["prompt"]), dtype=np.int32),
        jax.random.key(0),
        config=config,
        settings=SamplingConfig(
            samples=1, max_new_tokens=found["greedy"].shape[1], temperature=0.0
        ),
        eos=(-1,),
    )
    np.testing.assert_array_equal(tokens[:, 0], found["greedy"])


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama32", dict(rope_scaling=None)),
        ("llama2", dict(norm_eps=1e-3)),
        ("mistral", dict(window=5)),
        ("qwen25_window", dict(window=None)),
        ("qwen3", dict(rope_theta=1e5)),
        ("gemma2", dict(attention_softcap=1.6)),
        ("gemma3", dict(full_every=4)),
    ],
)
def test_the_comparison_sees_small_differences(family, change, reference):
    config, params = loaded(reference / family)
    with pytest.raises(AssertionError):
        compare(dataclasses.replace(config, **change), params, answers(reference / family))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_exported_is_read_back_bit_for_bit(family, reference, tmp_path):
    config, params = loaded(reference / family)
    original = load.read_json(reference / family / "config.json")
    save_model(tmp_path, params, config, dtype="float32", original=original, shard_bytes=9000)
    again, same = loaded(tmp_path)
    assert dataclasses.replace(again, path=config.path) == config
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    jax.tree.map(np.testing.assert_array_equal, same, params)
    if PYTHON:
        out = tmp_path / "out.npz"
        ask("logits", tmp_path, reference / family / "answers.npz", out)
        with np.load(out) as found:
            compare(config, params, {**answers(reference / family), **found})


def test_scores_of_a_reward_model(reference, tmp_path):
    folder = reference / "reward"
    content = load.read_json(folder / "config.json")
    assert configjson.labels(content, "") == ("helpful", "harmless", "concise")
    config = load.read_config(folder, reward=True)
    target = pretrained.target(config, sharding.make_mesh(1, 1, 1), objectives=3)
    params = load.load_params(folder, target, config)
    with np.load(folder / "scores.npz") as opened:
        found = dict(opened)
    ours = reward_head.score_responses(params, as_batch(found), config=config)
    np.testing.assert_allclose(ours, found["scores"], **CLOSE)
    outputs = configjson.labels(content, "")
    save_model(tmp_path, params, config, dtype="float32", original=content, outputs=outputs)
    assert load.read_config(tmp_path, reward=True) == config
    jax.tree.map(np.testing.assert_array_equal, load.load_params(tmp_path, target, config), params)
    with pytest.raises(UserError, match="architectures: wanted MistralForCausalLM, found"):
        load.read_config(tmp_path)
    if PYTHON:
        ask("logits", tmp_path, folder / "scores.npz", tmp_path / "out.npz")
        with np.load(tmp_path / "out.npz") as theirs:
            np.testing.assert_allclose(ours, theirs["scores"], **CLOSE)
            assert tuple(theirs["names"]) == outputs


@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_ids_and_templates(name, reference):
    folder = reference / "tokenizers" / name
    found = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.load(str(folder))
    for case in found["texts"]:
        assert tokenizer.encode(case["text"], ()).prompt_ids.tolist() == case["ids"], case
    for case in found["dialogues"]:
        turns = tuple(Message(**turn) for turn in case["turns"])
        assert tokenizer.render(turns).encode() == case["rendered"].encode()
        encoded = tokenizer.encode(turns, [found["reply"]])
        assert encoded.prompt_ids.tolist() == case["ids"]
        whole = [*encoded.prompt_ids, *encoded.response_ids[0]]
        assert whole[-1] in tokenizer.ends
        assert case["whole_ids"][: len(whole)] == whole
        assert not tokenizer.decode(case["whole_ids"][len(whole) :]).strip()
