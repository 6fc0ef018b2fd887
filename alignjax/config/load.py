"""Loads config files, Python with one function ``get_config() -> Config``, and changes fields.

A file for several sizes has ``get_config(size: Literal["1.5b", "8b"] = "8b")``, and the path
chooses one: ``--config=configs/hps.py:1.5b``. The argument may be something other than a size.

``--set loss.beta=0.2`` changes a field of a dataclass or a keyword bound with `functools.partial`.
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

    A config file may import files beside it by their names, as a script does.

    Args:
      path: of the file, followed by ``:size`` if its ``get_config`` takes one.
      overrides: changes to its config.

    Raises:
      UserError: the file is missing, fails, has no ``get_config`` or no such size, or an override
        does not fit.
    """
    file, size = split_path(path)
    if not file.is_file():
        near = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UserError(f"--config: no file {file}{did_you_mean(str(file), near)}")
    spec = importlib.util.spec_from_file_location(f"alignjax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: wanted a Python file (.py), found {path}")
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
    except Exception as error:  # the file is a program, which may raise anything
        raise UserError(f"--config: {_blame(error, file, module)}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"--config: {path}: get_config(): wanted a Config, found {type(config).__name__}"
        )
    return override(config, overrides)


def files(path: str) -> dict[str, bytes]:
    """Reads a config file, then the files beside it that it imports.

    Args:
      path: as for `load`.
    """
    first = split_path(path)[0]
    contents: dict[str, bytes] = {}
    waiting = [first]
    while waiting:
        file = waiting.pop()
        if file.name in contents or not file.is_file():
            continue
        contents[file.name] = file.read_bytes()
        for node in ast.walk(ast.parse(contents[file.name])):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            waiting += [first.parent / f"{name.partition('.')[0]}.py" for name in names]
    return contents


def split_path(path: str) -> tuple[pathlib.Path, str]:
    """Splits ``FILE.py:SIZE`` into file and size; the size is empty if none is given."""
    file, colon, size = path.rpartition(":")
    if colon and size and not pathlib.Path(path).is_file():
        return pathlib.Path(file), size
    return pathlib.Path(path), ""


def _check_size(get_config: Any, size: str) -> None:
    """Refuses a size that the annotation of the first parameter of ``get_config`` does not list."""
    # Annotations are text under `from __future__ import annotations`.
    signature = inspect.signature(get_config, eval_str=bool(size))
    parameters = list(signature.parameters.values())
    sizes = typing.get_args(parameters[0].annotation) if parameters else ()
    if size and not sizes:
        raise UserError(f"wanted no size, found {size!r}: the config has only one")
    if size and size not in sizes:
        raise UserError(
            f"wanted one of the {parameters[0].name}s {', '.join(sizes)}, found {size!r}"
        )


def override(config: Config, overrides: list[str]) -> Config:
    """Applies ``field=value`` overrides, all at once: only the result is checked.

    Raises:
      UserError: one of them does not fit.
    """
    changed: Config = apply(config, tree_of(overrides))
    return changed


@contextmanager
def _neighbours(folder: pathlib.Path) -> Iterator[None]:
    """Lets a config import the files beside it.

    Then removes these modules, because a config of another folder may import other files of the
    same names.
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
    """Describes an error with its line in the config or in a file beside it."""
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
