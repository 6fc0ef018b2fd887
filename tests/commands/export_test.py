"""What is exported from a run that began with nothing, and what is refused."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest

from alignjax.commands import export, import_model
from alignjax.data.records import Record
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer import training
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load, tensorfile
from alignjax.models.hf.save import save_model
from alignjax.recipes import align
from alignjax.rewards import scorers
from alignjax.runtime import artifacts
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
        (dict(dtype="int8"), r"--dtype: wanted float32 or bfloat16, found 'int8'"),
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
    with pytest.raises(UserError, match="holds a run that has not ended"):
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
        save_model(made, params, config, dtype="float32", original={}, outputs=names)
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
    # Its limits are those of the run that it scores in, unless the config binds others.
    function = partial(scorers.reward_model, path=str(tmp_path / "rm"), batch_size=1)
    of_run = runs.changed("data.max_prompt_tokens=600", "data.max_response_tokens=700")
    bound = partial(function, max_response_tokens=2)
    opened = [scorers.open_scorer(f, "s", c) for f in (function, bound) for c in (None, of_run)]
    names = ("max_prompt_tokens", "max_response_tokens")
    limits = [[scorer.reward_models[0].data[name] for name in names] for scorer in opened]
    assert limits == [[512, 512], [600, 700], [512, 2], [600, 2]]
    assert [[s.function.keywords.get(name) for name in names] for s in opened[1::2]] == limits[1::2]
    assert len({scorer.digest for scorer in opened}) == 4
    with pytest.raises(UserError, match="holds a reward model: give the folder itself"):
        import_model.import_model(str(tmp_path / "rm"), str(tmp_path / "imported"))
