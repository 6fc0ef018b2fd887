"""The repository as a whole: dependencies, pins, lock file, paths, and what newcomers run first."""

import ast
import functools
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent


def declared(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def pins(python: str) -> dict[str, str]:
    """The versions that requirements.txt gives to one version of Python."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker and not pin.marker.evaluate({"python_version": python}):
            continue
        (only,) = pin.specifier
        assert only.operator == "==", f"requirements.txt: {line!r} is not an exact version"
        name = canonicalize_name(pin.name)
        assert name not in found, f"requirements.txt pins {name} twice for Python {python}"
        found[name] = only.version
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_pins_lie_in_the_declared_ranges(python):
    for wanted in declared("dev"):
        version = pins(python).get(canonicalize_name(wanted.name))
        assert version, f"requirements.txt has no {wanted.name}"
        assert version in wanted.specifier, f"{wanted} is declared and {version} pinned"


def test_both_lock_files_agree():
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {(package["name"], package["version"]) for package in lock["package"]}
    for python in ("3.11", "3.12"):
        assert pins(python).items() <= locked, "run `make pins`"


def test_the_compiler_for_tpus_is_the_locked_one():
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {p["version"] for p in lock["package"] if p["name"] == "libtpu"}
    lines = (ROOT / "tests" / "libtpu.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    assert {next(iter(pin.specifier)).version for pin in found} == locked, "run `make pins`"


def test_the_lock_names_the_public_index_only():
    urls = re.findall(r'(?:url|registry|path) = "([^"]+)"', (ROOT / "uv.lock").read_text())
    hosts = {url.split("/")[2] if "://" in url else url for url in urls}
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


PARITY = ROOT / "tests" / "parity"
# Run in environments of their own, see their docstrings: torch and TRL are declared nowhere.
APART = {
    PARITY / f"{name}.py" for name in ("classifiers", "trl_values", "trl_settings", "reference")
}
APART |= {
    ROOT / f"benchmarks/{name}.py"
    for name in ("peers_torch", "peers_trl", "sums_trl", "sampling_hf")
}


def test_the_parity_script_has_its_packages_pinned():
    pinned = (PARITY / "requirements.txt").read_text()
    for package in ("torch", "transformers", "tokenizers", "numpy"):
        assert re.search(rf"^import {package}\b", (PARITY / "reference.py").read_text(), re.M)
        assert re.search(rf"^{package}==[\d.]+$", pinned, re.M)


@functools.cache
def imported_packages(folder: str) -> set[str]:
    """Third-party top-level packages imported anywhere under a folder of the repository."""
    names: set[str] = set()
    for path in {*(ROOT / folder).rglob("*.py")} - APART:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    ours = {"alignjax", "configs", "tests", "benchmarks", "launch"}
    return names - set(sys.stdlib_module_names) - ours


DISTRIBUTIONS = importlib.metadata.packages_distributions()


def distributions(package: str) -> set[str]:
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(package, [package])}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("alignjax", ("gguf",)),
        ("configs", ()),
        ("benchmarks", ()),
        ("launch", ()),
        ("tests", ("dev",)),
    ],
)
def test_every_imported_package_is_declared(folder, extras):
    names = {canonicalize_name(wanted.name) for wanted in declared(*extras)}
    names |= {"packaging"} if folder == "tests" else set()  # a dependency of pytest
    for package in imported_packages(folder):
        assert distributions(package) & names, f"{folder}/ imports {package}: not in pyproject.toml"


def test_every_dependency_is_used_and_explained():
    table = (ROOT / "BUILD.md").read_text()
    used = {name for package in imported_packages("alignjax") for name in distributions(package)}
    runtime = {wanted.name for wanted in declared()}
    for wanted in declared("dev"):
        row = re.search(rf"^\| `{re.escape(wanted.name)}` \| (.+) \|$", table, re.MULTILINE)
        assert row, f"BUILD.md does not say what {wanted.name} is for"
        if wanted.name in runtime and canonicalize_name(wanted.name) not in used:
            assert "not imported" in row[1], f"{wanted.name} is declared and nothing imports it"


def test_readme_starts_with_the_two_commands():
    block = re.search(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block
    assert [line.split("#")[0].split() for line in block[1].splitlines() if line.strip()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


def tracked() -> list[pathlib.Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the list of files is unknown")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = (ROOT / name for name in filter(None, listed.stdout.decode().split("\0")))
    return [path for path in paths if path.is_file()]  # what is removed may not be committed yet


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
# In backticks or quotes, where a hook says what it runs, or alone on its line before a comment.
COMMAND = re.compile(
    r"(?:`|'|entry: )make ([a-z-]+)|^(?:\$ )?make ([a-z-]+)(?=$|  | #| [A-Z]+=)", re.M
)


def test_every_target_that_a_file_names_exists():
    for path in tracked():
        text = path.read_text(errors="replace")
        for match in COMMAND.finditer(text):
            target, line = match[1] or match[2], text.count("\n", 0, match.start()) + 1
            assert target in TARGETS, f"{path.relative_to(ROOT)}:{line}: no target {target}"
    assert {"demo", "check", "tidy", "test-tpu"} <= TARGETS


@pytest.mark.parametrize("text", ["`make {}`", "entry: make {}", "$ make {}", "make {}  # what"])
def test_a_command_is_recognised(text):
    assert "none" in COMMAND.search(text.format("none")).groups()


LOCAL_PATH = re.compile(r"(?<![\w.~-])/(?:home|Users|root|tmp|work|farm|var/folders)/\w")


def test_no_file_names_a_folder_of_somebodys_machine():
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            name = path.relative_to(ROOT)
            assert not LOCAL_PATH.search(line), f"{name}:{number}: a path of one machine: {line}"


@pytest.mark.parametrize("folder", ["home/someone", "root/code", "tmp/x", "work/main"])
def test_such_a_folder_is_recognised(folder):
    assert LOCAL_PATH.search(f'path = "/{folder}/a.txt"')
    assert not LOCAL_PATH.search(f"https://example.org/{folder}/a.txt")


@pytest.mark.parametrize(
    ("setting", "targets"),
    [
        ({}, ["setup", "lint", "test"]),
        ({"ALL": "1"}, ["setup", "lint", "test-all", "test-tpu"]),
        ({"PARITY": "1"}, ["setup", "test-parity", "lint", "test"]),
    ],
)
def test_ci_makes_these_targets_and_stops_at_the_first_that_fails(setting, targets, tmp_path):
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$1" >> "$MADE"\ntest "$1" != "$FAILS"\n')
    make.chmod(0o755)
    made = tmp_path / "made"
    plain = {name: x for name, x in os.environ.items() if name not in ("ALL", "PARITY")}
    env = {**plain, "PATH": f"{tmp_path}:{os.environ['PATH']}", "MADE": str(made), **setting}
    for fails, wanted in (("", targets), ("lint", targets[: targets.index("lint") + 1])):
        made.unlink(missing_ok=True)
        script = [str(ROOT / ".ci" / "run")]
        done = subprocess.run(script, env={**env, "FAILS": fails}, stdout=subprocess.DEVNULL)
        assert made.read_text().split() == wanted
        assert (done.returncode == 0) == (not fails)


def test_make_test_leaves_out_the_long_tests_alone():
    text = (ROOT / "Makefile").read_text()
    commands = dict(re.findall(r"^(test|test-all|check): setup\n\t.*pytest (.*)$", text, re.M))
    assert commands == {
        "test": '$(PARALLEL) -m "not long"',
        "test-all": "$(PARALLEL)",
        "check": '$(PARALLEL) -m "not slow"',
    }
