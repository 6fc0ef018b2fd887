"""Who may import whom, by folder, and that starting up stays light."""

import ast
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the top down. A file imports from its own folder and from lower layers.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("library",),
    ("planning",),
    ("recipes",),
    ("commands",),
    ("stages",),
    ("training", "evaluation"),
    ("sampling", "rewards"),
    ("runtime",),
    ("config", "world"),
    ("losses", "models", "data", "testing"),
    ("types",),
    ("gguf_files", "digests"),
    ("errors",),
)
# Narrower than their layer: all of alignjax that these may import.
ONLY = {
    "losses": {"losses", "types", "errors"},
    "world": {"world", "data", "errors"},
}
# The loop and the two steps receive their loss as an argument.
NEVER = {name: {"losses"} for name in ("training", "models", "config", "runtime", "sampling")}
# What may be imported when the module is. Configs import losses, sources and worlds, and have to
# load fast and without an accelerator; all else is imported inside the function that needs it.
AT_IMPORT = {
    "losses": {"chex", "jax", "optax", "numpy"},
    "data": {"numpy", "jinja2"},
    "world": {"numpy"},
    "config": set(),
    "errors": set(),
    "cli": {"absl"},
    "__main__": set(),
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
            found.extend((f"{node.module}.{alias.name}", not inside) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), inside=False)
    return found


def part(module: str) -> str:
    """``losses`` for ``alignjax.losses.dpo``; empty for the package itself."""
    return [*module.split("."), ""][1]


def rank(name: str) -> int:
    places = [i for i, layer in enumerate(LAYERS) if name in layer]
    assert places, f"alignjax/{name} has no place in LAYERS of tests/layering_test.py"
    return places[0]


def violations(module: str, source: str) -> list[str]:
    """What in a file goes against the layering, one line each."""
    here, found = part(module), []
    if not here:
        names = [name for name, _ in imports(module, source)]
        light = sys.stdlib_module_names
        return [f"{module} imports {n}" for n in names if n.split(".")[0] not in light]
    for name, at_import in imports(module, source):
        if name.split(".")[0] == "alignjax":
            there = part(name)
            if there == "__version__":
                continue
            sideways = there and there != here and rank(there) <= rank(here)
            outside = there and here in ONLY and there not in ONLY[here]
            early = here == "data" and there == "types" and at_import
            if early and module not in MAY_IMPORT_TYPES:
                found.append(f"{module} imports {name}, which imports jax, when it is imported")
            if sideways or outside or there in NEVER.get(here, ()):
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
        ("alignjax.losses.new", "from alignjax.models.logps import response_logps"),
        ("alignjax.losses.new", "from alignjax import config"),
        ("alignjax.losses.new", "import flax"),
        ("alignjax.losses.new", "def loss():\n    from alignjax.data import sources"),
        ("alignjax.models.new", "from alignjax.runtime.sharding import mesh"),
        ("alignjax.models.new", "from alignjax.losses.dpo import loss"),
        ("alignjax.models.new", "from alignjax.data import records"),
        ("alignjax.training.step", "from alignjax.losses import dpo"),
        ("alignjax.training.game", "import alignjax.losses.apo"),
        ("alignjax.training.new", "from alignjax.evaluation import tables"),
        ("alignjax.data.new", "import jax"),
        ("alignjax.data.new", "import tensorflow_datasets as tfds"),
        ("alignjax.data.new", "if True:\n    import grain"),
        ("alignjax.data.new", "class Reader:\n    import tokenizers"),
        ("alignjax.data.new", "from alignjax.types import Batch"),
        ("alignjax.data.new", "from alignjax.training.loop import run"),
        ("alignjax.world.new", "from alignjax.config import Config"),
        ("alignjax.config.schema", "import jax"),
        ("alignjax.rewards.new", "from alignjax.sampling import generate"),
        ("alignjax.commands.new", "from alignjax.recipes import align"),
        ("alignjax.recipes.apo.new", "from alignjax.planning import plan"),
        ("alignjax.planning.new", "from alignjax.cli import main"),
        ("alignjax.cli", "import matplotlib"),
        ("alignjax", "import jax"),
        ("alignjax", "from alignjax.library import loading"),
        ("alignjax.recipes.new", "from alignjax.library import loading"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("alignjax.losses.new", "import jax.numpy as jnp\nfrom alignjax.losses import dpo"),
        ("alignjax.losses.new", "from alignjax.types import Batch\nimport optax, math"),
        ("alignjax.data.new", "import numpy\ndef f():\n    import grain"),
        ("alignjax.data.new", "def f():\n    from alignjax.types import Batch"),
        (
            "alignjax.training.loop",
            "import alignjax.config\nfrom alignjax.training import step",
        ),
        ("alignjax.recipes.new", "from alignjax.losses import dpo"),
        ("alignjax.cli", "def main():\n    import alignjax.training.loop, matplotlib"),
    ],
)
def test_a_right_import_is_not(module, source):
    assert violations(module, source) == []


def test_a_folder_without_a_place_is_named():
    with pytest.raises(AssertionError, match="alignjax/surprise has no place in LAYERS"):
        violations("alignjax.surprise.new", "import alignjax.types")


def test_no_folder_holds_too_many_modules():
    """`losses` excepted: one paper, one file."""
    for folder in sorted(p.parent for p in (ROOT / "alignjax").rglob("__init__.py")):
        modules = [p.name for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= 14 or folder.name == "losses", f"{folder}: {len(modules)} modules"


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function after its docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function, clean=False) is not None
    start = first.end_lineno + 1 if has_docstring else first.lineno
    return function.end_lineno - start + 1


def test_modules_and_bodies_are_short():
    """400 lines a module, about 40 a function's body, as CONTRIBUTING.md says."""
    for path in package_files().values():
        source = path.read_text()
        assert source.count("\n") <= 400, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert body_lines(node) <= 45, f"{path}:{node.lineno}: {node.name}"


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
    ["", ".errors", ".config", ".data.records", ".data.sources", ".world.sources", ".cli"],
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
