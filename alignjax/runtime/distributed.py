"""Coordinates several processes of one program: start, barriers and exchange of values.

With one process, these functions do nothing. Strings are exchanged through the key-value store of
JAX's coordination service in process 0: this needs no device and no compilation, waiting costs
nothing, and a signal or a lost peer ends the wait.

All processes must call `barrier`, `run_on_main`, `broadcast` and `exchange` in the same order.
"""

import collections
import functools
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alignjax.errors import UserError
from alignjax.runtime import watchdog
from alignjax.runtime.cluster import Cluster, detect_cluster

log = logging.getLogger("alignjax")

START_SECONDS = 600  # how long a process waits for the others to start
KEPT_BYTES = 2**16  # larger values are deleted from the store after all have read them
_uses: collections.Counter[str] = collections.Counter()  # name -> number of its uses


def start() -> None:
    """Joins the processes of the environment (`runtime.cluster`), if there are several.

    Call it before any device is used.

    Raises:
      UserError: the environment is incomplete.
    """
    cluster = detect_cluster(os.environ, on_tpu=_on_tpu())
    if cluster is not None:
        _join(cluster)


def _on_tpu() -> bool:
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    from jax._src import cloud_tpu_init  # no public API has this

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _join(cluster: Cluster) -> None:
    import jax

    lost_after = watchdog.lost_after()
    watchdog.handle_aborts()
    # The training loop itself agrees on when to stop. JAX's service would catch SIGTERM from here
    # on, also outside of the loop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_check_proxy_envs", False)  # it would warn every run behind a proxy
    if cluster.method == "slurm":  # JAX reads this variable, which srun does not always set
        os.environ.setdefault("SLURM_NTASKS", str(cluster.processes))
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.address,
            num_processes=cluster.processes,
            process_id=cluster.index,
            local_device_ids=cluster.devices,
            cluster_detection_method=cluster.method,
            initialization_timeout=START_SECONDS,
            # After its timeout JAX aborts with a long stack trace: the watchdog must be faster.
            heartbeat_timeout_seconds=2 * lost_after + 10,
        )
    except (ValueError, OSError) as error:
        if cluster.processes is not None:
            raise UserError(
                f"the processes of the environment cannot be joined: {error}"
            ) from error
        log.warning("TPUs, but no cluster that JAX knows (%s): this process runs alone", error)
    if several():
        hosts = exchange("host", platform.node())
        watchdog.start(watchdog.Peers(_state().client, _state().process_id, hosts))
    else:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)


def leave() -> None:
    """Waits until every process has finished, and stops the watchdog."""
    barrier("leave")
    watchdog.stop()


def _state() -> Any:
    from jax._src import distributed  # the store has no public API; orbax does the same

    return distributed.global_state


def several() -> bool:
    """Whether this run has more than one process."""
    return "jax" in sys.modules and bool(_state().num_processes > 1)


def is_main() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return not several() or bool(_state().process_id == 0)


def index() -> int:
    """Returns the number of this process, from 0."""
    return int(_state().process_id) if several() else 0


def count() -> int:
    """Returns the number of processes."""
    return int(_state().num_processes) if several() else 1


def exchange(name: str, value: str) -> list[str]:
    """Returns the strings of all processes to each of them, ordered by process."""
    if not several():
        return [value]
    state, key = _state(), _next_key(name)
    state.client.key_value_set(f"{key}/{state.process_id}", value)
    # Process 0 collects the strings, so that the others read one value each, not one per process.
    if is_main():
        values = [wait_for(f"{key}/{i}") for i in range(state.num_processes)]
        state.client.key_value_set(f"{key}/all", json.dumps(values))
        return values
    collected: list[str] = json.loads(wait_for(f"{key}/all"))
    return collected


def barrier(name: str) -> None:
    """Waits until every process has reached this call."""
    exchange(name, "")


def run_on_main(name: str, action: Callable[[], None]) -> None:
    """Runs an action in process 0, usually writing files, while the others wait.

    Raises:
      UserError: the action raised it; all processes raise one with the same exit code.
    """
    broadcast(name, action)


def broadcast(name: str, compute: Callable[[], Any]) -> Any:
    """Computes JSON data in process 0 and returns it in every process.

    For decisions that depend on a file system, on which processes may see a change at different
    times.

    Raises:
      UserError: as in `run_on_main`.
    """
    if not several():
        return compute()
    key = _next_key(name)
    if is_main():
        try:
            value = compute()
        except UserError as error:
            failure = {"exit_code": error.exit_code, "message": str(error)}
            _state().client.key_value_set(key, json.dumps({"failure": failure}))
            raise
        text = json.dumps({"value": value})
        _state().client.key_value_set(key, text)
    else:
        text = wait_for(key)
    result = json.loads(text)
    if "failure" in result:
        same = UserError(f"process 0: {result['failure']['message']}")
        same.exit_code = result["failure"]["exit_code"]
        raise same
    if len(text) > KEPT_BYTES:  # the store is in process 0's memory
        barrier(name)
        if is_main():
            _state().client.key_value_delete(key)
    return result["value"]


def max_over_processes(numbers: Sequence[int]) -> Callable[[], int]:
    """Starts to compute the largest number of all processes; the returned function waits for it.

    The devices compute it, in the order of their programs: between two steps it costs a collective
    of a few bytes.

    Args:
      numbers: this process's, possibly none. With one process they are read only when the result is
        called.

    Returns:
      A function that returns the largest number, or 0.
    """
    if not several():
        return lambda: max(numbers, default=0)
    number = max(numbers, default=0)
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    replicated, largest = _compiled_max()
    split = NamedSharding(replicated.mesh, PartitionSpec("all"))
    one_per_device = jax.make_array_from_callback(
        (replicated.mesh.size,), split, lambda index: np.full(1, number, np.int32)
    )
    result = largest(one_per_device)
    return lambda: int(result)


@functools.cache
def _compiled_max() -> tuple[Any, Any]:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    replicated = NamedSharding(Mesh(jax.devices(), "all"), PartitionSpec())
    return replicated, jax.jit(jax.numpy.max, out_shardings=replicated)


def fetch(tree: Any) -> Any:
    """Copies the arrays of a tree to NumPy arrays, in every process.

    A leaf that is sharded over processes is first gathered to all devices, one leaf at a time.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def fetch_leaf(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch_leaf, tree)


def _next_key(name: str) -> str:
    """Returns a new key for every use of a name, the same in all processes."""
    _uses[name] += 1
    return f"alignjax/{name}/{_uses[name]}"


def wait_for(key: str) -> str:
    """Waits for the value of a key, and returns it."""
    import jax

    while True:
        try:  # short calls, because Python handles signals only between them
            return str(_state().client.blocking_key_value_get(key, 2_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
