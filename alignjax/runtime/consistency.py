"""What has to be the same in all processes of a run, compared before anything is compiled."""

import hashlib
import pathlib
import sys
from typing import Any

import alignjax
from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.runtime import distributed, workdirs


def of_programs() -> None:
    """Compares the code of this package, the versions it uses, and the command line.

    Raises:
      UserError: something differs; names it and the odd process.
    """
    if not distributed.several():
        return
    versions = {f"version of {name}": version for name, version in workdirs.versions().items()}
    arguments = " ".join(sys.argv[1:])
    distributed.agree({"code of alignjax": _code(), **versions, "command line": arguments})


def of_runs(config: Config, path: str, workdir: pathlib.Path) -> None:
    """Compares every field of the config, and checks that the workdir is one folder for all.

    Args:
      config: as this process read it.
      path: of the file it was read from, which may hold code as well.
      workdir: made if needed.

    Raises:
      UserError: something differs; names the field and the odd process.
    """
    if not distributed.several():
        return
    told = {"text of --config": _digest(pathlib.Path(path).read_bytes())}
    distributed.agree(told | _flat(describe(config), ""))
    distributed.one_folder(workdir, "--workdir")


def _flat(description: Any, at: str) -> dict[str, str]:
    """``train.seed`` -> 0, and so on."""
    if not isinstance(description, dict):
        return {at.lstrip("."): str(description)}
    parts = (_flat(value, f"{at}.{name}") for name, value in description.items())
    return {name: text for part in parts for name, text in part.items()}


def _code() -> str:
    """A digest of the package's source files, whatever folder it is installed in."""
    root = pathlib.Path(alignjax.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(f"{f.relative_to(root)}".encode() + f.read_bytes() for f in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
