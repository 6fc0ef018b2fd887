"""Coordinates several processes of one program: start, barriers and exchange of values.

With one process all of this does nothing. Strings travel through the key-value store of JAX's
coordination service, which process 0 serves: no device is used and nothing is compiled, a waiting
process costs nothing, and the wait ends with a signal or when a peer is lost.

All processes have to reach every `barrier`, `run_on_main`, `broadcast` and `exchange`, in the same
order.
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
KEPT_BYTES = 2**16  # larger values are deleted from the store as soon as all have read them
_uses: collections.Counter[str] = collections.Counter()  # how often each name was used


def start() -> None:
    """Joins the processes that the environment announces (`runtime.cluster`), if there are any.

    Call it before any device is used.

    Raises:
      UserError: the environment announces only part of what is needed.
    """
    cluster = detect_cluster(os.environ, on_tpu=_on_tpu())
    if cluster is not None:
        _join(cluster)


def _on_tpu() -> bool:
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    from jax._src import cloud_tpu_init  # JAX has looked already, but its public API does not say

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _join(cluster: Cluster) -> None:
    import jax

    lost_after = watchdog.lost_after()
    watchdog.handle_aborts()
    # The loop itself agrees on when to stop, for Ctrl-C too. JAX's service would swallow SIGTERM
    # from here on, outside of the training loop as well.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_check_proxy_envs", False)  # else every run behind a proxy is warned
    if cluster.method == "slurm":  # JAX reads this variable, which srun does not have to set
        os.environ.setdefault("SLURM_NTASKS", str(cluster.processes))
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.address,
            num_processes=cluster.processes,
            process_id=cluster.index,
            local_device_ids=cluster.devices,
            cluster_detection_method=cluster.method,
            initialization_timeout=START_SECONDS,
            # JAX's own timeout aborts with a page of stack: the watchdog has to be quicker.
            heartbeat_timeout_seconds=2 * lost_after + 10,
        )
    except (ValueError, OSError) as error:
        if cluster.processes is not None:
            raise UserError(f"the announced processes cannot be joined: {error}") from error
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
    from jax._src import distributed  # as orbax does: the store has no public API

    return distributed.global_state


def several() -> bool:
    """Whether this run has more than one process."""
    return "jax" in sys.modules and bool(_state().num_processes > 1)


def is_main() -> bool:
    """Whether this is process 0, which writes files and prints."""
    return not several() or bool(_state().process_id == 0)


def index() -> int:
    """The number of this process, from 0."""
    return int(_state().process_id) if several() else 0


def count() -> int:
    """How many processes this run has."""
    return int(_state().num_processes) if several() else 1


def exchange(name: str, value: str) -> list[str]:
    """Collects one string from each process, for all of them, in order of the processes."""
    if not several():
        return [value]
    state, key = _state(), _next_key(name)
    state.client.key_value_set(f"{key}/{state.process_id}", value)
    # Process 0 collects for all: the others ask once each, not once for every other process.
    if is_main():
        values = [wait_for(f"{key}/{i}") for i in range(state.num_processes)]
        state.client.key_value_set(f"{key}/all", json.dumps(values))
        return values
    collected: list[str] = json.loads(wait_for(f"{key}/all"))
    return collected


def barrier(name: str) -> None:
    """Waits until every process is here."""
    exchange(name, "")


def run_on_main(name: str, action: Callable[[], None]) -> None:
    """Runs an action, which writes files as a rule, in process 0 while the others wait.

    Raises:
      UserError: the action raised it in process 0; all processes raise one of the same exit code.
    """
    broadcast(name, action)


def broadcast(name: str, compute: Callable[[], Any]) -> Any:
    """Computes JSON data in process 0 and returns them in every process.

    For decisions that depend on a file system: other processes may see a change earlier or later.

    Raises:
      UserError: as `run_on_main`.
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
    """Starts to compute the largest number that any process has; the result waits for it.

    The devices compare the numbers in the order of their programs: between two steps this costs
    a collective of a few bytes.

    Args:
      numbers: of this process, possibly none. With one process they are read only when the result
        is called.

    Returns:
      Gives the largest number, or 0.
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
    """Copies the arrays of a tree to NumPy arrays, whole, in every process.

    A leaf that is spread over processes is gathered to all devices first, one leaf after another.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def one(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _next_key(name: str) -> str:
    """A new key for every use of a name; the same in all processes, which count alike."""
    _uses[name] += 1
    return f"alignjax/{name}/{_uses[name]}"


def wait_for(key: str) -> str:
    """Waits until something is stored under a key, and returns it."""
    import jax

    while True:
        try:  # in short calls, because Python handles signals only between them
            return str(_state().client.blocking_key_value_get(key, 2_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
