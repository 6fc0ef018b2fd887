"""Processes that belong together, started by a test, to their end."""

import json
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

from tests import runs

MEMBER = [sys.executable, "-m", "tests.processes.member"]
SECONDS = 480  # until all are killed; on a machine with much else to do


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    folder: pathlib.Path,
    each: Sequence[dict[str, str]],
    command: Sequence[str] = MEMBER,
    *,
    waits_for: Sequence[int] = (),
    **env: str,
) -> tuple[list[int], list[str]]:
    """Runs one process for every element of ``each``, its environment beyond ``env``.

    Args:
      folder: for what they write.
      waits_for: numbers of the processes whose end is the end; (): all. The rest are killed.

    Returns:
      Exit codes, and what each wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), []
    common = {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",  # a larger pool of threads than cores; see conftest
        "MEMBER_FOLDER": str(folder),
        "ALIGNJAX_LOST_AFTER": "10",
        **env,
    }
    if len(each) > 1:
        common["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        common["JAX_NUM_PROCESSES"] = str(len(each))
    for i, own in enumerate(each):
        number = {"JAX_PROCESS_ID": str(i)} if len(each) > 1 else {}
        with (folder / f"output-{i}").open("w") as output:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=folder if command is not MEMBER else runs.ROOT,
                    env=runs.environment(**{**common, **number, **own}),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        for i in waits_for or range(len(each)):
            started[i].wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pass  # the exit codes tell
    finally:
        for process in started:
            process.kill()
            process.wait()
    output = [(folder / f"output-{i}").read_text(errors="replace") for i in range(len(each))]
    return [process.returncode for process in started], output


def told(folder: pathlib.Path, count: int) -> list[dict]:
    return [json.loads((folder / f"told-{i}.json").read_text()) for i in range(count)]


def last_line(output: str) -> str:
    return output.splitlines()[-1]
