"""Every place where the package can be ended on purpose can be asked for."""

import ast
import os

import pytest

from alignjax.runtime import faults
from tests import runs


def phases_in_the_package() -> set[str]:
    found = set()
    for path in sorted((runs.ROOT / "alignjax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(getattr(node, "func", None), "id", None)
            if isinstance(node, ast.Call) and name == "fault_point":
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
                found.add(node.args[0].value)
    return found


def test_every_phase_is_known_and_exists():
    assert phases_in_the_package() == set(faults.PHASES)


@pytest.mark.parametrize("fault", ["nowhere:1=kill", "step:1=explode", "step", "=kill"])
def test_a_fault_that_cannot_happen_is_refused(fault, monkeypatch):
    monkeypatch.setenv("ALIGNJAX_FAULT", fault)
    with pytest.raises(ValueError, match=r"wanted PHASE:PLACE=ACTION"):
        faults.fault_point("step", "alignment-1")


def test_no_fault_happens_elsewhere(monkeypatch):
    monkeypatch.setenv("ALIGNJAX_FAULT", "step:alignment-2=kill")
    for phase, place in (("step", "alignment-1"), ("saving", "alignment-2"), ("step", "x")):
        faults.fault_point(phase, place)
    monkeypatch.delenv("ALIGNJAX_FAULT")
    faults.fault_point("step", "alignment-2")


def test_a_fault_happens_once(monkeypatch):
    monkeypatch.setenv("ALIGNJAX_FAULT", "step:alignment-2=raise")
    with pytest.raises(faults.FaultError):
        faults.fault_point("step", "alignment-2")
    assert os.environ["ALIGNJAX_FAULT"] == ""
    faults.fault_point("step", "alignment-2")
