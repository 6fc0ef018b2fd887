"""Classifiers of other architectures get the scores that transformers gives: `make test-parity`."""

import json
import os
import subprocess

import pytest

from alignjax.errors import UserError
from alignjax.rewards import transformers_models
from tests import runs
from tests.parity.live import PYTHON, ask

live = pytest.mark.skipif(not PYTHON, reason="needs torch: make test-parity")
LONG = "a short walk across a long and narrow room " * 3  # 27 words, the models take 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    ask(folder, program="classifiers.py")
    return folder, json.loads((folder / "scores.json").read_text())


def score(tmp_path, folder, rows, *flags):
    """The program that has run, with torch in its reach, and what it wrote."""
    records, out = tmp_path / "rows.jsonl", tmp_path / "scored.jsonl"
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = [PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    torch = subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip()
    done = runs.start(
        *("score", f"--records={records}", f"--reward_model={folder}", f"--out={out}", *flags),
        PYTHONPATH=os.pathsep.join((str(runs.ROOT), torch)),
    )
    written = out.read_text().splitlines() if out.is_file() else []
    about = out.with_name(out.name + ".made_of.json")
    cuts = json.loads(about.read_text())["cuts"] if written else {}
    return done, [json.loads(line)["scores"] for line in written], cuts


@live
def test_pairs_are_read_as_such_models_are_trained(made, tmp_path):
    folder, wanted = made
    done, found, cuts = score(tmp_path, folder / "deberta", wanted["rows"])
    assert done.returncode == 0, done.stderr
    for mine, logits in zip(found, wanted["deberta"], strict=True):
        assert mine == pytest.approx([x for (x,) in logits], abs=1e-4)
    assert abs(found[0][0] - found[0][1]) > 1e-2  # else any model would pass
    assert cuts == {"deberta: texts": 4, "deberta: texts cut": 0}


@live
def test_a_chat_template_is_followed_and_two_labels_are_a_preference(made, tmp_path):
    folder, wanted = made
    done, found, _ = score(tmp_path, folder / "gpt2", wanted["rows"])
    assert done.returncode == 0, done.stderr
    assert "the logit of 'LABEL_1' minus that of 'LABEL_0'" in done.stderr
    for mine, logits in zip(found, wanted["gpt2"], strict=True):
        assert mine == pytest.approx([second - first for first, second in logits], abs=1e-4)


@live
def test_prompts_lose_their_beginning_and_are_counted(made, tmp_path):
    folder, _ = made
    rows = [
        {"prompt": LONG, "responses": ["No.", "Yes."]},
        {"prompt": "Is it?", "responses": ["No."]},
    ]
    done, found, cuts = score(tmp_path, folder / "deberta", rows)
    assert done.returncode == 0, done.stderr
    assert cuts == {"deberta: texts": 3, "deberta: texts cut": 2}
    assert "2 of 3 texts cut to the model's maximum length, 24 tokens" in done.stderr
    # What is left of it: 24 less three marks, and the two words of the response.
    (tmp_path / "scored.jsonl").unlink()
    rows[0]["prompt"] = " ".join(LONG.split()[-19:])
    _, again, cuts = score(tmp_path, folder / "deberta", rows)
    assert (again, cuts["deberta: texts cut"]) == (found, 0)


@live
def test_what_cannot_be_scored_is_refused_in_a_line(made, tmp_path):
    folder, _ = made
    done, _, _ = score(tmp_path, folder / "deberta", [{"prompt": "Is it?", "responses": [LONG]}])
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0)
    assert "wanted at most 24 tokens for prompt and response, found a response of 29" in done.stderr
    row = {"prompt": "Is it?", "responses": ["No."]}
    done, _, _ = score(tmp_path, folder / "deberta", [row], "--max_prompt_tokens=8")
    assert done.returncode == 2
    assert "transformers runs this model, with its own limit of length" in done.stderr


@pytest.fixture
def folder(tmp_path):
    content = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_without_torch_the_line_says_what_to_install(folder):
    with pytest.raises(UserError, match=r"'deberta-v2' is scored through transformers, and torch"):
        transformers_models.find(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"reward_loss": None},
    ],
)
def test_others_are_left_to_those_who_read_them(content, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert transformers_models.find(str(tmp_path)) is None
