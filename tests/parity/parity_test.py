"""The same numbers, tokens and texts as transformers, family by family.

The answers compared with are committed in ``data/``. With ALIGNJAX_PARITY_PYTHON set to a Python
that has torch and transformers they are made afresh, and transformers loads what is exported here:
``make test-parity``.
"""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from alignjax.commands import model_card
from alignjax.config import SamplingConfig
from alignjax.data.records import Message, Record
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.attention import soft_cap
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson, load
from alignjax.models.hf.save import save_model
from alignjax.models.logps import response_logps
from alignjax.models.transformer import Transformer, unembedding
from alignjax.rewards import reward_models, scorers
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


@pytest.mark.parametrize("labels", [1, 2])
def test_a_classifier_scores_dialogues_as_transformers_does(labels, reference, tmp_path, caplog):
    """At the last token that is not padding; of two labels by how far the second is preferred.

    And the code in the card of an exported one scores them as alignjax does.
    """
    caplog.set_level("INFO", "alignjax")
    folder = reference / f"labels{labels}"
    rows = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    turns = [tuple(Message(**turn) for turn in row["turns"]) for row in rows]
    records = [
        Record(id=str(i), origin="", prompt=turns[i], responses=(row["reply"],))
        for i, row in enumerate(rows)
    ]
    found = np.concatenate(scorers.reward_model(records, path=str(folder)))
    outputs = np.array([row["outputs"] for row in rows])
    wanted = outputs[:, 0] if labels == 1 else outputs[:, 1] - outputs[:, 0]
    np.testing.assert_allclose(found, wanted, **CLOSE)
    said = "a score is the logit of 'LABEL_1' minus that of 'LABEL_0'"
    assert (said in caplog.text) == (labels == 2)
    if not PYTHON or labels == 2:
        return
    exported = tmp_path / "exported"
    shutil.copytree(folder, exported)
    tokenizer, limits = tokenizers.load(str(folder)), dict.fromkeys(reward_models.LIMITS, 128)
    (exported / reward_models.OURS).write_text(json.dumps(limits))
    config = load.read_json(exported / "config.json")
    padding = tokenizer.specials["<|im_start|>"]
    (exported / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
    code = model_card.code_of_rewards(tokenizer, padding, limits)
    (exported / "README.md").write_text(f"```python\n{code}\n```\n", encoding="utf-8")
    ours = np.concatenate(scorers.reward_model(records, path=str(exported)))
    assert np.abs(ours - found).max() > 1e-3  # they read another token
    asked = [[*row["turns"], dict(role="assistant", content=row["reply"])] for row in rows]
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    ask("card", exported, tmp_path / "asked.json", tmp_path / "out.json")
    theirs = np.array(json.loads((tmp_path / "out.json").read_text()))
    np.testing.assert_allclose(ours, theirs[:, 0], **CLOSE)


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
