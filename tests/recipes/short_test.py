"""Configs of one command: for every loss, written out and read again, and what is refused."""

import functools
import json
import re

import pytest

from alignjax import cli, losses, recipes
from alignjax.config import load, write
from alignjax.config.fields import describe
from alignjax.data.records import DataReport
from alignjax.errors import UserError
from alignjax.recipes import short
from alignjax.rewards import answers
from alignjax.stages.data import read_source
from tests import runs

THIN = "lora.rank=4"  # the model has few dimensions
MODEL = str(runs.ROOT / "tests" / "parity" / "data" / "story")
ROWS = {
    "pairs": {"chosen": "Yes, it is.", "rejected": "No."},
    "lists of scored responses": {
        "responses": ["One.", "Two, two.", "Three."],
        "scores": [2, 1, 3],
    },
    "single labelled responses": {"completion": "Yes, it is.", "label": True},
    "single responses": {"completion": "Yes, it is."},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind, 40 rows."""
    folder = tmp_path_factory.mktemp("kinds")
    paths = {}
    for kind, row in ROWS.items():
        rows = [{"prompt": f"Is {i} a number?", **row} for i in range(40)]
        if "label" in row:
            rows = [{**r, "label": i % 2 == 0} for i, r in enumerate(rows)]
        paths[kind] = folder / f"{kind.replace(' ', '_')}.jsonl"
        paths[kind].write_text("".join(json.dumps(r) + "\n" for r in rows))
    return paths


@functools.cache
def told():
    """Of each loss in the table of docs/losses.md: what it learns from, and the reference."""
    names = {"pairs": "pairs", "scored lists": "lists of scored responses"}
    names |= {"labelled responses": "single labelled responses", "any responses": "pairs"}
    page = (runs.ROOT / "docs" / "losses.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|[^|]*\|([^|]*)\| (yes|no|some) \|", page, re.M)
    found = {
        name: ({said for word, said in names.items() if word in text}, reference)
        for name, text, reference in rows
    }
    return {**found, short.REWARD: ({"pairs"}, "yes")}


@pytest.mark.parametrize("method", [*losses.methods(), short.REWARD])
def test_every_method_learns_from_its_data_and_its_config_can_be_written_out(
    method, files, tmp_path
):
    start = short._start(method, MODEL, "x.jsonl")
    said, reference = told()[method]
    kinds = [kind for kind in short.KINDS if kind.name in said]
    path = files[next(kind.name for kind in kinds if short._takes(start, kind))]
    config = short.config(method, MODEL, str(path), [THIN, "optim.b2=0.95", "model.dtype=bf16"])
    assert (config.lora.rank, config.optim.b2, config.model.dtype) == (4, 0.95, "bfloat16")
    assert {"auto": "yes", "none": "no"}[config.reference.mode] == reference or reference == "some"
    text = write.source(config, short.about(method, config, "runs/x"))
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    assert describe(load.load(str(mine), [])) == describe(config)
    assert max(map(len, text.splitlines())) <= 100 or str(path) in text


def test_what_is_chosen_follows_the_data_and_gives_way_to_changes(files):
    path = str(files["pairs"])
    config = short.config("dpo", MODEL, path, [THIN])
    # The model has a chat template, and the prompts are text: a user's messages.
    assert describe(config)["data"]["source"]["chat"] is True
    assert (config.data.max_prompt_tokens, config.data.max_response_tokens) == (32, 16)
    assert (config.reference.mode, config.optim.learning_rate) == ("auto", 5e-5)
    assert short.config("simpo", MODEL, path, [THIN]).reference.mode == "none"
    changes = ["lora=none", "data.max_response_tokens=8", "loss.beta=0.3", "data.source.chat=false"]
    other = short.config("dpo", MODEL, path, changes)
    assert (other.lora, other.optim.learning_rate) == (None, 5e-6)
    assert (other.data.max_response_tokens, other.loss.keywords["beta"]) == (8, 0.3)
    assert describe(other)["data"]["source"]["chat"] is False


def test_short_runs_sample_less_and_say_what_they_sample(files):
    path = str(files["pairs"])

    def of(*overrides):
        changes = [THIN, *overrides]
        config = short.config("dpo", MODEL, path, changes)
        return config.evaluate.prompts, short.say("dpo", config, changes).splitlines()[1:]

    cut = "up to 16 tokens (the responses of the data are short; --set evaluate.max_new_tokens=128)"
    few = "(few, as the run is short; --set evaluate.prompts=8)"
    sampled = "samples before and after:"
    assert of("train.steps=2") == (2, [f"{sampled} 2 prompts {few}, {cut}"])
    assert of("train.steps=20") == (5, [f"{sampled} 5 prompts {few}, {cut}"])
    assert of("train.steps=400") == (8, [f"{sampled} 8 prompts, {cut}"])
    given = ("train.steps=2", "evaluate.prompts=3", "evaluate.max_new_tokens=9")
    assert of(*given) == (3, [f"{sampled} 3 prompts, up to 9 tokens"])
    assert of("train.steps=2", "evaluate=none") == (0, [])


def test_rows_that_the_template_refuses_are_left_to_the_run(files, tmp_path):
    turns = [{"role": "user", "content": "Hm?"}, {"role": "user", "content": "Hm?"}]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "A"}], "rejected": "B"}
    template = "{{ raise_exception('no') if messages[1].role == 'user' else 'x' }}"
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**row, "rejected": [{"role": "assistant", "content": "B"}]}))
    config = short.config("dpo", MODEL, str(path), [THIN, f"tokenizer.chat_template={template}"])
    assert config.data.max_response_tokens == 16
    about = 'from C:\\u "x"""'
    (tmp_path / "c.py").write_text(write.source(config, about))
    assert load.load(str(tmp_path / "c.py"), []) is not None


def test_data_without_a_usable_row_are_refused_with_the_reasons(tmp_path):
    def turns(*texts):
        return [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)
        ]

    row = {"chosen": turns("Q", "a", "R", "good"), "rejected": turns("Q", "b", "R", "bad")}
    path = tmp_path / "p.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 2)
    message = "found none: all 2 were dropped: context_mismatch 2 .p.jsonl:1, p.jsonl:2"
    with pytest.raises(UserError, match=message):
        short.config("dpo", MODEL, str(path), [THIN])


