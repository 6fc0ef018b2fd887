"""Four files here are programs, and import torch: whoever renews recorded numbers installs it."""

import pathlib

import pytest

from tests.parity.live import HERE, PYTHON, ask

collect_ignore = ["classifiers.py", "reference.py", "trl_settings.py", "trl_values.py"]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of models and answers: the committed one, or a fresh one."""
    if not PYTHON:
        return HERE / "data"
    folder = tmp_path_factory.mktemp("reference")
    ask("make", folder)
    return folder
