"""Changes one bit of one file of a finished run, again and again, and counts what comes of it.

    python benchmarks/flips.py --config=configs/demo/dpo.py --workdir=runs/flips --flips=1000

The run is made in the workdir, unless it has ended there. Each flip is of a copy: of a file drawn
among all of its files, and a bit drawn in it. Then the copy is exported, run again, and exported
once more, by the program's own commands in this process. Outcomes:

    refused       a command ended in one line and an exit code; `named`: the line names the file
    said          all results are those of the undisturbed run, and a line told of the damage
    unread        all results are the same, and nothing was said: nobody reads that bit
    said, other   a result differs, and a line told of it
    SILENT        a result differs, and nothing was said
    TRACEBACK     anything else
"""

import argparse
import collections
import contextlib
import hashlib
import io
import json
import logging
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax import cli
from alignjax.cli import options
from alignjax.errors import UserError
from alignjax.runtime import metrics

RESULTS = ("summary", "receipt", "before", "after", "front", "history", "policies")
TIMED = re.compile(r"(^|_)(seconds|second|versions|compiles|resumed_from|wait|crc32)(_|$)")


class Lines(logging.Handler):
    """Collects the program's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self.lines.append(record.getMessage())


def do(*arguments: str) -> str:
    """Runs a command in this process; the line that it is refused with, or nothing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.run_verb(options.VALUES(["alignjax", *arguments]))
    except UserError as error:
        return f"{error.exit_code}: {error}"
    finally:
        options.reset()
    return ""


def plain(value: Any) -> Any:
    """JSON data without times and versions."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not TIMED.search(k)}
    return [plain(x) for x in value] if isinstance(value, list) else value


def results(workdir: pathlib.Path, *exported: pathlib.Path) -> dict[str, str]:
    """A digest of every result of a run, and of every exported file."""
    found: dict[str, bytes] = {}
    for path in sorted(workdir.rglob("*.json")):
        if path.stem in RESULTS and ".artifacts" not in path.parts:
            content = json.dumps(plain(json.loads(path.read_text(encoding="utf-8"))))
            content = content.replace(str(workdir), "")
            found[str(path.relative_to(workdir))] = content.encode()
    for path in sorted(workdir.rglob("metrics.jsonl")):
        lines = [plain(line) for line in metrics.read(path)]
        found[str(path.relative_to(workdir))] = json.dumps(lines).encode()
    for number, folder in enumerate(exported):
        for path in sorted(folder.glob("*")):
            if path.suffix in (".safetensors", ".json", ".model", ".jinja"):
                found[f"export {number}/{path.name}"] = path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def use(config: str, workdir: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """Exports a finished run, runs it again and exports it again; what was refused, and results."""
    refused, folders = [], []
    for number in range(2):
        to = workdir.parent / f"{workdir.name}-export-{number}"
        shutil.rmtree(to, ignore_errors=True)
        if line := do("export", f"--workdir={workdir}", f"--to={to}"):
            refused.append(line)
        folders.append(to)
        if not number and (line := do("run", f"--config={config}", f"--workdir={workdir}")):
            refused.append(line)
            return refused, {}
    return refused, results(workdir, *folders)


def flips(
    config: str, clean: pathlib.Path, top: pathlib.Path, seed: int
) -> Iterator[tuple[str, str, str]]:
    """Yields the outcome, the file and a line for one flip after another."""
    # The messages name the folder, so that all copies have one place.
    copy, lines = top / "copy", Lines()
    logging.getLogger("alignjax").addHandler(lines)
    shutil.copytree(clean, copy)
    refused, wanted = use(config, copy)
    assert not refused, refused
    files = sorted(p for p in clean.rglob("*") if p.is_file() and p.stat().st_size)
    draw = random.Random(seed)
    while True:
        shutil.rmtree(copy)
        shutil.copytree(clean, copy)
        name = str(draw.choice(files).relative_to(clean))
        content = bytearray((copy / name).read_bytes())
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        content[place] ^= 1 << bit
        (copy / name).write_bytes(content)
        lines.lines.clear()
        try:
            refused, found = use(config, copy)
        except Exception as error:
            yield "TRACEBACK", f"{name} byte {place} bit {bit}", repr(error)
            continue
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if refused:
            named = any(pathlib.Path(name).name in line for line in refused)
            # Whatever is refused at first has to be as it was, once it is accepted.
            yield f"refused, {'named' if named else 'not named'}", name, refused[0]
        elif other:
            said = "said, other" if lines.lines else "SILENT"
            yield said, f"{name} byte {place} bit {bit}", f"{other} {lines.lines[:1]}"
        else:
            yield "said" if lines.lines else "unread", name, "; ".join(lines.lines[:1])


def main() -> None:
    """Flips as many bits as it is told to, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    options_ = parser.parse_args()
    if line := do("run", f"--config={options_.config}", f"--workdir={options_.workdir}"):
        raise SystemExit(line)
    counts: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + 60 * options_.minutes
    with tempfile.TemporaryDirectory() as top:
        found = flips(options_.config, options_.workdir, pathlib.Path(top), options_.seed)
        for outcome, name, line in found:
            counts[outcome] += 1
            print(f"{outcome:20} {name}: {line[:200]}", flush=True)
            if counts.total() == options_.flips or time.monotonic() > until:
                break
    print(f"{counts.total()} flips: {dict(counts)}")


if __name__ == "__main__":
    main()
