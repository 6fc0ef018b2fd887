"""Changes one bit of one file of a finished run, again and again, and counts what comes of it.

    python benchmarks/flips.py --workdir=runs/flips --flips=100
    python benchmarks/flips.py --workdir=runs/flips --flips=100 --only=dpo_cached,game_rounds

The runs are tiny ones of `tests/digests.py`, a folder each; one that has ended is used as it is.
Each flip changes a copy: it draws one of all its files, and a bit of that file. Then the program's
own commands export the copy, run it again and export it once more, in this process. Every flip is
a line of `flips.jsonl` in the workdir, and a later start continues after the last one. Outcomes:

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
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax import cli
from alignjax.cli import options
from alignjax.errors import UserError
from alignjax.runtime import metrics
from tests import digests
from tests.faults import is_told

# One of each recipe; and what an export of it needs besides.
RECIPES: dict[str, list[str]] = {
    "dpo_cached": [],
    "hard_negatives": [],
    "labelled_rdro": [],
    "adapters": [],
    "quantised": [],
    "reward_model": [],
    "game_rounds": [],
    "game_steps": [],
    "front_paretohqd": ["--preference=all"],
    "front_modpo": ["--preference=all"],
}
FLIPS = "flips.jsonl"
RESULTS = ("summary", "data_report", "before", "after", "front", "history", "policies")
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
            text = path.read_text(encoding="utf-8", errors="replace")
            with contextlib.suppress(ValueError):  # damaged: it differs
                text = json.dumps(plain(json.loads(text)))
            found[str(path.relative_to(workdir))] = text.replace(str(workdir), "").encode()
    for path in sorted(workdir.rglob("metrics.jsonl")):
        lines = [plain(line) for line in metrics.read(path)]
        found[str(path.relative_to(workdir))] = json.dumps(lines).encode()
    for number, folder in enumerate(exported):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".safetensors", ".json", ".model", ".jinja"):
                found[f"export {number}/{path.relative_to(folder)}"] = path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def use(recipe: str, workdir: pathlib.Path) -> tuple[list[str], dict[str, str]]:
    """Exports a finished run, runs it again and exports it again; what was refused, and results."""
    config = digests.config_file(recipe)
    refused, folders = [], []
    for number in range(2):
        to = workdir.parent / f"{workdir.name}-export-{number}"
        shutil.rmtree(to, ignore_errors=True)
        if line := do("export", f"--workdir={workdir}", f"--to={to}", *RECIPES[recipe]):
            refused.append(line)
        folders.append(to)
        if not number and (line := do("run", f"--config={config}", f"--workdir={workdir}")):
            refused.append(line)
            return refused, {}
    return refused, results(workdir, *folders)


def flips(
    recipe: str, clean: pathlib.Path, top: pathlib.Path, *, seed: int, first: int, count: int
) -> Iterator[dict[str, Any]]:
    """Yields what came of one flip after another."""
    # The messages name the folder, so that all copies have one place.
    copy, lines = top / "copy", Lines()
    logging.getLogger("alignjax").addHandler(lines)
    shutil.copytree(clean, copy)
    refused, wanted = use(recipe, copy)
    usual = set(lines.lines)  # warnings of the undamaged run
    if refused:
        raise SystemExit(f"{recipe}, nothing flipped: {refused}")
    files = sorted(p for p in clean.rglob("*") if p.is_file() and p.stat().st_size)
    for number in range(first, count):
        draw = random.Random(f"{seed} {recipe} {number}")
        shutil.rmtree(copy)
        shutil.copytree(clean, copy)
        name = str(draw.choice(files).relative_to(clean))
        content = bytearray((copy / name).read_bytes())
        place, bit = draw.randrange(len(content)), draw.randrange(8)
        content[place] ^= 1 << bit
        (copy / name).write_bytes(content)
        lines.lines.clear()
        flip = {"seed": seed, "recipe": recipe, "number": number, "file": name}
        flip |= {"byte": place, "bit": bit}
        try:
            refused, found = use(recipe, copy)
        except Exception as error:
            yield flip | {"outcome": "TRACEBACK", "line": repr(error)[:500]}
            continue
        told = [x for x in lines.lines if x not in usual][:1]
        other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if refused:
            # Whatever is refused at first has to be as it was, once it is accepted.
            named = any(pathlib.Path(name).name in line for line in refused)
            outcome = f"refused, {'named' if named else 'not named'}"
            yield flip | {"outcome": outcome, "line": refused[0]}
        elif other == [name] and is_told(copy / name):  # no command above reads this file
            yield flip | {"outcome": "unread", "line": "whoever reads it is told"}
        elif other:
            outcome = "said, other" if told else "SILENT"
            yield flip | {"outcome": outcome, "line": f"{other} {told}"}
        else:
            yield flip | {"outcome": "said" if told else "unread", "line": "; ".join(told)}


def finished_run(recipe: str, workdir: pathlib.Path) -> pathlib.Path:
    """Makes the run of a recipe, or reads the one that is there."""
    run = workdir / recipe
    if line := do("run", f"--config={digests.config_file(recipe)}", f"--workdir={run}"):
        raise SystemExit(f"{recipe}: {line}")
    return run


def main() -> None:
    """Flips as many bits as it is told to, and prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--flips", type=int, default=100, help="of each recipe")
    parser.add_argument("--only", default=",".join(RECIPES), help="recipes, by name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := set(names) - set(RECIPES):
        parser.error(f"--only: wanted some of {', '.join(RECIPES)}, found {', '.join(unknown)}")
    work = args.workdir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alignjax").propagate = False
    digests.set_up(str(work))
    digests.write_files()
    for recipe in names:
        done = [x for x in all_flips(work) if (x["recipe"], x["seed"]) == (recipe, args.seed)]
        if len(done) >= args.flips:
            continue
        clean = finished_run(recipe, work)
        with tempfile.TemporaryDirectory() as top:
            where = pathlib.Path(top)
            found = flips(recipe, clean, where, seed=args.seed, first=len(done), count=args.flips)
            for flip in found:
                with (work / FLIPS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(flip) + "\n")
                print(f"{recipe} {flip['outcome']:20} {flip['file']}: {flip['line'][:200]}")
    total: collections.Counter[str] = collections.Counter()
    for recipe in names:
        counts = collections.Counter(x["outcome"] for x in all_flips(work) if x["recipe"] == recipe)
        total += counts
        print(f"{recipe}: {counts.total()} flips, {dict(counts)}")
    print(f"all: {total.total()} flips, {dict(total)}")


def all_flips(work: pathlib.Path) -> list[dict[str, Any]]:
    """What was flipped so far."""
    path = work / FLIPS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
