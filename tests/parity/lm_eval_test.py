"""What lm_eval measures on an exported folder, on a task made here, against our own numbers."""

import json
import os
import subprocess

import numpy as np
import pytest

import alignjax as aj
from tests import runs
from tests.parity.live import HERE, PYTHON
from tests.parity.parity_test import CLOSE

ROWS = [  # the answer, then what else one may choose
    ("How do I move a mirror?", [" First make a plan.", " No idea."]),
    ("How do I sell a radio?", [" No.", " Look at it, then at another one."]),
    ("Who are you?", [" It is a very long story, you know.", " I"]),
]
# The end of a response is one of its tokens, which `logps` counts: here it is written out. A space
# at a prompt's end lm_eval would count to the response.
TASK = """
task: made_here
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.slow
def test_lm_eval_says_of_an_export_what_logps_says(tmp_path):
    if not PYTHON:
        pytest.skip("needs lm_eval: make test-parity")
    folder = tmp_path / "exported"
    assert runs.here("export", f"--from={HERE / 'data' / 'story'}", f"--to={folder}") == 0
    policy = aj.load(folder)
    ours = policy.logps([question for question, _ in ROWS], [choices for _, choices in ROWS])
    end = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    rows = [
        {"question": question, "choices": [x + end for x in choices], "answer": 0}
        for question, choices in ROWS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASK.replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "made_here.yaml").write_text(task)
    command = [
        *(PYTHON, "-m", "lm_eval", "--model", "hf", "--model_args"),
        *(f"pretrained={folder},dtype=float32", "--tasks", "made_here", "--device", "cpu"),
        *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **offline}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("samples_made_here_*.jsonl")
    [results] = (tmp_path / "out").rglob("results_*.json")
    said = [json.loads(line) for line in samples.read_text().splitlines()]
    theirs = [[float(nats) for nats, _ in row["filtered_resps"]] for row in said]
    np.testing.assert_allclose(ours, theirs, **CLOSE)
    accuracy = json.loads(results.read_text())["results"]["made_here"]["acc,none"]
    assert accuracy == pytest.approx(np.mean(ours[:, 0] > ours[:, 1]))
    assert 0 < accuracy < 1
