"""Streams that cannot be written end no run, and no character of a text does."""

import subprocess
import sys

import pytest

from tests import runs

PROGRAM = """
import os, sys
from alignjax.runtime import logs

logs.prepare_streams()
if "control" in sys.argv:
    logs.show = lambda text: print(text, end="", flush=True)
before = os.open(os.devnull, os.O_RDONLY)  # a file that must not become a stream
for _ in range(3):
    logs.show("a ± of 10,000 lines\\n" * 1000)
    print("a bar ━", file=sys.stderr)
assert before > 2
os.write(int(sys.argv[1]), b"done")
"""


def run(shell: str, *arguments: str, **env: str) -> tuple[int, str]:
    """A program with its streams redirected; its exit code, and whether it came to its end."""
    script = f'exec 3>&1; "$0" -c "$1" 3 {" ".join(arguments)} {shell}'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, PROGRAM.replace("\\\\n", "\\n")],
        env=runs.environment(**env),
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
    )
    return done.returncode, done.stdout[-4:]


@pytest.mark.parametrize(
    "shell", [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">&- 2>&-", "> >(true)", ">/dev/null"]
)
def test_a_stream_that_cannot_be_written_ends_nothing(shell):
    assert run(shell) == (0, "done")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_the_letter_shows_a_number(encoding):
    assert run(">/dev/null", PYTHONIOENCODING=encoding) == (0, "done")


def test_without_this_they_would_end_it():
    assert run(">/dev/full", "control")[0] != 0


def test_errors_of_the_checkpoint_library_s_threads_are_left_to_our_line():
    program = (
        "import absl.logging\n"
        "from alignjax.runtime import logs\n"
        "logs.quiet_libraries()\n"
        "for place in ('/x/orbax/y.py', '/x/grain/y.py'):\n"
        "    exec(compile('absl.logging.error(place)', place, 'exec'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=runs.ROOT, check=True
    )
    assert "/x/grain/y.py" in done.stderr
    assert "orbax" not in done.stderr


# A checkpoint of many arrays on a full disk (here: a limit on the size of files), many times, for
# it depends on the threads' timing which arrays are still being written when the first one fails.
FULL_DISK = """
import pathlib, resource, signal, sys

import jax.numpy as jnp
import orbax.checkpoint as ocp
from alignjax.runtime import logs

if "control" not in sys.argv:
    logs.quiet_libraries()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
arrays = {str(i): jnp.arange(20_000.0 * (i % 5 + 1)) for i in range(60)}
for save in range(5):
    with ocp.CheckpointManager(pathlib.Path(sys.argv[1]) / str(save)) as manager:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 + 3_000 * save, hard))
        try:
            manager.save(0, args=ocp.args.StandardSave(arrays))
            manager.wait_until_finished()
        except Exception as error:
            print("failed:", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
"""


@pytest.mark.parametrize("control", [False, True])
def test_a_failed_save_shows_no_tracebacks_of_threads(tmp_path, control):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), *(["control"] if control else [])],
        capture_output=True,
        text=True,
        cwd=runs.ROOT,
        check=True,
    )
    assert done.stdout.count("failed:") == 5
    assert ("Event loop is closed" in done.stderr) == control
    assert ("Traceback" in done.stderr) == control


def test_other_errors_that_no_code_can_catch_are_shown():
    program = (
        "from alignjax.runtime import logs\n"
        "class Bad:\n"
        "    def __del__(self):\n"
        "        raise RuntimeError('a finalizer failed')\n"
        "logs.quiet_libraries()\n"
        "Bad()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=runs.ROOT, check=True
    )
    assert "a finalizer failed" in done.stderr
