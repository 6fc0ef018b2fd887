"""Does random harm to tiny runs of every recipe, for as long as one says, and counts what came.

    make faults ARGUMENTS="--minutes=120 --seed=1"
    python -m tests.faults --seed=1 --trial=17            # that trial again, with what was printed

A trial is one recipe of `tests.digests`, or a command on a finished run, and one to three faults,
all drawn from the seed and the trial's number: SIGKILL, SIGTERM or SIGINT after a random time or at
a random line of the log, one bit of a random file, a disk that is full (a small file system where
one can be mounted, else a limit on the size of files), or two programs on one folder. Then the
plain command finishes it, and all arrays, metrics and files are compared with those of a run that
nobody disturbed. Every trial is a line of `trials.jsonl`; a start goes on after the last one.
Outcomes:

    same          the undisturbed bits, and no command was refused
    refused       besides, a command ended in one line and an exit code that docs/running.md lists;
                  after the bit was put back, the disk had space, or with --allow_fallback: the same
    said          a flipped file of results stays as it is, and a line told of it
    unread        a flipped file that no command read, and whose readers are told
    SILENT        other results
    HANG          a program that did not end
    TRACEBACK     a traceback, or an exit code that is not listed
    UNNAMED       a refusal that is no single line, or names no file
    STUCK         the plain command is refused with nothing left to mend
"""

import argparse
import collections
import contextlib
import ctypes
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from alignjax import cli
from alignjax import digests as file_digests
from alignjax.errors import UserError
from alignjax.runtime import artifacts, metrics, storage
from tests import digests, runs

PR_SET_PDEATHSIG = 1
LIMIT = (90.0, 20.0)  # a program hangs after so many seconds and so many times its usual time
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
# How a program may end besides 0: 2 where a flag names what cannot be written, -15 before a loop
# listens, 6 where the save that a signal asked for failed.
ENDS = {"kill": {-9}, "term": {143, -15, 6}, "int": {130, 6}, "full": {2, 3}, "flip": {2, 3}}
KINDS = ("kill",) * 4 + ("term", "int") * 2 + ("flip",) * 4 + ("full",) * 3 + ("twice",)
GOOD = ("same", "refused", "said", "unread")
DISK = 256 << 20  # bytes of the small file system
# Commands on finished runs: the run, and the arguments; {run} and {out} are folders.
VERBS = {
    "score": ("reward_model", "score", "--reward_model={run}", "--records={files}/plain.jsonl",
              "--out={out}/scored.jsonl"),
    "generate": ("dpo_cached", "generate", "--workdir={run}", "--out={out}/said.jsonl"),
    "generate of adapters": ("adapters", "generate", "--workdir={run}", "--out={out}/said.jsonl"),
    "export": ("dpo_cached", "export", "--workdir={run}", "--to={out}/exported"),
    "evaluate": ("dpo_cached", "evaluate", "--workdir={run}"),
}  # fmt: skip
RUNS = tuple(name for name in digests.CONFIGS if name not in digests.PARTS)


def folder() -> pathlib.Path:
    return digests.folder()


def source_key() -> str:
    """Changes with the code: references of other code are made again."""
    files = [*sorted((runs.ROOT / "alignjax").rglob("*.py")), pathlib.Path(digests.__file__)]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest()[:12]


# --- programs


def start(arguments: list[str], log: str, *, fresh: bool, file_limit: int = 0) -> int:
    """Starts the program in a process of its own; its number. Its lines go to LOG.out and .err.

    Args:
      fresh: by the interpreter, as users do; else forked from this process, which has imported all.
      file_limit: the largest file that it may write, in bytes; 0: any.
    """
    several = "two_processes" in log
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it must not outlive this process
    runs.redirect(f"{log}.out", f"{log}.err")
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if several or fresh:
        launcher = [str(runs.ROOT / "launch/local.py"), "--processes=2", "--devices=1", "--"]
        head = launcher if several else ["-m", "alignjax"]
        os.environ.update(runs.environment())
        os.execv(sys.executable, [sys.executable, *head, *arguments])
    return runs.become(cli.main, arguments)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code of a program; None: it goes on after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.004)


def errors(log: str) -> str:
    """What a program wrote on standard error so far."""
    path = pathlib.Path(f"{log}.err")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def wait_for_line(pid: int, log: str, line: int, seconds: float) -> int | None:
    """As `wait`, but no longer than until so many lines are in the log."""
    until = time.monotonic() + seconds
    while (code := wait(pid, 0.0)) is None:
        if errors(log).count("\n") >= line or time.monotonic() > until:
            return None
    return code


