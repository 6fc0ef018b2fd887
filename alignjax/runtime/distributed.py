"""Several processes that run one program: how they start, wait for each other and agree.

With one process all of this does nothing. Strings travel through the key-value store of JAX's
coordination service, which process 0 serves: no device is touched and nothing is compiled, a
process that waits costs nothing, and waiting ends with a signal or when a peer is lost.

All processes have to come to every `barrier`, `once` and `agree`, in the same order.
"""

import collections
import functools
import json
import logging
import os
import pathlib
import platform
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from alignjax.errors import UserError
from alignjax.runtime import watchdog
from alignjax.runtime.cluster import Announced, announced

log = logging.getLogger("alignjax")

START_SECONDS = 600  # how long a process waits for the others to start
KEPT_BYTES = 2**16  # of a value; larger ones leave the store as soon as all have them
_uses: collections.Counter[str] = collections.Counter()  # how often a name was waited for


def start() -> None:
    """Joins the processes that the environment announces (`runtime.cluster`), if there are any.

    Has to come before any device is used.

    Raises:
      UserError: the environment announces half of what is needed.
    """
    found = announced(os.environ, on_tpu=_on_tpu())
    if found is not None:
        _join(found)


def _on_tpu() -> bool:
    if (os.environ.get("JAX_PLATFORMS") or "tpu").split(",")[0] != "tpu":
        return False
    from jax._src import cloud_tpu_init  # it looked already, and the public API does not tell

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _join(found: Announced) -> None:
    import jax

    lost_after = watchdog.lost_after()
    watchdog.expect_aborts()
    # The loop agrees on when to stop by itself, for Ctrl-C too; the service would swallow SIGTERM
    # from here on, in all that is not a training loop.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_check_proxy_envs", False)  # a warning in every run behind a proxy
    if found.method == "slurm":  # JAX looks at the variable, which srun does not need to set
        os.environ.setdefault("SLURM_NTASKS", str(found.processes))
    try:
        jax.distributed.initialize(
            coordinator_address=found.address,
            num_processes=found.processes,
            process_id=found.index,
            local_device_ids=found.devices,
            cluster_detection_method=found.method,
            initialization_timeout=START_SECONDS,
            # Its end is an abort with a page of stack: `peers` is to be first.
            heartbeat_timeout_seconds=2 * lost_after + 10,
        )
    except (ValueError, OSError) as error:
        if found.processes is not None:
            raise UserError(f"the announced processes cannot be joined: {error}") from error
        log.warning("TPUs, but no cluster that JAX knows (%s): this process runs alone", error)
    if several():
        hosts = exchange("host", platform.node())
        watchdog.watch(watchdog.Run(_state().client, _state().process_id, hosts))
    else:
        signal.signal(signal.SIGABRT, signal.SIG_DFL)


def leave() -> None:
    """Waits until every process comes to its end."""
    barrier("leave")
    watchdog.left()


def _state() -> Any:
    from jax._src import distributed  # orbax uses it, too; nothing public has the store

    return distributed.global_state


def several() -> bool:
    """Whether this run has more than one process."""
    return "jax" in sys.modules and bool(_state().num_processes > 1)


def is_main() -> bool:
    """Whether this is process 0: the one that writes files and tells."""
    return not several() or bool(_state().process_id == 0)


def index() -> int:
    """The number of this process, from 0."""
    return int(_state().process_id) if several() else 0


def exchange(name: str, value: str) -> list[str]:
    """One string of each process, for all of them; in order of the processes."""
    if not several():
        return [value]
    state, key = _state(), _key(name)
    state.client.key_value_set(f"{key}/{state.process_id}", value)
    if is_main():
        values = [wait_for(f"{key}/{i}") for i in range(state.num_processes)]
        state.client.key_value_set(f"{key}/all", json.dumps(values))
        return values
    found: list[str] = json.loads(wait_for(f"{key}/all"))
    return found


def barrier(name: str) -> None:
    """Waits until every process is here."""
    exchange(name, "")


def once(name: str, make: Callable[[], None]) -> None:
    """Process 0 makes something, files as a rule, while the others wait for it.

    Raises:
      UserError: `make` raised it in process 0; all processes raise it, of the same kind.
    """
    told(name, make)