def test_data_of_another_kind_are_refused_with_the_methods_that_they_are_for(files):
    message = r"pairs\.jsonl: wanted single labelled responses for kto, found pairs \(.*:1\)"
    with pytest.raises(UserError, match=message + ".*for these data: .*cpo, .*, dpo, .*, reward$"):
        short.config("kto", MODEL, str(files["pairs"]), [THIN])


def test_the_command_prints_the_config_and_a_recipe_s_loss_is_no_command(files, tmp_path, capsys):
    arguments = ("dpo", f"--model={MODEL}", f"--data={files['pairs']}", "--set=lora.rank=4")
    assert runs.here(*arguments, "--print_config") == 0
    mine = tmp_path / "mine.py"
    mine.write_text(capsys.readouterr().out)
    wanted = short.config("dpo", MODEL, str(files["pairs"]), ["lora.rank=4"])
    assert describe(load.load(str(mine), [])) == describe(wanted)
    assert "use one of them" in runs.refused(*arguments, "--out=a", "--workdir=b")
    assert "dpo requires --data" in runs.refused(*arguments[:2])
    with pytest.raises(UserError, match=r"modpo needs several stages.*configs/demo/modpo\.py"):
        cli.help_text(["modpo", f"--model={MODEL}"])


def test_a_recipe_of_a_loss_is_there():
    assert {"apo", "grpo", "modpo"} <= losses.recipes().keys()
    assert all((runs.ROOT / path).is_file() for path in losses.recipes().values())
    assert not losses.recipes().keys() & losses.methods().keys()


def test_grpo_compares_samples_with_the_answers_of_the_data(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"What follows {i}?", "answer": f"It is #### {i + 1}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = short.config("grpo", MODEL, str(path), [THIN, "candidates.samples=4", "loss.beta=0"])
    (rule,), loss = config.candidates.scorers, config.loss
    assert (rule.keywords, loss.keywords["beta"]) == ({"check": answers.same_number}, 0)
    assert config.recipe is recipes.train_online
    assert "1 if the last number of the response" in short.say("grpo", config, [])
    # A single answer without a number: texts are compared.
    rows.append({"question": "Who?", "answer": "Nobody."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = short.config("grpo", MODEL, str(path), [THIN])
    assert config.candidates.scorers[0].keywords == {"check": answers.same_text}
    mine = tmp_path / "mine.py"
    mine.write_text(write.source(config, short.about("grpo", config, "runs/x")))
    assert describe(load.load(str(mine), [])) == describe(config)


def test_grpo_with_reward_models_scores_by_them(files):
    path = str(files["single responses"])
    config = short.config("grpo", MODEL, path, [THIN], ["runs/rm", "runs/other"])
    assert [s.keywords for s in config.candidates.scorers] == [
        {"path": "runs/rm"},
        {"path": "runs/other"},
    ]
    assert "scored by runs/rm, runs/other" in short.say("grpo", config, [])


def test_grpo_with_reward_models_reads_prompts_alone(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What follows {i}?"} for i in range(20)]
    rows += [{"messages": [{"role": "user", "content": f"And {i}?"}]} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = short.config("grpo", MODEL, str(path), [THIN], ["runs/rm"])
    assert config.data.source.keywords["prompts_alone"]
    assert config.data.max_prompt_tokens >= 16
    read = list(read_source(config.data, str(path), DataReport()))
    assert len(read) == 40
    assert not any(record.responses for record in read)
    mine = tmp_path / "mine.py"
    mine.write_text(write.source(config, short.about("grpo", config, "runs/x")))
    assert describe(load.load(str(mine), [])) == describe(config)
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: wanted columns of responses"):
        short.config("grpo", MODEL, str(path), [THIN])  # a rule compares with answers
