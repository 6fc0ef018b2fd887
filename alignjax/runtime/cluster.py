"""Detects the processes of a run from the environment: plain addresses, Slurm, or Cloud TPU.

It looks for these, in this order; without any of them the process runs alone:

- ``JAX_COORDINATOR_ADDRESS`` (host:port of process 0), ``JAX_NUM_PROCESSES`` and
  ``JAX_PROCESS_ID``, all three. `launch/local.py` sets them, and so can a Kubernetes JobSet.
- Slurm: a step of more than one task, started by `srun`. The shell of `salloc` and the script of
  `sbatch` run alone, for any number of tasks of the job.
- A Cloud TPU VM or a TPU pod of GKE: JAX asks the metadata server, or reads what GKE sets.
"""

import dataclasses
import re
from collections.abc import Mapping

from alignjax.errors import UserError

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How JAX joins the processes; it detects fields that are None itself, by ``method``."""

    method: str  # JAX's name of a detection method; deactivate: nothing to detect
    address: str | None = None  # host:port of process 0
    processes: int | None = None
    index: int | None = None  # of this process, from 0
    devices: tuple[int, ...] | None = None  # of the machine's GPUs; None: JAX's choice


def detect_cluster(env: Mapping[str, str], *, on_tpu: bool) -> Cluster | None:
    """Finds the cluster in the environment; None: this process runs alone.

    Args:
      env: the environment variables.
      on_tpu: this machine has TPUs and the program may use them.

    Raises:
      UserError: a variable is missing or not a number.
    """
    if any(name in env for name in PLAIN):
        return _plain(env)
    if "SLURM_STEP_NUM_TASKS" in env and _number(env, "SLURM_STEP_NUM_TASKS") > 1:
        return _slurm(env)
    # The method is named because JAX's own search tries others too, and warns of each.
    if on_tpu:
        named = "TPU_PROCESS_ADDRESSES" in env or "TPU_WORKER_HOSTNAMES" in env
        return Cluster("gketpu" if named else "gcetpu")
    return None


def _plain(env: Mapping[str, str]) -> Cluster | None:
    missing = [name for name in PLAIN if not env.get(name)]
    if missing:
        given = [name for name in PLAIN if name not in missing]
        raise UserError(
            f"the environment has {', '.join(given) or 'empty values'}, but not "
            f"{', '.join(missing)}: several processes need {', '.join(PLAIN)}, a single one none"
        )
    address, processes, index = env[PLAIN[0]], _number(env, PLAIN[1]), _number(env, PLAIN[2])
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{PLAIN[0]}: wanted host:port of process 0, found {address!r}")
    if not index < processes:
        raise UserError(f"{PLAIN[2]}: wanted 0 to {PLAIN[1]} - 1 = {processes - 1}, found {index}")
    return Cluster("deactivate", address, processes, index) if processes > 1 else None


def _slurm(env: Mapping[str, str]) -> Cluster:
    missing = [name for name in SLURM if not env.get(name)]
    if missing:
        raise UserError(f"SLURM_STEP_NUM_TASKS announces a Slurm step, without {missing[0]}")
    tasks = _number(env, "SLURM_STEP_NUM_TASKS")
    # By default JAX gives every task one GPU, number SLURM_LOCALID. A task that is alone on its
    # machine, or to which Slurm has given GPUs (--gpus-per-task=1), uses all visible ones instead.
    seen = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    alone = env.get("SLURM_STEP_NUM_NODES") == str(tasks)
    devices = tuple(range(len(seen))) if seen and (alone or len(seen) == 1) else None
    return Cluster("slurm", None, tasks, _number(env, "SLURM_PROCID"), devices)


def _number(env: Mapping[str, str], name: str) -> int:
    if not re.fullmatch(r"[0-9]+", env[name]):
        raise UserError(f"{name}: wanted a number, found {env[name]!r}")
    return int(env[name])
