"""launch/local.py: what it starts, whom it tells, what it returns; it leaves nobody behind."""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests import runs

SCRIPT = runs.ROOT / "launch" / "local.py"
# Says where it is and waits; ends as the arguments say.
CHILD = """
import os, pathlib, signal, sys, time
folder, how, me = pathlib.Path(sys.argv[1]), sys.argv[2], os.environ["JAX_PROCESS_ID"]
def caught(signum, frame):
    print("caught", signum, flush=True)
    if not how.startswith("stubborn"):
        sys.exit(128 + signum)
for s in (signal.SIGTERM, signal.SIGINT):
    signal.signal(s, caught)
print("started", flush=True)
(folder / f"new-{me}").write_text(str(os.getpid()))
(folder / f"new-{me}").rename(folder / f"pid-{me}")  # there with what it holds
if how == "fine":
    sys.exit(0)
if "fails" in how and me == how[-1]:
    while len(list(folder.glob("pid-*"))) < 3:
        time.sleep(0.01)
    if "by-signal" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(7)
time.sleep(60)
"""


def gone(folder):
    """Whether every child has ended and was waited for."""
    for path in folder.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    return len(list(folder.glob("pid-*")))


# The launcher is a program of its own: one that has JAX in it should not start others.
LAUNCHER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("local", sys.argv[1])
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
local.GRACE_SECONDS, local.KILL_SECONDS = 0.2, 0.2
each = [local.environment(i, 3, 1, 1234) for i in range(3)]
sys.exit(local.run([sys.executable, "-c", *sys.argv[2:]], each))
"""


def launcher_of(folder, how):
    """The launcher of three children in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(SCRIPT), CHILD, str(folder), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(folder, how):
    """What it returns, and what it says on stdout and stderr."""
    launcher = launcher_of(folder, how)
    out, err = launcher.communicate(timeout=60)
    return launcher.returncode, out, err


def test_all_fine_and_lines_say_whose_they_are(tmp_path):
    code, out, err = ended(tmp_path, "fine")
    assert (code, out) == (0, "started\n")
    assert sorted(err.splitlines()) == ["[1] started", "[2] started"]
    assert gone(tmp_path) == 3


@pytest.mark.parametrize(
    ("how", "wanted"), [("fails-1", 7), ("fails-0", 7), ("fails-by-signal-2", 137)]
)
def test_the_first_that_fails_gives_the_code_and_ends_the_rest(tmp_path, how, wanted):
    code, _, err = ended(tmp_path, how)
    assert code == wanted  # and not that of those ended by SIGTERM, 143
    assert f"local.py: one ended with {code}: ending the others\n" in err
    assert gone(tmp_path) == 3


def test_who_does_not_listen_is_killed(tmp_path):
    assert ended(tmp_path, "stubborn-fails-1")[0] == 7
    assert gone(tmp_path) == 3


def launched(folder, how):
    """The launcher, once its children have started."""
    launcher = launcher_of(folder, how)
    until = time.monotonic() + 60
    while len(list(folder.glob("pid-*"))) < 3 and time.monotonic() < until:
        time.sleep(0.02)
    return launcher


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_all_once(tmp_path, signum):
    launcher = launched(tmp_path, "waits")
    launcher.send_signal(signum)
    said = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signum
    caught = sorted(line for x in said for line in x.splitlines() if "caught" in line)
    assert caught == [f"[1] caught {signum}", f"[2] caught {signum}", f"caught {signum}"]
    assert gone(tmp_path) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells children of it")
def test_a_launcher_that_is_killed_takes_all_with_it(tmp_path):
    launcher = launched(tmp_path, "waits")
    launcher.kill()
    launcher.communicate(timeout=60)
    until = time.monotonic() + 60
    left = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
    assert len(left) == 3
    while left and time.monotonic() < until:
        # Whose parent is gone is a zombie until somebody collects it: that is ended, too.
        left = [pid for pid in left if state(pid) not in ("", "Z")]
        time.sleep(0.02)
    assert not left


def state(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def script(*arguments, **env):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=runs.ROOT,
        env=runs.environment(**env),
        capture_output=True,
        text=True,
        timeout=120,
    )


NASTY = ["--config=a b;$(touch hit)", "--workdir=`touch hit`", "--set", "x='\"&|", "--", "-x"]


def test_a_dry_run_prints_what_would_be_started(tmp_path):
    done = script("--processes=2", "--devices=3", "--", "run", *NASTY, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    ports = set()
    for i, line in enumerate(done.stdout.splitlines()):
        words = shlex.split(line)
        split = words.index(sys.executable)
        assert words[split:] == [sys.executable, "-m", "alignjax", "run", *NASTY]
        env = dict(word.split("=", 1) for word in words[1:split])
        ports.add(env.pop("JAX_COORDINATOR_ADDRESS"))
        assert env == {
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "3",
            "NPROC": "32",
        }
    assert len(ports) == 1


def test_arguments_reach_the_program_as_they_are(tmp_path):
    done = script("--processes=2", "--", "describe", "--config=a b;$(touch hit)")
    assert done.returncode == 2
    line = "alignjax: --config: no file a b;$(touch hit)"
    assert sorted(done.stderr.splitlines()) == [f"[1] {line}", line]
    assert not (runs.ROOT / "hit").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "local.py: wanted a verb after --; e.g. local.py "),
        (["--processes=0", "--", "run"], "local.py: flag --processes=0: "),
        (["--processes=2", "run", "--config=x"], "local.py: Unknown command line flag 'config'"),
    ],
)
def test_a_wrong_command_is_told_in_one_line(arguments, message):
    done = script(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
