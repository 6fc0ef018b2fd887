"""What has to be the same in all processes of a run, compared before anything is compiled."""

import hashlib
import pathlib
import platform
import secrets
import sys
from typing import Any

import alignjax
from alignjax import distributed
from alignjax.config import Config
from alignjax.errors import UserError
from alignjax.fields import describe
from alignjax.recipes import workdirs


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
    one_folder(workdir, "--workdir")


def one_folder(folder: pathlib.Path, field: str) -> None:
    """Checks that every process writes into this folder, and sees what the others write.

    Args:
      folder: made if needed.
      field: how messages call it, ``--workdir``.

    Raises:
      UserError: it is not one folder for all; names the process that does not see the others.
    """
    tokens = distributed.exchange("token", secrets.token_hex(8))
    me, count, token = distributed.index(), len(tokens), tokens[0]
    # A name of its own for every start: file systems of networks remember what was not there.
    mark = [folder / f".process-{i}-of-{count}-{token}" for i in range(count)]
    trouble = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark[me].write_text(token, encoding="utf-8")
    except OSError as error:
        trouble = f"cannot write there: {error.strerror}"
    told = distributed.exchange("written", trouble)
    try:
        others = (
            range(count) if distributed.is_main() else (0,)
        )  # every process and process 0 in both ways
        unseen = [i for i in others if not told[i] and not mark[i].is_file()]
        if not trouble and unseen:
            trouble = f"does not see what process {unseen[0]} writes there"
        told = distributed.exchange("seen", trouble)
    finally:
        mark[me].unlink(missing_ok=True)
    if any(told):
        hosts = distributed.exchange("host", platform.node())
        who = [f"process {i} ({hosts[i]}) {text}" for i, text in enumerate(told) if text]
        raise UserError(
            f"{field}: {folder} is not one folder for all processes: {'; '.join(who[:3])}"
        )


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
