"""docs/start.md as pasted: every command, in order, with a model of two small layers."""

import contextlib
import io
import json
import re
import shlex
import shutil
import sys

import pytest

from tests import runs

PAGE = runs.ROOT / "docs" / "start.md"
# What the tiny model is too small for; the page's own changes come after these.
SMALL = ("lora.rank=4", "data.max_prompt_tokens=32", "evaluate.max_new_tokens=4")
CAPTURED = ">"  # before the file that a command's output goes into


def blocks(kind):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [text for given, text in found if given == kind]


@pytest.mark.long
def test_the_page_runs_as_pasted_and_fits_two_screens(tmp_path, monkeypatch, capsys, caplog):
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    shutil.copytree(runs.ROOT / "tests" / "parity" / "data" / "story", tmp_path / "my-model")
    (pair,) = (json.loads(x) for x in blocks("json"))
    rows = [{**pair, "prompt": f"{pair['prompt']} {i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    lines = [line for block in blocks("") for line in block.splitlines()]
    assert len(lines) >= 8
    for line in lines:
        command, _, out = line.partition(f" {CAPTURED} ")
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "alignjax"], line
        if "--data=pairs.jsonl" in words:  # a loss's command: what the page sets comes last
            words[4:4] = [f"--set={x}" for x in SMALL]
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hi!\n/quit\n"))
        capsys.readouterr()
        with contextlib.chdir(tmp_path):
            assert runs.here(*words[3:]) == 0, line
        if out:
            (tmp_path / out).write_text(capsys.readouterr().out)
    lines = (tmp_path / "runs" / "try" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(x)["step"] for x in lines) == 4
    for made in ("runs/mine/report.html", "responses.jsonl", "my-model-aligned/model.safetensors"):
        assert (tmp_path / made).is_file(), made
    # What report.html says at its top stands in the terminal, too.
    assert "look at this: 100% of the sampled responses were cut at the token limit" in caplog.text