def told(name: str, make: Callable[[], Any]) -> Any:
    """What process 0 makes or finds, JSON data, in every process.

    For decisions that a file system takes part in: other processes may see it earlier or later.

    Raises:
      UserError: as `once`.
    """
    if not several():
        return make()
    key = _key(name)
    if is_main():
        try:
            made = make()
        except UserError as error:
            failed = {"exit_code": error.exit_code, "message": str(error)}
            _state().client.key_value_set(key, json.dumps({"failed": failed}))
            raise
        text = json.dumps({"made": made})
        _state().client.key_value_set(key, text)
    else:
        text = wait_for(key)
    found = json.loads(text)
    if "failed" in found:
        same = UserError(f"process 0: {found['failed']['message']}")
        same.exit_code = found["failed"]["exit_code"]
        raise same
    if len(text) > KEPT_BYTES:  # the store is in process 0's memory
        barrier(name)
        if is_main():
            _state().client.key_value_delete(key)
    return found["made"]


def agree(told: dict[str, str]) -> None:
    """Compares what should be the same in all processes: digests, versions, a seed.

    Raises:
      UserError: something differs; names what, and the process that is not with the most. All
        processes raise it.
    """
    mine = json.dumps({"host": platform.node(), "told": told})
    found = [json.loads(value) for value in exchange("agree", mine)]
    names = list(dict.fromkeys(name for process in found for name in process["told"]))
    odd = []
    for name in names:
        values = [process["told"].get(name, "nothing") for process in found]
        counts = collections.Counter(values).most_common()
        if len(counts) == 1:
            continue
        most = counts[0][0] if counts[0][1] > counts[1][1] else None
        who = [
            f"process {i} ({found[i]['host']}) has {value}"
            for i, value in enumerate(values)
            if value != most
        ]
        more = f" and {len(who) - 4} more" if len(who) > 4 else ""
        rest = "" if most is None else f", the others have {most}"
        odd.append(f"{name}: {', '.join(who[:4])}{more}{rest}")
    if odd:
        raise UserError(f"the processes disagree on {'; '.join(odd)}")


def one_folder(folder: pathlib.Path, field: str) -> None:
    """Checks that every process writes into this folder, and sees what the others write.

    Args:
      folder: made if needed.
      field: how messages call it, ``--workdir``.

    Raises:
      UserError: it is not one folder for all; names the process that does not see the others.
    """
    if not several():
        return
    tokens = exchange("token", secrets.token_hex(8))
    me, count, token = index(), len(tokens), tokens[0]
    # A name of its own for every start: file systems of networks remember what was not there.
    mark = [folder / f".process-{i}-of-{count}-{token}" for i in range(count)]
    trouble = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark[me].write_text(token, encoding="utf-8")
    except OSError as error:
        trouble = f"cannot write there: {error.strerror}"
    told = exchange("written", trouble)
    try:
        others = range(count) if is_main() else (0,)  # every process and process 0 in both ways
        unseen = [i for i in others if not told[i] and not mark[i].is_file()]
        if not trouble and unseen:
            trouble = f"does not see what process {unseen[0]} writes there"
        told = exchange("seen", trouble)
    finally:
        mark[me].unlink(missing_ok=True)
    if any(told):
        hosts = exchange("host", platform.node())
        who = [f"process {i} ({hosts[i]}) {text}" for i, text in enumerate(told) if text]
        raise UserError(
            f"{field}: {folder} is not one folder for all processes: {'; '.join(who[:3])}"
        )


def loudest(numbers: Sequence[int]) -> Callable[[], int]:
    """The largest of the numbers that any process has by now, or 0; waits when it is called.

    The devices compare them in their order: between steps it costs a collective of a few bytes. Of
    one process it is the largest that it has when it is called.
    """
    if not several():
        return lambda: max(numbers, default=0)
    number = max(numbers, default=0)
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    whole, largest = _largest()
    each = NamedSharding(whole.mesh, PartitionSpec("all"))
    spread = jax.make_array_from_callback(
        (whole.mesh.size,), each, lambda index: np.full(1, number, np.int32)
    )
    found = largest(spread)
    return lambda: int(found)


@functools.cache
def _largest() -> tuple[Any, Any]:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    whole = NamedSharding(Mesh(jax.devices(), "all"), PartitionSpec())
    return whole, jax.jit(jax.numpy.max, out_shardings=whole)


def fetch(tree: Any) -> Any:
    """Arrays of a tree as NumPy arrays, whole, in every process.

    A leaf that is spread over processes is gathered to all devices first, one after another.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def one(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(one, tree)


def _key(name: str) -> str:
    """A key of its own for every use of a name; the same in all processes."""
    _uses[name] += 1
    return f"alignjax/{name}/{_uses[name]}"


def wait_for(key: str) -> str:
    """What is stored under a key, once it is."""
    import jax

    while True:
        try:  # in short calls: Python looks at signals between them
            return str(_state().client.blocking_key_value_get(key, 2_000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
