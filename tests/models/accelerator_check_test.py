"""The check of a new device, on the one that tests have."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import accelerator_check
from tests import runs


@pytest.mark.long
def test_kernels_give_the_numbers_of_the_plain_way(compiled):
    command = [sys.executable, "benchmarks/accelerator_check.py", "--small"]
    environment = {**os.environ, **compiled}
    done = subprocess.run(command, cwd=runs.ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers, speed = done.stdout.split("tokens/s")
    assert "WRONG" not in numbers
    for kernel in ("tiles", "xla"):
        assert numbers.count(f" {kernel} ") == 2  # networks
        assert f"\n{kernel} " in speed


def test_an_error_is_that_of_the_worst_array():
    wanted = {"a": np.array([100.0, 1.0]), "b": np.array([1.0])}
    found = {"a": np.array([101.0, 1.0]), "b": np.array([1.5])}
    assert accelerator_check.error(wanted, wanted) == 0
    assert accelerator_check.error(found, wanted) == 0.5
