"""Runs several processes of alignjax on this machine, with collectives between CPUs.

    python launch/local.py --processes=4 -- run --config=configs/demo/dpo.py --workdir=runs/four

It is for trying a config that is meant for several machines, and for tests. Output of process 0 is
printed as it is, lines of the others with [1], [2], ... in front. SIGINT and SIGTERM go to all.
When a process fails, the others get some seconds to say why they end, then they are ended. The exit
code is that of the first process that failed (128 + signal, if a signal ended it). ``DRY_RUN=1``
prints the commands instead of running them.
"""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from absl import flags

PROCESSES = flags.DEFINE_integer("processes", 2, "how many processes", lower_bound=1)
DEVICES = flags.DEFINE_integer("devices", 1, "virtual CPU devices per process", lower_bound=1)

GRACE_SECONDS = 8.0  # for the others to end by themselves after one failed; then SIGTERM
KILL_SECONDS = 4.0  # from SIGTERM to SIGKILL
PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    try:
        argv = flags.FLAGS(list(arguments))
        if len(argv) < 2:
            raise flags.Error("wanted a verb after --")
    except flags.Error as error:
        example = "local.py --processes=2 -- run --config=..."
        print(f"local.py: {' '.join(str(error).split())}; e.g. {example}", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "alignjax", *argv[1:]]
    port = _free_port()
    each = [environment(i, PROCESSES.value, DEVICES.value, port) for i in range(PROCESSES.value)]
    if os.environ.get("DRY_RUN"):
        for env in each:
            print(shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *command]))
        return 0
    return run(command, each)


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """Makes the environment variables of one process, besides those of this one."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # More threads than cores: otherwise collectives can starve each other.
        "NPROC": os.environ.get("NPROC", "32"),
    }


def run(command: list[str], each: list[dict[str, str]]) -> int:
    """Starts one process per environment and waits for all of them.

    Returns:
      0, or the exit code of the first that failed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    copiers: list[threading.Thread] = []

    def forward(signum: int, frame: object) -> None:
        del frame
        for process in processes:
            if process.poll() is None:
                process.send_signal(signum)

    # Handlers first, so that a signal during the start reaches the processes that were started.
    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        for index, env in enumerate(each):
            pipe = subprocess.PIPE if index else None
            process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdout=pipe,
                stderr=subprocess.STDOUT if index else None,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal reaches them once, through us
                preexec_fn=_die_with_parent,
            )
            processes.append(process)
            if process.stdout is not None:
                copier = threading.Thread(target=_copy, args=(process.stdout, index), daemon=True)
                copier.start()
                copiers.append(copier)
        return _wait(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for copier in copiers:
            copier.join(timeout=2)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    failed, since, terminated = 0, 0.0, False
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if not failed:
            failed = _first_failed(processes)
            since = time.monotonic()
        elif time.monotonic() > since + (KILL_SECONDS if terminated else GRACE_SECONDS):
            if not terminated:
                print(
                    f"local.py: one ended with {_code(failed)}: ending the others", file=sys.stderr
                )
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL if terminated else signal.SIGTERM)
            terminated, since = True, time.monotonic()
    return _code(failed or _first_failed(processes))


def _first_failed(processes: list[subprocess.Popen[bytes]]) -> int:
    return next((process.returncode for process in processes if process.poll()), 0)


def _code(returned: int) -> int:
    """Converts to a shell's exit code: 128 + signal."""
    return returned if returned >= 0 else 128 - returned


def _copy(pipe: IO[bytes], index: int) -> None:
    """Copies lines of a process to stderr, with its number in front."""
    with pipe:
        for line in pipe:
            sys.stderr.buffer.write(b"[%d] " % index + line.rstrip(b"\r\n") + b"\n")
            sys.stderr.buffer.flush()


def _die_with_parent() -> None:
    """Asks Linux to kill this process when the launcher is gone, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