def end(pid: int) -> None:
    """Ends a program and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # it has been waited for
        wait(pid, 10.0)


def digests_in_child(path: pathlib.Path) -> dict[str, Any]:
    """`digests_of` by a process of its own: this one must not start JAX, or no child could."""
    out = folder() / "digests.json"
    out.unlink(missing_ok=True)
    pid = os.fork()
    if not pid:
        try:
            out.write_text(json.dumps(digests.digests_of(path)), encoding="utf-8")
        except BaseException as error:
            out.write_text(json.dumps({"unread": {"": repr(error)[:300]}}), encoding="utf-8")
        os._exit(0)
    wait(pid, 300.0)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


# --- recipes, and what they give undisturbed


def disk() -> pathlib.Path:
    return folder() / "disk"


def arguments_of(name: str) -> list[str]:
    places = {"run": disk() / "run", "out": disk() / "out", "files": folder()}
    if name in VERBS:
        return [x.format(**places) for x in VERBS[name][1:]]
    return ["run", f"--config={digests.config_file(name)}", f"--workdir={disk() / 'run'}"]


def prepare(name: str) -> None:
    """Empties the disk; puts the finished run there that a command reads."""
    for path in disk().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (disk() / "out").mkdir()
    if name in VERBS:
        shutil.copytree(folder() / source_key() / VERBS[name][0], disk() / "run")


def result(name: str) -> dict[str, Any]:
    return digests_in_child(disk() if name in VERBS else disk() / "run")


def reference(name: str) -> dict[str, Any]:
    """What a recipe gives undisturbed, in how many seconds, with how many lines; made once."""
    kept = folder() / source_key()
    path = kept / f"{name}.json"
    if path.is_file():
        made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return made
    if name in VERBS:
        reference(VERBS[name][0])
    found, seconds, log = [], 0.0, str(folder() / f"{name}.clean")
    for _ in range(2):  # the second one has everything compiled
        prepare(name)
        begin = time.monotonic()
        pid = start(arguments_of(name), log, fresh=False)
        code = wait(pid, 900.0)
        seconds = time.monotonic() - begin
        if code != 0:
            end(pid)
            raise SystemExit(f"{name}, undisturbed: exit code {code}\n{errors(log)[-3000:]}")
        found.append(result(name))
    if other := digests.against_undisturbed(found[1], found[0]):
        raise SystemExit(f"{name}: two undisturbed runs differ: {list(other)[:5]}")
    kept.mkdir(exist_ok=True)
    shutil.rmtree(kept / name, ignore_errors=True)
    if name not in VERBS:
        shutil.copytree(disk() / "run", kept / name)
    made = {"digests": found[1], "seconds": seconds, "lines": errors(log).count("\n")}
    path.write_text(json.dumps(made), encoding="utf-8")
    return made


# --- faults


def draw_fault(draw: random.Random) -> dict[str, Any]:
    """A fault, and all that decides where and when it comes."""
    fault: dict[str, Any] = {"kind": draw.choice(KINDS)}
    fault["at"] = round(draw.random() * 1.05, 4)
    fault["by"] = draw.choice(("time", "line"))
    fault["fresh"] = draw.random() < 0.1
    fault["disk"] = draw.choice(("full", "limit"))
    fault["space"] = int(2 ** draw.uniform(8, 23))
    fault["file"], fault["place"], fault["bit"] = draw.random(), draw.random(), draw.randrange(8)
    fault["fallback"] = draw.random() < 0.5
    return fault


class BadError(Exception):
    """What no program may do: the outcome, and what was seen."""


def judge(kind: str, code: int | None, log: str) -> str:
    """What a program that was disturbed told when it ended; empty: nothing.

    Raises:
      BadError: it hangs, or ends in a way that nobody documents.
    """
    text = errors(log)
    if code is None:
        raise BadError("HANG", text[-1500:])
    if "Traceback (most recent call last)" in text:
        raise BadError("TRACEBACK", text[-3000:])
    if code == 0 or code == -9:
        return ""
    if code not in ENDS.get(kind, {2}):
        raise BadError("TRACEBACK", f"exit code {code} after {kind}: {text[-1500:]}")
    if code in (-15, 130, 143):
        return ""
    lines = text.strip().splitlines() or [""]
    last = re.sub(r"^\[\d+\] ", "", lines[-1])  # the launcher says whose line it is
    if not last.startswith("alignjax: ") or (str(folder()) not in last and "/" not in last):
        raise BadError("UNNAMED", f"exit code {code} after {kind}: {text[-1500:]}")
    return last


def run_with(fault: dict[str, Any], name: str, usual: dict[str, Any], log: str) -> tuple[Any, str]:
    """Starts the program and does the harm; its exit code and what it told."""
    kind, arguments = fault["kind"], arguments_of(name)
    seconds = LIMIT[0] + LIMIT[1] * usual["seconds"]
    limit = fault["space"] if kind == "full" and fault["disk"] == "limit" else 0
    with filled(fault["space"] if kind == "full" and not limit else 0):
        pid = start(arguments, log, fresh=fault["fresh"], file_limit=limit)
        try:
            code = None
            if kind not in ("full", "flip"):
                if fault["by"] == "line":
                    line = 1 + int(fault["at"] * usual["lines"])
                    code = wait_for_line(pid, log, line, usual["seconds"] * 3)
                else:
                    code = wait(pid, fault["at"] * usual["seconds"])
            if kind in SIGNALS and code is None:
                os.kill(pid, SIGNALS[kind])
            if kind == "twice" and code is None:
                other = start(arguments, f"{log}.other", fresh=fault["fresh"])
                second = wait(other, seconds)
                if second is None:
                    end(other)
                judge("twice", second, f"{log}.other")
            code = wait(pid, seconds) if code is None else code
            return code, judge(kind, code, log)
        finally:
            end(pid)


@contextlib.contextmanager
def filled(space: int) -> Iterator[None]:
    """Leaves so many bytes free on the disk; 0: all that are."""
    path = disk() / "filler"
    if not space or not os.path.ismount(disk()):
        yield
        return
    free = shutil.disk_usage(disk()).free
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - space))
    try:
        yield
    finally:
        path.unlink()


def flip(fault: dict[str, Any]) -> tuple[pathlib.Path, bytes, bytes] | None:
    """Changes one bit of a file; the file, and what it held before and after."""
    top = disk() / "run"
    files = sorted(p for p in top.rglob("*") if p.is_file() and p.stat().st_size)
    if not files:
        return None
    path = files[int(fault["file"] * len(files))]
    before = path.read_bytes()
    after = bytearray(before)
    after[int(fault["place"] * len(after))] ^= 1 << fault["bit"]
    path.write_bytes(after)
    return path, before, bytes(after)


def harm(fault: dict[str, Any], name: str, usual: dict[str, Any], log: str) -> dict[str, Any]:
    """Does one fault, and what a user does who is told of it."""
    flipped = flip(fault) if fault["kind"] == "flip" else None
    if fault["kind"] == "flip" and flipped is None:
        return {"kind": "flip", "code": None, "line": ""}
    code, line = run_with(fault, name, usual, log)
    done = {"kind": fault["kind"], "code": code, "line": line, "told": warnings(log)}
    if flipped is None:
        return done
    path, before, after = flipped
    done["file"] = str(path.relative_to(disk()))
    done["named"] = path.name in line
    if line and fault["fallback"] and name not in VERBS and "--allow_fallback" in line:
        log = f"{log}.fallback"
        pid = start([*arguments_of(name), "--allow_fallback"], log, fresh=fault["fresh"])
        try:
            code = wait(pid, LIMIT[0] + LIMIT[1] * usual["seconds"])
            done["fallback"] = judge("flip", code, log) or "went on"
        finally:
            end(pid)
    if path.is_file() and path.read_bytes() == after:  # as it was left by all
        if line:
            path.write_bytes(before)
        else:
            done["flipped"] = flipped
    return done


def is_told(path: pathlib.Path) -> bool:
    """Whether whoever reads a flipped file is told that it is damaged."""
    for part in (path, *path.parents):  # an artifact, or a folder with digests, that it is in
        manifest = part.parent / ".artifacts" / f"{part.name}.manifest.json"
        if manifest.is_file():
            return not artifacts.is_whole(part, json.loads(manifest.read_bytes())["key"])
        if (part / file_digests.NAME).is_file():
            return bool(file_digests.find_damage(part))
    try:
        if path.suffix != ".jsonl":
            storage.read_here(path)
            return False
        return len(metrics.read(path)) < path.read_bytes().count(b"\n")
    except UserError:
        return True


def warnings(log: str) -> list[str]:
    """Lines that tell of damage."""
    words = (
        "damaged",
        "cannot be read",
        "changed since it was written",
        "do not agree",
        "DAMAGED",
        "left out",
    )
    return [x[:300] for x in errors(log).splitlines() if any(word in x for word in words)]


# --- trials


def trial(seed: int, number: int, only: list[str]) -> dict[str, Any]:
    """One trial: what was done and what came of it."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choice(only)
    faults = [draw_fault(draw) for _ in range(draw.choice((1, 1, 2, 3)))]
    told: dict[str, Any] = {"seed": seed, "trial": number, "recipe": name, "code": source_key()}
    begin, usual, done = time.monotonic(), reference(name), []
    prepare(name)
    log = str(folder() / "logs" / f"{name}.{seed}.{number}")
    try:
        for i, fault in enumerate(faults):
            done.append(harm(fault, name, usual, f"{log}.{i}"))
            if name in VERBS and done[-1]["code"] == 0:  # it has done its work
                break
        outcome, detail = finish(name, usual, f"{log}.end", done)
    except BadError as error:
        outcome, detail = error.args
    for fault in done:
        fault.pop("flipped", None)
    told |= {"outcome": outcome, "faults": done or faults, "drawn": faults, "detail": detail}
    if outcome in GOOD:
        for path in (folder() / "logs").glob(f"{name}.{seed}.{number}.*"):
            path.unlink()
        told.pop("drawn")
    return told | {"seconds": round(time.monotonic() - begin, 1)}


