"""Slurm: launch/slurm.sbatch with an srun that records."""

import re
import subprocess

import pytest

from tests.launch.commands import HOSTILE, ROOT, refused, stand_ins

SCRIPT = str(ROOT / "launch" / "slurm.sbatch")
JOB = {
    "SLURM_JOB_ID": "123",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_GPUS_ON_NODE": "4",
}


@pytest.fixture
def slurm(tmp_path):
    return stand_ins(tmp_path, "srun", "scontrol")


def srun(*arguments: str, python: str = ".venv/bin/python") -> list[str]:
    flags = ["--cpus-per-task=6", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300"]
    return ["srun", *flags, "--label", python, "-m", "alignjax", "run", *arguments]


def test_any_argument_arrives_as_it_is(slurm):
    assert slurm.run(SCRIPT, *HOSTILE, **JOB).returncode == 0
    assert slurm.calls() == [srun(*HOSTILE)]


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 130, 137, 143])
def test_the_job_ends_with_the_code_of_the_run_and_goes_on_after_143(slurm, code):
    slurm.answer({"srun": [("", code)]})
    assert slurm.run(SCRIPT, "--config=a", **JOB).returncode == code
    again = [["scontrol", "requeue", "Incomplete", "123"]] if code == 143 else []
    assert slurm.calls() == [srun("--config=a"), *again]


def test_a_dry_run_calls_nothing_and_prints_what_would_be_called(slurm):
    done = slurm.run(SCRIPT, *HOSTILE, **JOB, DRY_RUN="1")
    assert slurm.calls() == []
    assert done.stdout.count("\n") == 1
    assert subprocess.run(["bash", "-c", done.stdout], env=slurm.environment).returncode == 0
    assert slurm.calls() == [srun(*HOSTILE)]


def test_set_up_and_python_by_variables(slurm):
    folder = slurm.folder / "a folder"
    folder.mkdir()
    # As activate scripts do: a variable that is not set, and PATH.
    (folder / "activate").write_text('export FROM_SETUP="$NOT_SET:yes"\n')
    program = slurm.folder / "bin" / "srun"
    program.write_text('#!/bin/bash\nprintf "%s " "$FROM_SETUP" "$JAX_PLATFORMS" "$7"\n')
    settings = {"SETUP": str(folder / "activate"), "PYTHON": "/opt/my python"}
    done = slurm.run(SCRIPT, "--config=a", **JOB, **settings)
    assert (done.stdout, done.returncode) == (":yes cuda,cpu -m ", 0)
    settings["DRY_RUN"] = "1"
    assert "/opt/my\\ python -m alignjax" in slurm.run(SCRIPT, "--config=a", **settings).stdout
    assert slurm.run(SCRIPT, "--config=a", **JOB, SETUP="missing").returncode == 1


def test_bad_input_is_refused_before_the_run(slurm):
    refused(slurm.run(SCRIPT, **JOB), "slurm.sbatch: what to run?")
    one = JOB | {"SLURM_NTASKS_PER_NODE": "1"}
    refused(
        slurm.run(SCRIPT, "--config=a", **one),
        "slurm.sbatch: --ntasks-per-node: wanted 4, one for each GPU of a node, found 1",
    )
    assert slurm.calls() == []


def test_sbatch_reads_these_options():
    head, _ = (ROOT / "launch" / "slurm.sbatch").read_text().split("\nset -euo", 1)
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", head, re.MULTILINE))
    # sbatch stops reading at the first line that is no comment.
    assert all(line.startswith("#") for line in head.splitlines() if line)
    assert options == {
        "job-name": "alignjax",
        "nodes": "1",
        "gpus-per-node": "8",
        "ntasks-per-node": "8",
        "cpus-per-task": "8",
        "output": "%x-%j.log",
        "open-mode": "append",
        "signal": "TERM@300",
        "requeue": "",
    }
