"""What is exported from a run that began with nothing, and what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest

from alignjax.commands import export, import_model
from alignjax.data.encode import Reading
from alignjax.data.records import Message, Record
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer import training
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson, gguf, load, tensorfile
from alignjax.models.hf.save import save_model
from alignjax.recipes import align
from alignjax.rewards import scorers
from alignjax.runtime import artifacts, checkpoint, sharding
from alignjax.stages import pretrained
from tests import runs, tiny

STORY = runs.ROOT / "tests" / "parity" / "data" / "story"


@pytest.fixture(scope="module")
def run(tmp_path_factory, whole_run):
    """A run's folder, of a config that names folders of a machine."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    cache = str(folder.parent / "secret" / "cache")
    align.run(
        runs.changed("sft=None", "train.steps=1", "evaluate.prompts=0", f"data.cache_dir={cache}"),
        folder,
    )
    return folder


def test_a_model_from_nothing_is_exported_with_its_tokenizer(run, tmp_path):
    to = tmp_path / "out"
    export.export(str(run), str(to), dtype="bfloat16")
    tensors = load.find_tensors(to)
    assert {x.dtype for x in tensors.values()} == {"BF16"}
    stored = runs.stored(run, runs.get_config()).params["embed"]["embedding"]
    found = tensors["model.embed_tokens.weight"].open()
    np.testing.assert_array_equal(found, np.asarray(stored).astype(tensorfile.DTYPES["BF16"]))
    config = load.resolve(ModelConfig(path=str(to)))
    assert (config.vocab_size, config.layers) == (320, 1)
    ours, theirs = tokenizers.load(str(run / "tokenizer.model")), tokenizers.load(str(to))
    assert theirs.encode("Hello\n there", ()).prompt_ids.tolist() == (
        ours.encode("Hello\n there", ()).prompt_ids.tolist()
    )
    content = json.loads((to / "config.json").read_text())
    assert content["eos_token_id"] == ours.eos_id
    assert content["bos_token_id"] == ours.bos_id
    assert content["max_position_embeddings"] == 80
    card = (to / "README.md").read_text()
    assert "random parameters" in card
    assert '"cache_dir": "cache"' in card
    assert "secret" not in card


