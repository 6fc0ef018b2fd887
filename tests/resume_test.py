"""Whole programs killed at exact places, and started again.

The oracle is one run that nobody stops. Whatever happened in between, the run that was stopped
ends with the same bits: parameters, optimizer, key, every line of metrics, every sample.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from alignjax.config.load import load
from alignjax.runtime.sharding import make_mesh
from alignjax.stages import data as prepared
from alignjax.stages.run import Run
from tests import runs

pytestmark = pytest.mark.slow  # what train_test checks in one process, in whole programs

OVERRIDES = (
    *("train.steps=12", "train.save_every=3", "train.eval_every=6", "train.log_every=2"),
    *("reference.mode=cache", "train.epochs=1"),
)
CONFIG = runs.changed(*OVERRIDES)
KILLED = -signal.SIGKILL
# Where one run is ended, in this order, and the exit code: killed between samples, before a save,
# and during one; asked to stop. SIGTERM: loop_test, processes. What else is written, artifacts_test
# ends.
ENDS = {
    "part:before-000000=kill": KILLED,
    "logged:alignment-6=kill": KILLED,
    "step:alignment-8=int": 130,
    "saving:alignment-9=kill": KILLED,
}


def run(workdir, env, **more):
    return runs.start(*runs.run_arguments(workdir, *OVERRIDES), **env, **more)


def leaves(workdir: pathlib.Path) -> dict[str, bytes]:
    """Every array of the last checkpoint, by its path."""
    return runs.leaves(runs.stored(workdir, CONFIG))


def samples(workdir: pathlib.Path) -> list:
    return [json.loads((workdir / f"{x}.json").read_text()) for x in ("before", "after")]


def result(workdir: pathlib.Path) -> dict:
    """What a run came to, without what tells how often it was started."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {k: summary[k] for k in ("table", "steps", "skipped_steps", "data_report")}


@pytest.fixture(scope="module")
def clean(tmp_path_factory, compiled):
    workdir = tmp_path_factory.mktemp("clean")
    done = run(workdir, compiled)
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same(workdir, clean):
    assert leaves(workdir) == leaves(clean)
    assert runs.lines(workdir) == runs.lines(clean)
    assert runs.lines(workdir / "sft") == runs.lines(clean / "sft")
    assert samples(workdir) == samples(clean)
    assert result(workdir) == result(clean)


def test_the_oracle_is_the_whole_run(clean):
    assert len(leaves(clean)) > 20
    steps = [float.fromhex(x["step"]) for x in runs.lines(clean)]
    assert steps == [1, 2, 4, 6, 6, 8, 10, 12, 12]
    assert [len(x["samples"]) for x in samples(clean)] == [4, 4]


def test_however_it_was_ended_it_ends_with_the_same_bits(clean, compiled, tmp_path):
    for fault, code in ENDS.items():
        done = run(tmp_path, compiled, ALIGNJAX_FAULT=fault)
        assert done.returncode == code, (fault, done.stderr[-2000:])
        assert "Traceback" not in done.stderr
        if code != KILLED:  # asked to stop, it saves first
            at = fault[len("step:alignment-") :].partition("=")[0]
            last = done.stderr.strip().splitlines()[-1]
            assert re.match(rf"alignjax: SIG\w+: saved step {at} in {tmp_path}", last), last
            assert (tmp_path / "checkpoints" / at).is_dir()
    done = run(tmp_path, compiled)
    assert done.returncode == 0, done.stderr
    assert "alignment: resuming from step 8 of 12" in done.stderr
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if not p.name.isdigit()]
    assert_same(tmp_path, clean)


@pytest.mark.long
def test_asked_twice_while_it_compiles_it_still_saves(compiled, tmp_path):
    """Signals from outside, the first as soon as the loop listens."""
    program = subprocess.Popen(
        runs.command(*runs.run_arguments(tmp_path, *OVERRIDES)),
        cwd=runs.ROOT,
        env=runs.environment(**compiled),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        metrics = tmp_path / "sft" / "metrics.jsonl"
        while not metrics.is_file() and time.monotonic() < until:
            time.sleep(0.005)
        program.send_signal(signal.SIGTERM)
        time.sleep(0.05)
        program.send_signal(signal.SIGTERM)
        _, stderr = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 143, stderr
    saved = re.search(r"SIGTERM: saved step (\d+) in .*sft", stderr)
    assert saved, stderr
    assert (tmp_path / "sft" / "checkpoints" / saved[1]).is_dir()


@pytest.mark.long
def test_a_complete_run_started_again_changes_nothing(clean, compiled):
    def content(path):
        return {p: p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name in kept}

    kept = ("metrics.jsonl", "before.json", "after.json", "config.json", "data_report.json", "d")
    before, arrays = content(clean), leaves(clean)
    done = run(clean, compiled)
    assert done.returncode == 0, done.stderr
    assert "alignment: complete at step 12, nothing to do" in done.stderr
    assert "supervised" not in done.stderr
    assert f"compiled programs: kept in {compiled['JAX_COMPILATION_CACHE_DIR']}\n" in done.stderr
    assert content(clean) == before
    assert leaves(clean) == arrays


def test_every_row_is_trained_on_once_an_epoch(clean, tmp_path):
    """The batches follow from data and seed alone, and the oracle's metrics follow it."""
    config = load(str(runs.ROOT / "tests" / "runs.py"), ["train.steps=0", "train.epochs=2"])
    data = prepared.prepare_data(config, tmp_path)
    batches = Run(config, tmp_path, data, make_mesh(1, 1, 1)).batches()
    used = np.bincount(batches.rows[batches.rows >= 0], minlength=len(data.train.dataset))
    assert used.tolist() == [2] * len(data.train.dataset)
    data = prepared.prepare_data(config, tmp_path)
    again = Run(config, tmp_path, data, make_mesh(1, 1, 1)).batches()
    np.testing.assert_array_equal(batches.rows, again.rows)


def test_a_second_run_in_the_folder_is_kept_out(clean):
    """The first one is stopped (not killed) where it owns the folder."""
    import fcntl

    with (clean / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on here")
        lock.flush()
        line = runs.refused(*runs.run_arguments(clean, *OVERRIDES))
    assert line == f"--workdir: {clean} is in use by process {os.getpid()} on here"


def test_a_damaged_checkpoint_is_one_line(clean, compiled, tmp_path):
    workdir = shutil.copytree(clean, tmp_path / "w")
    for path in (workdir / "checkpoints" / "12" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:9])
    done = run(workdir, compiled)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 3, done.stderr
    message = rf"alignjax: {workdir}/checkpoints: step 12 is damaged: "
    assert re.match(message, last), done.stderr
    assert done.stderr.count("alignjax: ") == 1
