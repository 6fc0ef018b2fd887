"""docs/models.md, line by line: a folder, two steps, an exported folder with the same numbers."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from alignjax.commands import export
from alignjax.data.tokenizer import load as tokenizers
from alignjax.models import lora
from alignjax.models.config import LoraConfig, ModelConfig, model_from
from alignjax.models.hf import load
from alignjax.runtime import checkpoint, sharding, stores
from alignjax.stages import adapters, pretrained
from tests import runs
from tests.parity.live import HERE, PYTHON, ask
from tests.parity.parity_test import answers, as_batch, compare, ours

DOCS = (runs.ROOT / "docs" / "models.md").read_text(encoding="utf-8")
SMALL = (
    *("train.steps=2", "train.batch_size=4", "train.log_every=1"),
    *("optim.learning_rate=0.01", "model.dtype=float32", "model.remat=none"),
    *("data.max_prompt_tokens=32", "data.max_response_tokens=16", "data.pad_multiple=8"),
    *("data.eval_fraction=0.3", "evaluate.prompts=0", "evaluate.batch_size=4"),
)


def block(language, number=0):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOCS, re.M | re.S)
    return [text for kind, text in blocks if kind == language][number]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def story(tmp_path_factory, compiled):
    """A folder in which every command of the page has been run."""
    folder = tmp_path_factory.mktemp("story")
    shutil.copytree(HERE / "data" / "story", folder / "my-model")
    (folder / "my_config.py").write_text(block("python"))
    pair = json.loads(block("json"))
    rows = [
        {**pair, "prompt": f"{i} {pair['prompt']}", "chosen": "A plan. " * (i + 1)}
        for i in range(8)
    ]
    lines = [json.dumps(row) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    told = block("python")
    thin = told.replace("    )\n", block("text") + "    )\n").replace(
        "import ModelConfig", "import LoraConfig, ModelConfig"
    )
    assert thin.count('quantize="nf4"') == 1
    (folder / "thin_config.py").write_text(thin.replace("rank=16", "rank=4"))  # width 16
    lines = (block("") + block("", 1)).splitlines()
    commands = [x for x in lines if x.startswith("python -m alignjax ")]
    imports = re.search(r"`python -m alignjax (import [^`]*)`", DOCS)[1]
    assert [c.split()[3] for c in commands] == ["data", "run", "export", "run", "export", "export"]
    for command in [*commands, f"python -m alignjax {imports}"]:
        verb, *rest = command.split()[3:]
        sets = [f"--set={x}" for x in SMALL] if verb in ("data", "run") else []
        if verb in ("run", "import"):
            done = runs.start(verb, *rest, *sets, cwd=folder, **compiled)
            assert done.returncode == 0, done.stderr
            assert (verb == "import") == ("parameters in bfloat16" in done.stderr)
        else:
            with contextlib.chdir(folder):
                assert runs.here(verb, *rest, *sets) == 0
    return folder


def params_of(folder):
    config = load.resolve(ModelConfig(path=str(folder)))
    return config, pretrained.load(config, sharding.make_mesh(1, 1, 1))


def trained(story):
    run = story / "runs" / "mine"
    config = model_from(json.loads((run / "config.json").read_text()), "config.json")
    with stores.open_store(run / "checkpoints", keep=9) as store:
        step = stores.latest(store)
        target = pretrained.target(config, sharding.make_mesh(1, 1, 1))
        return step, config, checkpoint.restore_params(store, step, target)


def test_what_was_trained_is_what_was_exported(story):
    step, config, params = trained(story)
    assert step == 2
    again, same = params_of(story / "my-model-aligned")
    assert dataclasses.replace(again, path=config.path) == config
    jax.tree.map(np.testing.assert_array_equal, same, params)
    _, start = params_of(story / "my-model")
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), start, params)
    assert all(jax.tree.leaves(changed)), "the policy did not move"


def test_an_imported_folder_is_the_folder(story):
    config, params = params_of(story / "imported")
    wanted_config, wanted = params_of(story / "my-model")
    assert dataclasses.replace(config, path="") == dataclasses.replace(wanted_config, path="")
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    names = {p.name for p in (story / "imported").iterdir()}
    assert names >= {"config.json", "tokenizer.json", "chat_template.jinja", "params"}


def test_the_exported_folder_is_complete(story):
    folder = story / "my-model-aligned"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (story / "my-model" / name).read_bytes()
    assert (folder / "generation_config.json").is_file()
    content = json.loads((folder / "config.json").read_text())
    source = json.loads((story / "my-model" / "config.json").read_text())
    for key in ("model_type", "architectures", "max_position_embeddings"):
        assert content[key] == source[key]
    # The template ends turns with another token than the model's files name: both are named.
    sampling = json.loads((folder / "generation_config.json").read_text())
    ends = sorted(tokenizers.load(str(story / "my-model")).ends)
    assert content["eos_token_id"] == sampling["eos_token_id"] == ends
    assert source["eos_token_id"] in ends
    assert len(ends) == 2
    card = (folder / "README.md").read_text()
    record = json.loads((story / "runs" / "mine" / "config.json").read_text())
    for said in ("alignjax.losses.dpo.loss", "my-model", '"learning_rate": 0.01'):
        assert said in card
    assert record["loss"]["beta"] == 0.1
    assert re.search(r"training data \| `[0-9a-f]{16,}`", card)
    assert {p.name for p in story.iterdir() if p.name.startswith(".")} == set()


def test_transformers_loads_it_and_answers_alike(story, tmp_path):
    if not PYTHON:
        pytest.skip("needs torch and transformers: make test-parity")
    folder, out = story / "my-model-aligned", tmp_path / "out.npz"
    given = HERE / "data" / "llama2" / "answers.npz"
    ask("logits", folder, given, out)
    config, params = params_of(folder)
    with np.load(out) as found:
        compare(config, params, {**answers(given.parent), **found})
    texts = (HERE / "data" / "tokenizers" / "qwen" / "answers.json").read_text(encoding="utf-8")
    assert json.loads(pathlib.Path(f"{out}.json").read_text()) == json.loads(texts)


def test_the_steps_changed_the_answers(story):
    found = answers(HERE / "data" / "llama2")
    config, start = params_of(story / "my-model")
    _, end = params_of(story / "my-model-aligned")
    before, after = (ours(params, as_batch(found), config)[1] for params in (start, end))
    assert np.abs(np.asarray(before) - np.asarray(after)).max() > 1e-3


def test_the_merged_export_is_the_decoded_base_with_the_adapters(story, tmp_path):
    """And with PEFT beside the folder itself it differs by what the codes lost, no more."""
    config, base = params_of(story / "my-model")
    mesh, thin = sharding.make_mesh(1, 1, 1), LoraConfig(rank=4, alpha=32.0, quantize="nf4")
    with stores.open_store(story / "runs" / "thin" / "checkpoints", keep=9) as store:
        trained = checkpoint.restore_params(store, 2, adapters.target(thin, config, mesh))
    coded = pretrained.load(config, mesh, "nf4")
    _, merged = params_of(story / "my-model-merged")
    jax.tree.map(np.testing.assert_array_equal, merged, lora.merge(coded, trained, thin))
    given = HERE / "data" / "llama2" / "answers.npz"
    found = as_batch(answers(given.parent))
    logits, _ = ours(lora.join(base, trained, thin), found, config)
    with_codes, _ = ours(lora.join(coded, trained, thin), found, config)
    lost, _ = ours(coded, found, config)
    plain, _ = ours(base, found, config)
    error = np.abs(np.asarray(lost - plain)).max()
    assert 0 < np.abs(np.asarray(logits - with_codes)).max() < 2 * error
    if PYTHON:  # by PEFT's own way to find the base, and the tokenizer that lies beside them
        named, run = tmp_path / "named", str(story / "runs" / "thin")
        export.export(run, str(named), adapter=True, base=str(story / "my-model"))
        ask("adapted", "-", named, given, tmp_path / "out.npz")
        told = json.loads((tmp_path / "out.npz.json").read_text())
        texts = HERE / "data" / "tokenizers" / "qwen" / "answers.json"
        assert told == json.loads(texts.read_text(encoding="utf-8"))
        with np.load(tmp_path / "out.npz") as theirs:
            compare(config, lora.join(base, trained, thin), {**answers(given.parent), **theirs})
