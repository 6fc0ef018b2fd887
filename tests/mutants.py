"""Changes the package in one place at a time and asks whether its tests notice.

    make mutants ARGUMENTS="--only=losses --sample=20 --seed=1"

A mutant is a copy of the repository with one comparison turned round, one sign, constant or
condition changed, one term dropped or one statement removed. The tests of that file, of the quick
ones, should fail. Every verdict is one line of mutants.jsonl: what has one is not run again, until
the file or its tests change. Mutants that survive are printed with file, line and what was changed:
each asks for a test, unless it changes nothing that anybody could see.
"""

import argparse
import ast
import copy
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "mutants.jsonl"
COPIED = ("alignjax", "tests", "configs", "launch", "pyproject.toml", "README.md")
SECONDS = 300  # a mutant that loops for ever is killed, too

LOSS_TESTS = (
    "tests/losses/values_test.py -k {name}",
    "tests/losses/shared_test.py",
    "tests/losses/{name}_test.py",
    "tests/losses/conformance_test.py -k {name}.",
)
# Files, and the arguments of pytest that test them, one call after the other.
MUTATED = {
    "alignjax/losses/*.py": LOSS_TESTS,
    "alignjax/training/step.py": ("tests/training/step_test.py",),
    "alignjax/training/microbatches.py": (
        "tests/training/step_test.py",
        "tests/training/microbatches_test.py",
    ),
    "alignjax/training/baseline.py": ("tests/training/step_test.py",),
    "alignjax/models/transformer.py": (
        "tests/models/logps_test.py",
        "tests/models/transformer_test.py",
    ),
    "alignjax/models/layer.py": ("tests/models/logps_test.py",),
    "alignjax/models/stream.py": ("tests/models/stream_test.py",),
    "alignjax/models/tiles.py": ("tests/models/stream_test.py",),
    "alignjax/models/attention.py": ("tests/models/attention_test.py",),
    "alignjax/data/batching.py": ("tests/data/batching_test.py",),
    "alignjax/data/records.py": ("tests/data/records_test.py",),
    "alignjax/data/encode.py": ("tests/data/encode_test.py",),
    "alignjax/data/tokenizer/*.py": ("tests/data/tokenizer/tokenizer_test.py",),
    "alignjax/runtime/artifacts.py": ("tests/runtime/artifacts_test.py",),
    "alignjax/sampling/*.py": ("tests/sampling/{name}_test.py",),
}

PAIRS = ((ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot))
NEGATED = dict(pair[::way] for pair in (*PAIRS, (ast.In, ast.NotIn)) for way in (1, -1))
OTHER_SIGN = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: ``before`` is replaced by ``after`` in the bytes from ``start`` to ``end``."""

    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants(source: bytes) -> Iterator[Mutant]:
    """Every mutant of a file, from its first line to its last."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in _nodes(ast.parse(source)):
        for old, new in _changes(node):
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[(old.end_lineno or old.lineno) - 1] + (old.end_col_offset or 0)
            text = ast.unparse(new)
            bare = isinstance(new, ast.stmt | ast.Constant | ast.Name)
            yield Mutant(
                old.lineno, start, end, source[start:end].decode(), text if bare else f"({text})"
            )


def _nodes(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The nodes that run: no annotations, docstrings or parts of formatted text."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield node
            if isinstance(node, ast.AST):
                yield from _nodes(node)


def _changes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """What stands in a node's place, or in that of a part of it, in its mutants."""
    if isinstance(node, ast.If | ast.IfExp):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield node, _with(node, ops=[NEGATED[type(node.ops[0])]()])
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER_SIGN:
        yield node, _with(node, op=OTHER_SIGN[type(node.op)]())
        if isinstance(node.op, ast.Add | ast.Sub):
            yield node, node.left  # the second term is dropped
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, ast.Constant({0: 1, 1: 0}.get(node.value, node.value + 1))
    elif isinstance(node, ast.Raise | ast.AugAssign) or _is_call(node):
        yield node, ast.Pass()


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return ast.fix_missing_locations(other)


def targets(only: str) -> dict[pathlib.Path, list[list[str]]]:
    """The files to mutate whose path has ``only`` in it, and the tests of each that exist."""
    found = {}
    for pattern, calls in MUTATED.items():
        for path in sorted(ROOT.glob(pattern)):
            texts = [call.format(name=path.stem).split() for call in calls]
            own = [call for call in texts if (ROOT / call[0]).is_file()]
            if own and only in str(path.relative_to(ROOT)) and path.stem != "__init__":
                found[path] = own
    return found


def survives(folder: pathlib.Path, calls: list[list[str]]) -> bool:
    """Whether all tests of a file pass in a copy of the repository."""
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    for call in calls:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist", "-m", "not slow"]
        try:
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider", "-p", "no:randomly", *call],
                cwd=folder, env=env, capture_output=True, timeout=SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in (0, 5):  # 5: nothing was selected
            return False
    return True


def key(path: pathlib.Path, calls: list[list[str]], mutant: Mutant) -> str:
    """Changes with the mutant, and with the tests that are to kill it."""
    digest = hashlib.sha256(mutant.apply(path.read_bytes()))
    for call in calls:
        digest.update((ROOT / call[0]).read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the path of the files to mutate")
    parser.add_argument("--sample", type=int, default=0, help="that many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which mutants a sample holds")
    options = parser.parse_args()
    every = []
    for path, calls in targets(options.only).items():
        source = path.read_bytes()
        every += [(path, calls, mutant) for mutant in mutants(source)]
    if options.sample:
        every = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    verdicts = {line["key"]: line["survives"] for line in map(json.loads, lines)}
    alive = 0
    with tempfile.TemporaryDirectory() as top:
        folder = pathlib.Path(top)
        for name in COPIED:
            copying = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copying(ROOT / name, folder / name)
        for number, (path, calls, mutant) in enumerate(every, 1):
            name = path.relative_to(ROOT)
            own = key(path, calls, mutant)
            if own not in verdicts:
                (folder / name).write_bytes(mutant.apply(path.read_bytes()))
                verdicts[own] = survives(folder, calls)
                shutil.copy(path, folder / name)
                with RESULTS.open("a") as results:
                    results.write(json.dumps({"key": own, "survives": verdicts[own]}) + "\n")
            alive += verdicts[own]
            verdict = "SURVIVED" if verdicts[own] else "killed"
            print(f"{number}/{len(every)} {verdict} {name}:{mutant.line}", flush=True)
            if verdicts[own]:
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    print(f"{len(every) - alive} of {len(every)} mutants killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
