"""The other Python, which has torch, transformers and PEFT: there under `make test-parity`."""

import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("ALIGNJAX_PARITY_PYTHON", "")


def ask(*arguments: object, program: str = "reference.py") -> None:
    """Runs a program of this folder, which may import what this process cannot."""
    command = [PYTHON, str(HERE / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
