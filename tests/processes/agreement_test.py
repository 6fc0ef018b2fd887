"""Processes that differ in what they run: refused by all, before anything is compiled."""

import shutil

import pytest

from alignjax.runtime import consistency, distributed
from tests import runs
from tests.processes import members

HOST = distributed.platform.node()
CONFIG = """
    import dataclasses, os
    from alignjax.world import sources as world
    from tests import runs

    def pairs(report, *, seed):
        count = int(os.environ.get("ROWS", "40"))
        return world.pairs(report, size=count, seed=seed)

    def get_config():
        from functools import partial
        config = runs.get_config()
        data = dataclasses.replace(config.data, source=partial(pairs, seed=0))
        train = dataclasses.replace(config.train, seed=int(os.environ.get("SEED", "0")))
        return dataclasses.replace(config, data=data, train=train)
"""


@pytest.fixture
def command(tmp_path):
    path = runs.write(tmp_path / "config.py", CONFIG)
    return runs.command("run", f"--config={path}", "--workdir=here")


def refused(command, folder, each):
    """The one line that all end with, code 2 and no checkpoint."""
    codes, output = members.start(folder, each, command)
    assert codes == [2, 2], output
    lines = {members.last_line(x) for x in output}
    assert len(lines) == 1, lines
    assert "compiling" not in output[0]
    return lines.pop()


@pytest.mark.slow
def test_other_code(command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs.ROOT / "alignjax", copy / "alignjax")
    changed = copy / "alignjax" / "models" / "logps.py"
    changed.write_text(changed.read_text() + "# another version\n")
    path = f"{copy}:{runs.ROOT}"
    line = refused(command, tmp_path, [{}, {"PYTHONPATH": path}])
    assert line.startswith(
        f"alignjax: the processes disagree on code of alignjax: process 0 ({HOST}) has "
    )
    assert f", process 1 ({HOST}) has " in line


def test_another_seed(command, tmp_path):
    line = refused(command, tmp_path, [{}, {"SEED": "3"}])
    assert line == (
        f"alignjax: the processes disagree on train.seed: process 0 ({HOST}) has 0, "
        f"process 1 ({HOST}) has 3"
    )


@pytest.mark.slow
def test_other_data(command, tmp_path):
    line = refused(command, tmp_path, [{}, {"ROWS": "41"}])
    assert line.startswith("alignjax: the processes disagree on the data's training records: ")


def test_every_field_and_the_file_of_a_config_count(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(consistency, "check_same", told.append)
    monkeypatch.setattr(consistency, "check_shared_folder", lambda folder, _: told.append(folder))
    for config in (runs.get_config(), runs.get_config(), runs.changed("loss.beta=0.3")):
        consistency.check_run(config, {"config.py": b"one"}, tmp_path)
    consistency.check_run(runs.get_config(), {"config.py": b"another"}, tmp_path)
    assert told[1::2] == [tmp_path] * 4
    first, same, beta, text = told[::2]
    assert first == same  # what is equal is not refused
    assert {name for name in first if first[name] != beta[name]} == {"loss.beta"}
    assert {name for name in first if first[name] != text[name]} == {"text of config.py"}
    assert first["data.max_prompt_tokens"] == "32"


def test_the_code_counts_wherever_it_lies(monkeypatch, tmp_path):
    before = consistency._code_digest()
    copy = tmp_path / "elsewhere"
    shutil.copytree(runs.ROOT / "alignjax", copy)
    monkeypatch.setattr(consistency.alignjax, "__file__", str(copy / "__init__.py"))
    assert consistency._code_digest() == before
    (copy / "losses" / "dpo.py").write_text("")
    assert consistency._code_digest() != before