def test_another_tokenizer_than_it_was_trained_with_is_not_exported(run, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    texts = [f"Other words, {i} of them." for i in range(100)]
    training.train_sentencepiece(texts, vocab_size=300, path=str(mine / "tokenizer.model"))
    with pytest.raises(UserError, match=r"tokenizer\.model: wanted the tokenizer that the run"):
        export.export(str(mine), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_named_by_its_file_is_kept_with_what_lies_beside_it(tmp_path):
    file = str(STORY / "tokenizer.json")
    base = runs.get_config()
    config = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, path=str(STORY)),
        tokenizer=dataclasses.replace(base.tokenizer, path=file),
    )
    pretrained.keep_files(config, tmp_path)
    kept = tokenizers.load(str(tmp_path / "pretrained"))
    assert kept.digest == tokenizers.load(file).digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(dtype="int8"), r"--dtype: wanted float32 or bfloat16 for .*, found 'int8'"),
        (dict(to="run"), r"exists already; name a new folder"),
    ],
)
def test_what_cannot_be_written_is_said_first(run, changes, said, tmp_path):
    to = run if changes.pop("to", "") else tmp_path / "out"
    with pytest.raises(UserError, match=said):
        export.export(str(run), str(to), **changes)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_checkpoint_has_nothing_to_export(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="no checkpoint yet"):
        export.export(str(tmp_path), str(tmp_path / "out"))
    content = json.loads((run / "config.json").read_text())
    reward_model = {**content, "loss": None, "reward_loss": {"function": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(reward_model))
    with pytest.raises(UserError, match="holds an unfinished run"):
        export.export(str(tmp_path), str(tmp_path / "out"))
    content["model"]["new_field"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json: model: of another version .*new_field"):
        export.export(str(tmp_path), str(tmp_path / "out"))


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused():
    tokenizers.check_ids("x", 64, 64)
    with pytest.raises(UserError, match="the tokenizer x has 65 ids, the model embeds 64"):
        tokenizers.check_ids("x", 65, 64)


def test_an_import_refuses_such_a_tokenizer_and_leaves_nothing(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STORY.parent / "llama2", folder)
    pretrained.copy_files(STORY, folder, pretrained.TOKENIZER_FILES)
    said = rf"the tokenizer {folder} has 3\d\d ids, the model embeds 64"
    with pytest.raises(UserError, match=said):
        import_model.import_model(str(folder), str(tmp_path / "imported"))
    assert [x.name for x in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_a_reward_model_scores_and_is_no_policy(tmp_path):
    config, names = tiny.model(vocab_size=352), ("helpful", "harmless")
    params = reward_head.from_language_model(tiny.params(config), objectives=len(names))
    kernel = np.random.default_rng(0).normal(size=(32, len(names))).astype(np.float32)
    params["reward"] = {"kernel": kernel}
    with artifacts.new_folder(str(tmp_path / "rm")) as made:
        original = {"max_position_embeddings": 300}
        save_model(made, params, config, dtype="float32", original=original, outputs=names)
        pretrained.copy_files(STORY, made, pretrained.TOKENIZER_FILES)
    texts = ("A plan.", "No idea at all.")
    record = Record(id="a", origin="", prompt="How do I move?", responses=texts)
    (found,) = scorers.reward_model([record], path=str(tmp_path / "rm"), batch_size=1)
    encoded = tokenizers.load(str(STORY)).encode(record.prompt, texts)
    lengths = [len(ids) for ids in encoded.response_ids]
    batch = tiny.batch([len(encoded.prompt_ids)], [lengths])
    response = np.zeros_like(batch.response)
    for j, ids in enumerate(encoded.response_ids):
        response[0, j, : len(ids)] = ids
    batch = dataclasses.replace(batch, prompt=encoded.prompt_ids[None], response=response)
    wanted = reward_head.score_responses(params, batch, config=config)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    # Its limits are its own length, whatever the run has, or those that it was exported with.
    function = partial(scorers.reward_model, path=str(tmp_path / "rm"), batch_size=1)
    of_run = runs.changed("data.max_prompt_tokens=600", "data.max_response_tokens=700")
    bound = partial(function, max_response_tokens=2)
    opened = [scorers.open_scorer(f, "s", c) for f in (function, bound) for c in (None, of_run)]
    names = ("max_prompt_tokens", "max_response_tokens")
    limits = [[scorer.reward_models[0].data[name] for name in names] for scorer in opened]
    assert limits == [[300, 300], [300, 300], [300, 2], [300, 2]]
    assert len({scorer.digest for scorer in opened}) == 2
    assert opened[0].reward_models[0].reading == Reading(longest=300, padding=None)
    (tmp_path / "rm" / "reward_model.json").write_text(
        json.dumps(dict(zip(names, (9, 7), strict=True)))
    )
    ours = scorers.open_scorer(function, "s", of_run).reward_models[0]
    assert ([ours.data[name] for name in names], ours.reading) == ([9, 7], None)
    with pytest.raises(UserError, match="found a reward model; use the folder itself"):
        import_model.import_model(str(tmp_path / "rm"), str(tmp_path / "imported"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of a network whose rows are of 32 and of 48 weights, with a tokenizer."""
    folder, config = tmp_path_factory.mktemp("small") / "model", tiny.model(vocab_size=352)
    with artifacts.new_folder(str(folder)) as made:
        save_model(made, tiny.params(config), config, dtype="bfloat16", original={})
        pretrained.copy_tokenizer(STORY, made)
    return folder


def loaded(path):
    config = load.resolve(ModelConfig(path=str(path)))
    return config, pretrained.load(config, sharding.make_mesh(1, 1, 1))


def test_import_then_export_then_import_is_equal_bit_for_bit(tmp_path):
    """A folder in bfloat16: its files, its tensors and their type."""
    first, out, again = (tmp_path / name for name in ("first", "out", "again"))
    assert runs.here("import", f"--from={STORY}", f"--to={first}") == 0
    assert runs.here("export", f"--from={first}", f"--to={out}") == 0
    assert runs.here("import", f"--from={out}", f"--to={again}") == 0
    given, found = load.find_tensors(STORY), load.find_tensors(out)
    assert given.keys() == found.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype == "BF16"
        assert found[name].open().tobytes() == tensor.open().tobytes()
    apart = {"params", "digests.json"}  # written by orbax, under names of its own
    names = {path.name for path in first.iterdir()} - apart
    assert names == {path.name for path in again.iterdir()} - apart
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    read = [checkpoint.tree_digest(loaded(folder)[1]) for folder in (first, again, STORY)]
    assert len(set(read)) == 1
    assert runs.refused("export", f"--from={first}", "--workdir=x", "--to=y").startswith(
        "export requires either --workdir=RUN, or --from=MODEL without"
    )


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_gguf_file_is_the_folder_within_what_its_kind_rounds(kind, small, tmp_path):
    file = tmp_path / "model.gguf"
    export.run(
        str(small), workdir="", to=str(file), dtype=kind, adapter=False, preference="", base=""
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    (config, wanted), (read, found) = loaded(small), loaded(file)
    assert dataclasses.replace(read, path="", norm_eps=config.norm_eps) == dataclasses.replace(
        config, path=""
    )
    assert np.float32(read.norm_eps) == np.float32(config.norm_eps)

    def compare(path, value, other):
        rows = np.asarray(value)
        if "kernel" in str(path):
            rows = rows.swapaxes(-1, -2)  # rows of the file
            other = other.swapaxes(-1, -2)
        wide = kind == "q8_0" and rows.ndim > 1 and rows.shape[-1] == 32 and "norm" not in str(path)
        if not wide:
            np.testing.assert_array_equal(rows, rows.astype(np.float16))
            np.testing.assert_array_equal(rows, other)
            return
        largest = np.abs(rows).max(-1, keepdims=True)
        # Half a step of 127, and the step itself is stored with 11 bits.
        assert (np.abs(rows - other) <= largest * (0.5 / 127 + 2.0**-11)).all()
        assert (rows != other).any()

    jax.tree_util.tree_map_with_path(compare, wanted, found)
    ours, theirs = tokenizers.load(str(small)), tokenizers.load(str(file))
    assert theirs.chat_template == ours.chat_template
    assert set(theirs.ends) == set(ours.ends)
    assert (theirs.bos_id, theirs.eos_id, theirs.pad_id) == (ours.bos_id, ours.eos_id, ours.pad_id)
    turns = (Message("user", "How do I move <|im_end|> 12 mirrors?"),)
    for prompt in ("It's 345, né?\n", turns):
        pair = [x.encode(prompt, ("A plan.",)) for x in (ours, theirs)]
        assert pair[0].prompt_ids.tolist() == pair[1].prompt_ids.tolist()
        assert pair[0].response_ids[0].tolist() == pair[1].response_ids[0].tolist()


@pytest.mark.parametrize(
    ("family", "tokenizer", "said"),
    [
        ("mistral", "qwen", r"model\.window: GGUF files of this network cannot express 4"),
        ("story", "mistral", r"x\.gguf/tokenizer\.json: GGUF does not support the way"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused_by_name(family, tokenizer, said, tmp_path):
    config, params = loaded(STORY.parent / family)
    config = dataclasses.replace(config, path="", vocab_size=352)
    rows = {"embed": {"embedding": np.zeros((352, config.width), np.float32)}}
    params = {**params, **rows}
    if "head" in params:
        params["head"] = rows["embed"]["embedding"]
    folder = tmp_path / "model"
    with artifacts.new_folder(str(folder)) as made:
        save_model(made, params, config, dtype="float32", original={})
        pretrained.copy_tokenizer(STORY.parent / "tokenizers" / tokenizer, made)
    with pytest.raises(UserError, match=said):
        import_model.export_model(str(folder), str(tmp_path / "x.gguf"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_dynamic_scaling_is_refused_before_anything_is_written():
    content = json.loads((STORY.parent / "llama_biases" / "config.json").read_text())
    config = configjson.read(content, "")
    with pytest.raises(UserError, match="rope_scaling: GGUF files have no kind 'dynamic'"):
        gguf.fields_of({**content, **configjson.write(config, "llama")}, "llama")


def test_a_run_s_own_vocabulary_goes_into_a_gguf_file(run, tmp_path):
    """Of sentencepiece; and a file takes neither adapters nor another type than its own."""
    file = tmp_path / "run.gguf"
    export.export(str(run), str(file), dtype="q8_0")
    ours, theirs = tokenizers.load(str(run / "tokenizer.model")), tokenizers.load(str(file))
    text = "Please tell me how  to move\n an old mirror, 語."
    assert theirs.encode(text, ()).prompt_ids.tolist() == ours.encode(text, ()).prompt_ids.tolist()
    assert theirs.decode(theirs.encode(text, ()).prompt_ids) == text
    for changes, said in (
        (dict(dtype="bfloat16"), r"--dtype: wanted f16 or q8_0 for .*no\.gguf, found 'bfloat16'"),
        (dict(adapter=True), r"--to: a GGUF file holds one whole policy"),
        (dict(base="x"), r"--base: is only for --adapter"),
    ):
        with pytest.raises(UserError, match=said):
            export.export(str(run), str(tmp_path / "no.gguf"), **changes)
    with pytest.raises(UserError, match="exists already; name a new file"):
        export.export(str(run), str(file))
