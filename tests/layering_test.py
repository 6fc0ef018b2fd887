"""Who may import whom, and that starting up stays light.

New files are covered without touching this one, except a new file directly in ``alignjax/``: it
has to be given its place in ``LAYERS``.
"""

import ast
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the top down. A file imports from its own layer and from lower ones.
LAYERS = (
    ("__main__",),
    ("recipes",),
    ("online", "online_game"),
    ("train",),
    (
        *("step", "game", "data", "checkpoint", "metrics", "evaluate", "generate", "score"),
        *("plan", "hlo", "hlo_costs", "report", "reference", "calibration"),
        *("text_metrics", "winrate", "history", "fronts"),
    ),
    ("decode", "beam"),
    (
        "logps",
        "kl",
        "optim",
        "sharding",
        "config",
        "config_checks",
        "configfile",
        "logits",
        "mixture",
    ),
    ("models", "objectives"),
    ("types", "fields", "distributed"),
    ("cluster", "peers"),
    ("errors", "faults", "pareto"),
)
# Narrower than their layer: all of alignjax that these may import.
ONLY = {
    "objectives": {"objectives", "types", "errors", "pareto"},
    "models": {"models", "types", "errors"},
    "data": {"data", "types", "errors"},
}
# The loop and the two steps receive their objective as an argument.
NEVER = {
    name: {"objectives"}
    for name in ("step", "game", "train", "online", "online_game", "logps", "config")
}
# What may be imported when the module is. Configs import objectives and data, and have to load
# fast and without an accelerator; all else is imported inside the function that needs it.
AT_IMPORT = {
    "objectives": {"jax", "optax", "numpy"},
    "data": {"numpy", "jinja2"},
    "config": set(),
    "config_checks": set(),
    "errors": set(),
    "__main__": {"absl"},
}
# Makes arrays for the device, and no config imports it.
MAY_IMPORT_TYPES = {"alignjax.data.batching"}
HEAVY = {
    *("array_record", "grain", "matplotlib", "orbax", "sentencepiece", "tensorboardX"),
    *("tensorflow", "tensorflow_datasets", "tensorstore", "tokenizers"),
}


