"""The library as docs/library.md and the notebook use it, on a model of two small layers."""

import contextlib
import dataclasses
import json
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import alignjax as aj
from alignjax.config import DataConfig
from alignjax.data.records import DataReport, Message
from alignjax.data.tokenizer import chat
from alignjax.errors import UserError
from alignjax.library.training import _file, _for_chat
from alignjax.runtime import logs
from alignjax.runtime.loggers import bars
from alignjax.stages.data import read_source
from tests import runs, tiny
from tests.oracles.plain import plain_logps

STORY = runs.ROOT / "tests" / "parity" / "data" / "story"
SMALL = ["data.max_prompt_tokens=32", "data.max_response_tokens=16", "evaluate.max_new_tokens=4"]


@pytest.fixture(scope="module")
def policy():
    return aj.load(STORY)


def test_importing_the_package_is_light_and_names_are_found_late():
    code = (
        "import sys, alignjax as aj; assert 'jax' not in sys.modules, 'jax'; "
        "assert {'load', 'train', 'losses'} <= set(dir(aj)); "
        "assert 'alignjax.losses.dpo' not in sys.modules; print(aj.losses.dpo.loss.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("loss\n", 0), done.stderr
    for wrong in ("aj.lode", "aj.losses.dpoo"):
        with pytest.raises(AttributeError, match="has no attribute"):
            eval(wrong)


def test_logps_are_those_of_the_networks_own_logits(policy):
    """The prompt in front of its response, in one row without padding."""
    told = policy.logps(["Tom has a", "Hi"], [" red car", " you"])
    lists = policy.logps(["Tom has a", "Hi"], [[" red car", " dog"], [" you"]])
    assert lists[:, 0] == pytest.approx(told)
    assert lists[1, 1] == 0.0  # there is no such response
    encoded = policy.tokenizer.encode("Tom has a", [" red car"])
    prompt, response = encoded.prompt_ids, encoded.response_ids[0]
    row = tiny.given(prompt[None], [len(prompt)], response[None, None])
    assert told[0] == pytest.approx(
        float(plain_logps(policy.params, row, config=policy.config)[0, 0])
    )


def test_what_cannot_be_asked_is_refused(policy):
    with pytest.raises(UserError, match=r"^logps: wanted responses for 1 prompts, found 2"):
        policy.logps(["a"], ["b", "c"])
    with pytest.raises(UserError, match=r"wanted a list of prompts, found one text"):
        policy.generate("a")
    with pytest.raises(UserError, match=r"prompts\[1\]"):
        policy.logps(["a", 3], ["b", "c"])
    with pytest.raises(UserError, match=r"train: a policy needs data and a loss"):
        aj.train(policy, [{}])
    with pytest.raises(UserError, match=r"no folder|no such file"):
        aj.load("nowhere")


def test_rows_in_memory_become_a_file_of_the_run(tmp_path):
    rows = [{"prompt": "é", "chosen": "a", "rejected": "b"}] * 2
    path = _file(iter(rows), tmp_path)
    assert [json.loads(x) for x in pathlib.Path(path).read_text("utf-8").splitlines()] == rows
    assert _file("my.jsonl", tmp_path) == "my.jsonl"
    with pytest.raises(UserError, match=r"data\[1\]: wanted a dict, found str"):
        _file([{}, "a"], tmp_path)
    with pytest.raises(UserError, match=r"data\[0\]: Object of type ndarray"):
        _file([{"prompt": np.zeros(2)}], tmp_path)


@pytest.mark.parametrize(("template", "messages"), [("{{ messages }}", True), (None, False)])
def test_plain_prompts_are_read_as_the_commands_read_them(template, messages, policy, tmp_path):
    path = _file([{"prompt": "Hi", "chosen": "a", "rejected": "b"}], tmp_path)
    template = template or chat.PLAIN_TEMPLATE
    tokenizer = dataclasses.replace(policy.tokenizer, chat_template=template)
    start = dataclasses.replace(policy, tokenizer=tokenizer)
    data = _for_chat(DataConfig(path=path), start)
    (row,) = read_source(data, path, DataReport())
    assert row.prompt == ((Message("user", "Hi"),) if messages else "Hi")


@pytest.mark.slow
def test_the_page_runs_as_pasted(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shutil.copytree(STORY, tmp_path / "my-model")
    (tmp_path / "my_config.py").write_text("from tests.runs import get_config as get_config\n")
    page = (runs.ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 3
    names = {}
    with contextlib.chdir(tmp_path):
        for block in blocks:
            block = block.replace("optax.adam(1e-5)", "optax.set_to_zero()")
            exec(block.replace('"evaluate.max_new_tokens=8"', repr(SMALL)[1:-1]), names)
    assert [len(texts) for texts in names["answers"]] == [4, 4]
    result = names["result"]
    assert [line["step"] for line in result.metrics if "loss" in line][-1] == 2
    assert result.data_report["train"]["kept"] + result.data_report["held_out"]["kept"] == 40
    assert result.policy.source == str(result.workdir)
    # The page's optimizer is the one that is used: this one moves nothing.
    assert same(result.policy, names["policy"])


def same(*two):
    """Whether two policies have the same parameters."""
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, *(x.params for x in two))))


@pytest.mark.slow
def test_the_notebook_runs_in_fifteen_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    shutil.copytree(STORY, tmp_path / "SmolLM2-135M-Instruct")
    book = json.loads((runs.ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(x["source"]) for x in book["cells"] if x["cell_type"] == "code"]
    code = [line for cell in cells for line in cell.splitlines() if line.strip()]
    assert len(code) <= 15
    assert all(x["outputs"] == [] for x in book["cells"] if x["cell_type"] == "code")
    names = {}
    with contextlib.chdir(tmp_path):
        for cell in cells:
            exec(cell.replace("train.steps=10", "train.steps=2"), names)
    assert names["result"].summary["steps"] == 2
    assert not same(names["result"].policy, names["policy"])


@pytest.mark.parametrize(
    ("setup", "shown"),
    [
        ("pass", 1),  # absl calls a bare basicConfig() when a library that uses it is imported
        ("logging.basicConfig(level='INFO', format='mine: %(message)s')", 1),
        ("logging.basicConfig(filename='log.txt')", 0),
    ],
)
def test_a_program_shows_lines_once_unless_its_own_logging_does_not(setup, shown, tmp_path):
    program = f"""
import logging
{setup}
import alignjax as aj
aj.load({str(STORY)!r})
logging.getLogger("alignjax").info("a line")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=runs.environment(PYTHONPATH=str(runs.ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "a line" in line]
    assert len(lines) == shown, done.stderr
    assert all(line.startswith("mine: ") == ("mine" in setup) for line in lines)


def test_lines_are_shown_where_nobody_has_set_up_logging(monkeypatch, capsys):
    ours = logging.getLogger("alignjax")
    monkeypatch.setattr(ours, "propagate", False)
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(ours, "level", ours.level)  # put back at the end
    for _ in range(2):
        logs.show_lines()
    with bars.progress("sampling", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == "sampling 2/2: took 0:00:00\n"
