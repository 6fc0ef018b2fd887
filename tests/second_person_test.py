"""A second person's path: one copied objective and one copied config train a new loss.

Outside the package, with new names and another formula, from the copy's own folder.
"""

import json
import math
import re
import shutil

import pytest

from tests import runs

HINGE = """
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    losses = jax.nn.relu(slack - margin)
    return losses, {**pair_metrics(reward, logps.policy), "hinge/active": (losses > 0) * 1.0}
"""
SMALL = (
    *("data.source.size=200", "data.max_prompt_tokens=32", "data.max_response_tokens=48"),
    *("data.eval_fraction=0.1", "data.max_drop_fraction=0.1"),
    *("tokenizer.vocab_size=320", "model.vocab_size=320", "model.width=32", "model.layers=1"),
    *("model.heads=2", "model.kv_heads=2", "model.head_dim=16", "model.mlp_width=64"),
    *("sft.steps=3", "sft.batch_size=8", "train.steps=4", "train.batch_size=8"),
    *("train.log_every=1", "evaluate.prompts=0", "evaluate.batch_size=8"),
)


@pytest.fixture
def folder(tmp_path):
    """The two copies, changed the way a person would."""
    shutil.copy(runs.ROOT / "alignjax" / "losses" / "dpo.py", tmp_path / "hinge.py")
    shutil.copy(runs.ROOT / "configs" / "demo" / "dpo.py", tmp_path / "my_run.py")

    objective = (tmp_path / "hinge.py").read_text()
    begin = objective.index("    reward = beta * implicit(logps)\n")
    end = objective.index("\n\n\ndef check_pairs")
    objective = objective[:begin] + HINGE.strip("\n") + objective[end:]
    objective = objective.replace("def loss(", "def hinge_loss(")
    objective = objective.replace("label_smoothing: float = 0.0", "slack: float = 1.0")
    (tmp_path / "hinge.py").write_text(objective)

    config = (tmp_path / "my_run.py").read_text()
    imported = "from alignjax.losses import dpo, sft\n"
    bound = "partial(dpo.loss, "
    assert imported in config
    assert bound in config
    config = config.replace(imported, "from alignjax.losses import sft\n\nimport hinge\n")
    config = config.replace(bound, "partial(hinge.hinge_loss, slack=0.5, ")
    (tmp_path / "my_run.py").write_text(config)
    return tmp_path


def start(folder, *overrides, env):
    sets = [f"--set={x}" for x in (*SMALL, *overrides)]
    return runs.start("run", "--config=my_run.py", "--workdir=out", *sets, cwd=folder, **env)


@pytest.mark.slow
def test_two_copied_files_train_a_new_loss(folder, compiled):
    # No change to the package, and none of its folders on the path of the program but the package.
    done = start(folder, "loss.slack=0.8", env=compiled)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for x in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss"] for x in lines if "loss" in x]
    assert losses[0] == pytest.approx(0.8, abs=1e-6)  # its own value at the reference
    assert losses[0] != pytest.approx(math.log(2), abs=1e-2)
    assert losses[-1] != losses[0]
    assert next(x["hinge/active"] for x in lines if "loss" in x) == 1
    described = json.loads((folder / "out" / "config.json").read_text())["loss"]
    assert described["function"] == "hinge.hinge_loss"
    assert described["slack"] == 0.8
    assert "plot: out/report.png" in done.stdout


@pytest.mark.slow
def test_its_mistakes_are_told_like_ours(folder, compiled):
    path = folder / "hinge.py"
    path.write_text(path.read_text().replace("slack - margin", "slack - margn"))
    done = start(folder, env=compiled)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert re.search(r"loss: hinge\.hinge_loss on this data: hinge\.py:\d+: NameError", line), line
    assert "Traceback" not in done.stderr

    path.write_text(path.read_text().replace("import jax\n", "import jaks\n"))
    done = start(folder, env=compiled)
    assert re.search(r"hinge\.py:\d+: ModuleNotFoundError: .*'jaks'", done.stderr)