def finish(name: str, usual: dict[str, Any], log: str, done: list[Any]) -> tuple[str, Any]:
    """Starts the plain command, and compares."""
    if name not in VERBS or not done or done[-1]["code"] != 0:
        pid = start(arguments_of(name), log, fresh=False)
        try:
            code = wait(pid, LIMIT[0] + LIMIT[1] * usual["seconds"])
            if line := judge("flip", code, log):
                return "STUCK", line
        finally:
            end(pid)
    other = list(digests.against_undisturbed(result(name), usual["digests"]))
    lines = [line for x in done for line in (x["line"], *x.get("told", ())) if line]
    if not other:
        return ("refused" if any(x["line"] for x in done) else "same"), ""
    if lines:
        return "said", other[:5]
    flips = [x["flipped"] for x in done if "flipped" in x]
    flips = [(p, old) for p, old, new in flips if p.is_file() and p.read_bytes() == new]
    told = [is_told(path) for path, _ in flips]
    for path, before in flips:  # what is compared may need a file that no command has read
        path.write_bytes(before)
    same = not list(digests.against_undisturbed(result(name), usual["digests"]))
    return ("unread" if same and told and all(told) else "SILENT"), other[:5]


def set_up(work: pathlib.Path) -> None:
    """The folder, its files and its small disk; this process starts nothing of JAX's."""
    work.mkdir(parents=True, exist_ok=True)
    digests.set_up(str(work))
    os.environ.update(digests.compiled() | {"JAX_COMPILATION_CACHE_DIR": str(work / "compiled")})
    jax.config.update("jax_compilation_cache_dir", str(work / "compiled"))
    digests.write_files()
    for path in (disk(), work / "logs"):
        path.mkdir(exist_ok=True)
    os.chdir(work)
    if not os.path.ismount(disk()) and os.geteuid() == 0:
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(disk())]
        subprocess.run(mounting, check=False, capture_output=True)
    if not os.path.ismount(disk()):
        print("no small file system can be mounted: full disks are limits on the size of files")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = pathlib.Path(tempfile.gettempdir()) / "alignjax-faults"
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join((*RUNS, *VERBS)), help="recipes, by name")
    parser.add_argument("--trial", type=int, default=-1, help="this one alone; it is not recorded")
    parser.add_argument("--folder", type=pathlib.Path, default=default, help="kept between starts")
    options = parser.parse_args()
    set_up(options.folder.resolve())
    only, until = options.only.split(","), time.monotonic() + 60 * options.minutes
    if options.trial >= 0:
        print(json.dumps(trial(options.seed, options.trial, only), indent=1))
        return 0
    path = folder() / "trials.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    old = [x for x in map(json.loads, lines) if x["seed"] == options.seed]
    number = max((x["trial"] for x in old), default=-1)
    counts = collections.Counter(x["outcome"] for x in old)
    while time.monotonic() < until:
        number += 1
        told = trial(options.seed, number, only)
        counts[told["outcome"]] += 1
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        kinds = ", ".join(x["kind"] for x in told["faults"])
        print(f"{number} {told['outcome']:9} {told['recipe']}: {kinds} {told['detail']}"[:400])
    print(f"{counts.total()} trials: {dict(counts)}")
    if os.path.ismount(disk()):
        subprocess.run(["umount", str(disk())], check=False, capture_output=True)
    return int(any(outcome not in GOOD for outcome in counts))


if __name__ == "__main__":
    from tests import faults  # one module, of the name that config files import

    raise SystemExit(faults.main())
