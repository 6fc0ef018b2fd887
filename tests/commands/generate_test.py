"""Prompts from files and standard input, responses into files and standard output; no network."""

import io
import json
import re

import pytest

from alignjax.commands import generate
from alignjax.errors import UserError
from alignjax.sampling.generate import Sample
from tests import runs

MODEL = str(runs.ROOT / "tests" / "parity" / "data" / "story")
ARGUMENTS = ("generate", f"--model={MODEL}", "--samples=2")


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """What a network would be asked; it responds with the number of the question."""
    given = []

    def respond(sampling, params, questions, ref_params=None):
        given.append((sampling.settings, [q.prompt for q in questions]))
        return [
            Sample(q.prompt, f"{q.number}.{i}", 3, i == 0, 0.0, 0.0, 0.0)
            for q in questions
            for i in range(sampling.settings.samples)
        ]

    monkeypatch.setattr(generate, "respond", respond)
    monkeypatch.setattr(generate.voices.pretrained, "load", lambda model, mesh: {})
    return given


def test_lines_of_standard_input_are_messages_and_rows_are_rows(asked, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO('Hello.\n\n{"prompt": "Once"}\n'))
    assert runs.here(*ARGUMENTS, "--prompts=-", "--max_new_tokens=5", "--set=top_p=0.9") == 0
    settings, prompts = asked[0]
    assert (settings.samples, settings.max_new_tokens, settings.top_p) == (2, 5, 0.9)
    assert "Hello." in prompts[0]
    assert prompts[0] != "Hello."  # the chat template is around it
    assert prompts[1] == "Once"
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["responses"] for row in rows] == [["0.0", "0.1"], ["1.0", "1.1"]]
    assert [row["unfinished"] for row in rows] == [1, 1]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Hello."}]


def test_a_file_that_is_there_stays_unless_it_may_be_overwritten(asked, tmp_path):
    prompts, out = runs.write(tmp_path / "p.txt", "One.\nTwo.\n"), tmp_path / "out.jsonl"
    arguments = (*ARGUMENTS, f"--prompts={prompts}", f"--out={out}")
    assert runs.here(*arguments) == 0
    before = out.read_bytes()
    assert len(before.splitlines()) == 2
    out.write_text("mine")
    assert f"--out: {out} exists" in runs.refused(*arguments)
    assert (out.read_text(), len(asked)) == ("mine", 1)
    assert runs.here(*arguments, "--overwrite") == 0
    assert out.read_bytes() == before


def test_alpaca_eval_gets_its_array_of_its_own_instructions(asked, tmp_path, capsys):
    rows = [
        {"dataset": "koala", "instruction": "Sell a radio.", "output": "x", "generator": "gpt"},
        {"prompt": [{"role": "user", "content": "Hello."}]},
        {"prompt": "Once"},
    ]
    prompts, out = tmp_path / "eval.json", tmp_path / "out.json"
    prompts.write_text(json.dumps(rows))
    arguments = (*ARGUMENTS[:2], f"--prompts={prompts}", "--format=alpaca_eval")
    assert runs.here(*arguments, f"--out={out}") == 0
    said = [("Sell a radio.", "0.0", "koala"), ("Hello.", "1.0", ""), ("Once", "2.0", "")]
    wanted = [
        {"instruction": i, "output": o, "generator": "story", "dataset": d} for i, o, d in said
    ]
    assert json.loads(out.read_text()) == wanted
    assert "Sell a radio." in asked[0][1][0]
    assert asked[0][1][0] != "Sell a radio."  # the chat template is around it
    assert runs.here(*arguments) == 0
    assert json.loads(capsys.readouterr().out) == wanted
    for row, message in (
        ({"prompt": [{"role": "system", "content": "Be brief."}, *rows[1]["prompt"]]}, r"user$"),
        ({"instruction": "Sum up.", "input": "A text."}, r"field 'input' beside 'instruction'"),
    ):
        prompts.write_text(json.dumps([row]))
        assert re.search(rf"eval\.json:1: .*{message}", runs.refused(*arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*ARGUMENTS, "--prompts=-", "--format=csv"), r"--format: wanted jsonl or alpaca_eval, f"),
        (
            (*ARGUMENTS, "--prompts=-", "--format=alpaca_eval"),
            r"wanted 1 for --format=alpaca_eval, found 2",
        ),
        (
            (*ARGUMENTS[:2], "--prompts=-", "--format=alpaca_eval", "--out=x.jsonl"),
            r"--out: wanted - or a name that ends in \.json, found",
        ),
        (ARGUMENTS, r"generate --model requires --prompts"),
        (("generate",), r"generate requires either --workdir=RUN or --model=FOLDER"),
        ((*ARGUMENTS, "--workdir=x"), r"requires either"),
        ((*ARGUMENTS, "--prompts=-", "--preference=1"), r"does not take --preference"),
        ((*ARGUMENTS, "--prompts=none.txt"), r"--prompts: none\.txt cannot be read"),
        ((*ARGUMENTS, "--prompts=-", "--out=x.txt"), r"--out: wanted - or a name that ends"),
        ((*ARGUMENTS, "--prompts=-", "--set=topp=1"), r"--set topp: .*mean 'top_p'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert re.search(message, runs.refused(*arguments))


def test_broken_rows_and_no_prompt_are_told_by_their_line(monkeypatch):
    for text, message in (("\n", "holds no prompt"), ("Hi\n{x\n", "standard input:2: not valid")):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with pytest.raises(UserError, match=message):
            generate._rows("-")
