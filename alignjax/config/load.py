"""Config files: Python with one function, ``get_config() -> Config``, and changes to them.

A file for several sizes has ``get_config(size: Literal["1.5b", "8b"] = "8b")``, and the path tells
which: ``--config=configs/hps.py:1.5b``. What is chosen may be something else than a size.

``--set loss.beta=0.2`` reaches dataclass fields and keywords bound with `functools.partial` alike.
"""

import ast
import dataclasses
import importlib.util
import inspect
import pathlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alignjax.config import Config
from alignjax.config.override import apply, tree_of
from alignjax.errors import UserError, did_you_mean


def load(path: str, overrides: list[str]) -> Config:
    """Runs a config file's ``get_config()`` and applies ``field=value`` overrides.

    A config file imports files beside it by their names, as a script does.

    Args:
      path: of the file, with ``:size`` behind it where its ``get_config`` takes one.
      overrides: changes to what it returns.

    Raises:
      UserError: the file is missing, fails or has no ``get_config``, it has no such size, or an
        override does not fit.
    """
    file, size = split_path(path)
    if not file.is_file():
        there = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"--config: no file {file}{did_you_mean(str(file), there)}")
    spec = importlib.util.spec_from_file_location(f"alignjax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        with _neighbours(file.resolve().parent):
            spec.loader.exec_module(module)
            if not hasattr(module, "get_config"):
                raise UserError("defines no get_config()")
            _check_size(module.get_config, size)
            config = module.get_config(size) if size else module.get_config()
    except UserError as error:
        raise UserError(f"--config: {path}: {error}") from error
    except Exception as error:  # the file is a program: anything may happen in it
        raise UserError(f"--config: {_blame(error, file, module)}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"--config: {path}: get_config() returned {type(config).__name__}, wanted Config"
        )
    return override(config, overrides)


def files(path: str) -> dict[str, bytes]:
    """Reads a config file, and the files beside it that it imports; the config itself comes first.

    Args:
      path: as of `load`, which has read it.
    """
    first = split_path(path)[0]
    found: dict[str, bytes] = {}
    wanted = [first]
    while wanted:
        file = wanted.pop()
        if file.name in found or not file.is_file():
            continue
        found[file.name] = file.read_bytes()
        for node in ast.walk(ast.parse(found[file.name])):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wanted += [first.parent / f"{name.partition('.')[0]}.py" for name in names]
    return found


def split_path(path: str) -> tuple[pathlib.Path, str]:
    """Splits ``FILE.py:SIZE`` into the file and the size; the size is empty where none is given."""
    file, colon, size = path.rpartition(":")
    if colon and size and not pathlib.Path(path).is_file():
        return pathlib.Path(file), size
    return pathlib.Path(path), ""


def _check_size(get_config: Any, size: str) -> None:
    """Refuses a size that ``get_config`` does not take; what its annotation lists is taken."""
    # Annotations are text under `from __future__ import annotations`.
    signature = inspect.signature(get_config, eval_str=bool(size))
    parameters = list(signature.parameters.values())
    sizes = typing.get_args(parameters[0].annotation) if parameters else ()
    if size and not sizes:
        raise UserError(f"found size {size!r}, and the config has one size")
    if size and size not in sizes:
        raise UserError(
            f"wanted one of the {parameters[0].name}s {', '.join(sizes)}, found {size!r}"
        )


def override(config: Config, overrides: list[str]) -> Config:
    """Applies ``field=value`` overrides, all at once: what is checked is the result alone.

    Raises:
      UserError: one of them does not fit.
    """
    changed: Config = apply(config, tree_of(overrides))
    return changed


@contextmanager
def _neighbours(folder: pathlib.Path) -> Iterator[None]:
    """Lets a config import the files beside it.

    They are forgotten afterwards: a config of another folder may have a neighbour of that name.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and pathlib.Path(origin).resolve().parent == folder:
                del sys.modules[name]


def _blame(error: Exception, file: pathlib.Path, module: types.ModuleType) -> str:
    """Says what went wrong, and at which line of the config or of a file beside it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", what)
    called = getattr(module, unknown[1], None) if unknown else None
    if unknown and dataclasses.is_dataclass(called) and "Did you mean" not in what:
        what += did_you_mean(unknown[2], [f.name for f in dataclasses.fields(called)])
    folder = file.resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f for f in frames if pathlib.Path(f.filename).resolve().parent == folder]
    return f"{lines[-1].filename}:{lines[-1].lineno}: {what}" if lines else f"{file}: {what}"
