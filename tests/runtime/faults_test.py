"""Every place where the package can be ended on purpose can be asked for."""

import ast

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
