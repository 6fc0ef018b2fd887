"""All shell scripts: bash reads them, shellcheck finds nothing."""

import pathlib
import subprocess
import sysconfig

import pytest

from tests.launch.commands import ROOT

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch"), ROOT / ".ci" / "run"])


def shellcheck(*paths: pathlib.Path) -> subprocess.CompletedProcess:
    program = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
    return subprocess.run([program, *paths], capture_output=True, text=True)


def test_shellcheck_finds_nothing():
    assert {path.name for path in SCRIPTS} >= {"tpu_vm.sh", "tpu_worker.sh", "gke.sh"}
    assert {path.name for path in SCRIPTS} >= {"slurm.sbatch", "run"}
    done = shellcheck(*SCRIPTS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it_and_it_stops_at_errors(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    code = [line for line in lines if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert not any("eval" in line.split() for line in code)
