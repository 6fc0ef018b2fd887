"""Mutants are changes in one place, of what runs."""

import ast

import pytest

from tests import mutants


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("x = a < b", {"x = (a >= b)"}),
        ("x = a + b", {"x = (a - b)", "x = a"}),
        ("x = -a", {"x = a"}),
        ("x = 3", {"x = 4"}),
        ("if a:\n    b()", {"if a:\n    pass", "if (not a):\n    b()"}),
        ("x = b if a else c", {"x = b if (not a) else c"}),
        ("raise ValueError", {"pass"}),
        ("def f(x: 3 = None) -> 4: '''1 < 2'''", set()),
        ("x = f'{a + b}'", set()),
    ],
)
def test_each_mutant_is_one_change(source, wanted):
    text = source.encode()
    assert {m.apply(text).decode() for m in mutants.mutants(text)} == wanted


def test_every_file_to_mutate_has_tests_and_every_mutant_is_a_program():
    found = mutants.targets("")
    assert {p.stem for p in found} >= {"dpo", "step", "batching", "decode"}
    for path in found:
        source = path.read_bytes()
        for mutant in list(mutants.mutants(source))[::20]:
            ast.parse(mutant.apply(source))
