"""Stand-ins for the programs that the launch scripts call: each call is recorded, none is real."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A recorded call is its argument list and, where asked for, what came by standard input. The answer
# is the first one left of the longest key that the call contains; the last one stays.
PROGRAM = """#!{python} -ISE
import json, os, sys
here = os.path.dirname(os.path.abspath(sys.argv[0]))
argv = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
read = sys.stdin.read() if argv[0] in {reading!r} else ""
with open(os.path.join(here, "..", "calls.jsonl"), "a") as log:
    log.write(json.dumps([argv, read]) + "\\n")
place = os.path.join(here, "..", "answers.json")
answers = json.load(open(place))
keys = [key for key in answers if key in " ".join(argv)]
if keys:
    left = answers[max(keys, key=len)]
    out, code = left.pop(0) if len(left) > 1 else left[0]
    json.dump(answers, open(place, "w"))
    print(out, end="", file=sys.stderr if code else sys.stdout)
    sys.exit(code)
"""

# Arguments that a shell, YAML or a C program could take for something else.
HOSTILE = [
    "$(touch x)",
    "`touch x`",
    'it\'s "quoted" \\ twice \\\\',
    "two\nlines",
    " spaces  and\ttabs ",
    "../..",
    "-rf",
    "--set=model.note=a;b&c|d>e<f*g?h[i]~j#k!l%m{n,o}",
    "${HOME} $HOME $$ $$(HOME) $(HOME) ${NAME} ${ARGS}",
    "& \\1 \\& %s %n",
    "",
    "*",
    "Grüße 木 🙂",
    "true",
]

BAD_NAMES = [
    "",
    *HOSTILE[:-1],
    "Upper",
    "under_score",
    "-dash",
    "dash-",
    "a" * 64,
    "a\n",
    "\na",
    "1",
]


@dataclasses.dataclass(frozen=True)
class Commands:
    """A folder with stand-ins on PATH."""

    folder: pathlib.Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}/usr/local/bin:/usr/bin:/bin"
        return {"PATH": path, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}

    def answer(self, answers: dict[str, list[tuple[str, int]]]) -> None:
        """What calls that contain a key print, and the code they end with, in turn."""
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", script, *arguments],
            env=self.environment | settings,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )

    def take(self) -> list[tuple[list[str], str]]:
        """The calls since the last time, each with its standard input."""
        log = self.folder / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [(argv, read) for argv, read in map(json.loads, lines)]

    def calls(self) -> list[list[str]]:
        return [argv for argv, _ in self.take()]


def stand_ins(folder: pathlib.Path, *names: str, reading: tuple[str, ...] = ()) -> Commands:
    """Makes the stand-ins of the given names; those in `reading` record their standard input."""
    (folder / "bin").mkdir()
    (folder / "answers.json").write_text("{}")
    program = PROGRAM.format(python=sys.executable, reading=reading)
    for name in names:
        (folder / "bin" / name).write_text(program)
        (folder / "bin" / name).chmod(0o755)
    return Commands(folder)


def refused(done: subprocess.CompletedProcess, beginning: str) -> None:
    """Bad input: one line that begins so, exit code 2."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.startswith(beginning), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