def imports(module: str, source: str) -> list[tuple[str, bool]]:
    """Every module that a source file imports, and whether importing the file imports it."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, not inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write it in full"
            # `from alignjax import types` and `from alignjax.types import Batch` name one module.
            whole = node.module in ("alignjax", *(f"alignjax.{name}" for name in ONLY))
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.extend((name, not inside) for name in (names if whole else [node.module]))
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), inside=False)
    return found


def part(module: str) -> str:
    """``objectives`` for ``alignjax.objectives.dpo``; empty for the package itself."""
    return [*module.split("."), ""][1]


def rank(name: str) -> int:
    places = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert places, f"alignjax/{name}.py has no place in LAYERS of tests/layering_test.py"
    return places[0]


def violations(module: str, source: str) -> list[str]:
    """What in a file goes against the layering, one line each."""
    here, found = part(module), []
    if not here:
        return [f"{module} imports {name}" for name, _ in imports(module, source)]
    for name, at_import in imports(module, source):
        if name.split(".")[0] == "alignjax":
            there = part(name)
            upwards = there and rank(there) < rank(here)
            outside = there and here in ONLY and there not in ONLY[here]
            early = here == "data" and there == "types" and at_import
            if early and module not in MAY_IMPORT_TYPES:
                found.append(f"{module} imports {name}, which imports jax, when it is imported")
            if upwards or outside or there in NEVER.get(here, ()):
                found.append(f"{module} imports {name}")
        elif at_import and here in AT_IMPORT:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top not in AT_IMPORT[here]:
                found.append(f"{module} imports {name} when it is imported")
    return found


def package_files() -> dict[str, pathlib.Path]:
    files = {}
    for path in sorted((ROOT / "alignjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def test_lower_layers_never_import_higher_ones():
    found = [v for m, path in package_files().items() for v in violations(m, path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("alignjax.errors", "from alignjax.types import Batch"),
        ("alignjax.types", "import alignjax.config"),
        ("alignjax.objectives.new", "from alignjax.logps import response_logps"),
        ("alignjax.objectives.new", "from alignjax import config"),
        ("alignjax.objectives.new", "import flax"),
        ("alignjax.objectives.new", "def loss():\n    from alignjax.data import world"),
        ("alignjax.models.new", "from alignjax.sharding import mesh"),
        ("alignjax.models.new", "from alignjax.objectives.dpo import loss"),
        ("alignjax.step", "from alignjax.objectives import dpo"),
        ("alignjax.game", "import alignjax.objectives.apo"),
        ("alignjax.train", "from alignjax.objectives import dpo"),
        ("alignjax.data.new", "import jax"),
        ("alignjax.data.new", "import tensorflow_datasets as tfds"),
        ("alignjax.data.new", "if True:\n    import grain"),
        ("alignjax.data.new", "class Reader:\n    import tokenizers"),
        ("alignjax.data.new", "from alignjax.types import Batch"),
        ("alignjax.data.new", "from alignjax.train import run"),
        ("alignjax.config", "import jax"),
        ("alignjax.optim", "import alignjax.step"),
        ("alignjax.__main__", "import matplotlib"),
        ("alignjax.recipes.new", "from alignjax.__main__ import main"),
        ("alignjax", "import jax"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("alignjax.objectives.new", "import jax.numpy as jnp\nfrom alignjax.objectives import dpo"),
        ("alignjax.objectives.new", "from alignjax.types import Batch\nimport optax, math"),
        ("alignjax.data.new", "import numpy\ndef f():\n    import grain"),
        ("alignjax.data.new", "def f():\n    from alignjax.types import Batch"),
        ("alignjax.train", "from alignjax import config, step"),
        ("alignjax.recipes.new", "from alignjax.objectives import dpo"),
        ("alignjax.__main__", "def main():\n    import alignjax.train, matplotlib"),
    ],
)
def test_a_right_import_is_not(module, source):
    assert violations(module, source) == []


def test_a_file_without_a_place_is_named():
    with pytest.raises(AssertionError, match=r"alignjax/surprise\.py has no place in LAYERS"):
        violations("alignjax.surprise", "import alignjax.types")


def test_no_module_imports_itself_through_others():
    files = package_files()
    graph = {}
    for module, path in files.items():
        names = [name for name, _ in imports(module, path.read_text())]
        # A name that is no module of its own is something inside its package.
        near = {name if name in files else name.rpartition(".")[0] for name in names}
        graph[module] = (near & files.keys()) - {module}
    while free := [module for module, needs in graph.items() if not needs & graph.keys()]:
        for module in free:
            del graph[module]
    assert not graph, f"these modules import one another in a circle: {sorted(graph)}"


def fresh_python(code: str) -> subprocess.CompletedProcess:
    """Runs code where touching any accelerator, the CPU's included, is an error."""
    env = os.environ | {"JAX_PLATFORMS": "none_such"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def loaded_by(code: str) -> set[str]:
    """Top-level packages that are loaded once the code has run."""
    tail = "\nimport json, sys\nprint(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = fresh_python(code + tail)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "module",
    ["", ".errors", ".config", ".data.records", ".data.sources", ".data.world", ".__main__"],
)
def test_importing_is_light(module):
    loaded = loaded_by(f"import alignjax{module}")
    assert not loaded & (HEAVY | {"jax", "flax", "optax"})


def test_loading_any_config_is_light():
    configs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.py"))
    assert configs
    loaded = loaded_by(f"import runpy\nfor path in {configs}: runpy.run_path(path)['get_config']()")
    assert not loaded & HEAVY


def test_the_checks_above_see_heavy_imports_and_devices():
    assert "tensorstore" in loaded_by("import orbax.checkpoint")
    assert fresh_python("import jax; jax.devices()").returncode != 0


def test_help_is_fast():
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is not ours
        start = time.perf_counter()
        done = fresh_python(
            "import runpy, sys; sys.argv[1:] = ['--help']; "
            "runpy.run_module('alignjax', run_name='__main__')"
        )
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert "demo" in done.stdout
    assert min(seconds) < 2
