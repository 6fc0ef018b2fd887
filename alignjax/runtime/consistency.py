"""Checks that all processes of a run have the same code, config and folders, before any compile."""

import collections
import hashlib
import json
import pathlib
import platform
import secrets
import sys
from collections.abc import Mapping
from typing import Any

import alignjax
from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.errors import UserError
from alignjax.runtime import distributed, workdirs


def check_programs() -> None:
    """Compares the code of alignjax, the versions of packages, and the command line.

    Raises:
      UserError: something differs; names it and the process.
    """
    if not distributed.several():
        return
    versions = {f"version of {name}": version for name, version in workdirs.versions().items()}
    arguments = " ".join(sys.argv[1:])
    check_same({"code of alignjax": _code_digest(), **versions, "command line": arguments})


def check_run(config: Config, files: Mapping[str, bytes], workdir: pathlib.Path) -> None:
    """Compares every field of the config, and checks that all processes share the workdir.

    Args:
      config: this process's config.
      files: contents of the config's files, which may contain code, by name.
      workdir: created if needed.

    Raises:
      UserError: something differs; names the field and the process.
    """
    if not distributed.several():
        return
    text = {f"text of {name}": _digest(content) for name, content in files.items()}
    check_same(text | _flatten(describe(config), ""))
    check_shared_folder(workdir, "--workdir")


def check_same(values: dict[str, str]) -> None:
    """Compares values that must be equal in all processes: digests, versions, a seed.

    Raises:
      UserError: one differs; names it, and the process that differs from most. All processes
        raise it.
    """
    own = json.dumps({"host": platform.node(), "values": values})
    processes = [json.loads(text) for text in distributed.exchange("same", own)]
    hosts = [process["host"] for process in processes]
    names = list(dict.fromkeys(name for process in processes for name in process["values"]))
    differences = []
    for name in names:
        each = [process["values"].get(name, "nothing") for process in processes]
        if len(set(each)) > 1:
            differences.append(f"{name}: {_describe_difference(each, hosts)}")
    if differences:
        raise UserError(f"the processes disagree on {'; '.join(differences)}")


def _describe_difference(values: list[str], hosts: list[str]) -> str:
    """Names at most four processes that differ from most, and their values."""
    (common, first), (_, second), *_ = collections.Counter(values).most_common()
    most = common if first > second else None
    odd = [
        f"process {i} ({hosts[i]}) has {value}" for i, value in enumerate(values) if value != most
    ]
    more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
    rest = "" if most is None else f", the others have {most}"
    return f"{', '.join(odd[:4])}{more}{rest}"


def check_shared_folder(folder: pathlib.Path, field: str) -> None:
    """Checks that every process can write to a folder, and sees the files of the others.

    Args:
      folder: created if needed.
      field: its flag or field, for messages.

    Raises:
      UserError: the folder is not shared; names the process that does not see the others' files.
    """
    if not distributed.several():
        return
    tokens = distributed.exchange("token", secrets.token_hex(8))
    me, count, token = distributed.index(), len(tokens), tokens[0]
    # New names at every start: network file systems cache for a while that a file is absent.
    marks = [folder / f".process-{i}-of-{count}-{token}" for i in range(count)]
    problem = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marks[me].write_text(token, encoding="utf-8")
    except OSError as error:
        problem = f"cannot write there: {error.strerror}"
    problems = distributed.exchange("written", problem)
    try:
        # Process 0 looks for all files, the others look for process 0's file.
        others = range(count) if distributed.is_main() else (0,)
        unseen = [i for i in others if not problems[i] and not marks[i].is_file()]
        if not problem and unseen:
            problem = f"does not see what process {unseen[0]} writes there"
        problems = distributed.exchange("seen", problem)
    finally:
        marks[me].unlink(missing_ok=True)
    if any(problems):
        hosts = distributed.exchange("host", platform.node())
        who = [f"process {i} ({hosts[i]}) {text}" for i, text in enumerate(problems) if text]
        raise UserError(
            f"{field}: {folder} is not one folder for all processes: {'; '.join(who[:3])}"
        )


def _flatten(description: Any, at: str) -> dict[str, str]:
    """Maps nested dictionaries to dotted names: ``train.seed`` -> 0, and so on."""
    if not isinstance(description, dict):
        return {at.lstrip("."): str(description)}
    parts = (_flatten(value, f"{at}.{name}") for name, value in description.items())
    return {name: text for part in parts for name, text in part.items()}


def _code_digest() -> str:
    """Digests the package's source files, independent of its folder."""
    root = pathlib.Path(alignjax.__file__).parent
    files = sorted(root.rglob("*.py"))
    return _digest(b"".join(f"{f.relative_to(root)}".encode() + f.read_bytes() for f in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
