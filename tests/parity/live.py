"""The other Python, which has torch, transformers and PEFT: there under `make test-parity`."""

import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
PYTHON = os.environ.get("ALIGNJAX_PARITY_PYTHON", "")


def ask(*arguments: object) -> None:
    """Runs `reference.py`, which may import what this process cannot."""
    command = [PYTHON, str(HERE / "reference.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
