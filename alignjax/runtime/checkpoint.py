"""Checkpoints: the state, the data position and the identity of everything that matters.

One checkpoint holds a `TrainState` (parameters, optimizer, step, root key, counters), or the two
of a `GameState`, and a JSON record: the index of the next batch, and what the run is made of
(config, data, tokenizer, reference). Restoring compares that record first and refuses another
run's checkpoint. Saves are atomic: a killed save is never seen by a reader. Every checkpoint holds
the digests of its files, which are compared before it is read (`alignjax.runtime.stores`): what was
damaged since is refused by name.
"""

import hashlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from alignjax import digests
from alignjax.errors import CheckpointError, UserError
from alignjax.runtime import distributed, stores
from alignjax.runtime.sharding import path_name
from alignjax.runtime.stores import FORMAT, UNSEALED, Store, one_line

log = logging.getLogger("alignjax")

PIECE = 2**28  # about so many bytes of an array are fetched from other processes at once


def save(store: Store, step: int, state: Any, record: dict[str, Any]) -> None:
    """Starts a save; on return the state is copied off the devices and may be donated.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
    """
    with one_line(store.directory, f"saving step {step} failed"):
        stores.wait(store)  # errors of the save before surface here, not at exit
        path = store.directory / f"{step}.writing"
        response = ocp.save_checkpointables_async(
            path, {"state": state, "record": {"format": FORMAT, **record}}
        )
        store.saving = store.writer.submit(_finish, store, step, path, response)


def _finish(store: Store, step: int, path: pathlib.Path, response: Any) -> None:
    """Waits for the arrays, and makes a checkpoint of them: on the thread that writes."""
    response.result()
    if not distributed.is_main():
        return
    digests.seal(path)
    path.rename(store.directory / str(step))
    there = sorted(int(p.name) for p in store.directory.iterdir() if p.name.isdigit())
    for old in there[: -store.keep]:
        stores.remove(store, old)


def save_final(directory: pathlib.Path, step: int, params: Any, record: dict[str, Any]) -> None:
    """Saves parameters alone as the last checkpoint of a training, unless it is there."""
    with stores.open_store(directory, keep=1) as store:
        if stores.latest(store) != step:
            save(store, step, {"params": params}, record)


def read_record(store: Store, step: int) -> dict[str, Any]:
    """Reads the JSON record of a checkpoint.

    Raises:
      CheckpointError: unreadable, or written in another format.
    """
    stores.verify(store, step)
    record = stores.record_of(store, step)
    if record.get("format") not in (FORMAT, UNSEALED):
        raise CheckpointError(
            f"{store.directory}: step {step} has checkpoint format {record.get('format')}, "
            f"this version reads {FORMAT}"
        )
    return record


def restore(store: Store, step: int, target: Any) -> Any:
    """Reads the state of a checkpoint, laid out as ``target`` (shapes with shardings) says.

    Raises:
      CheckpointError: damaged, unreadable, or its arrays are not those of ``target``.
    """
    stores.verify(store, step)
    path = store.directory / str(step)
    with one_line(store.directory, f"step {step} cannot be restored"):
        _check_arrays(ocp.checkpointables_metadata(path).metadata["state"], target)
        return ocp.load_checkpointables(path, {"state": target})["state"]


def restore_params(store: Store, step: int, target: Any) -> Any:
    """Reads the parameters alone of a checkpoint's state; of a game those of the policy.

    The optimizer's state is not read.

    Raises:
      CheckpointError: damaged, unreadable, or its parameters are not those of ``target``.
    """
    stores.verify(store, step)
    path = store.directory / str(step)
    with one_line(store.directory, f"step {step} cannot be restored"):
        saved = ocp.checkpointables_metadata(path).metadata["state"]
        is_game = "policy" in saved
        _check_arrays((saved["policy"] if is_game else saved)["params"], target)
        wanted = {"params": target}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            state = ocp.load_checkpointables(
                path, {"state": {"policy": wanted} if is_game else wanted}
            )["state"]
        return (state["policy"] if is_game else state)["params"]


def save_params(path: pathlib.Path, params: Any) -> None:
    """Writes the final parameters of a stage and their digests, over older ones.

    Into a folder that is moved to its place when it is complete: see `runtime.artifacts`.
    """
    with one_line(path, "the parameters cannot be written"):
        ocp.save(path.resolve(), params, overwrite=True)
        distributed.run_on_main("digests", lambda: digests.seal(path))


def load_params(path: pathlib.Path, target: Any) -> Any:
    """Reads parameters, laid out as ``target`` (shapes with shardings) says.

    Raises:
      CheckpointError: damaged, unreadable, or not those of ``target``.
    """
    with one_line(path, "the parameters cannot be read"):
        if distributed.broadcast("look for digests", (path / digests.NAME).is_file):
            share, shares = distributed.index(), distributed.count()
            damaged = digests.find_damage(path, share=share, shares=shares)
            if found := [x for x in distributed.exchange("damage", damaged) if x]:
                raise CheckpointError(
                    f"{path}: damaged: {found[0]} has changed since it was written"
                )
        else:
            log.warning("%s: parameters without digests (an earlier version): not checked", path)
        _check_arrays(ocp.metadata(path.resolve()).metadata, target)
        return ocp.load(path.resolve(), target)


def _check_arrays(saved: Any, target: Any) -> None:
    """Compares shapes and dtypes: the library names no array, and casts dtypes silently."""

    def arrays(tree: Any) -> dict[str, str]:
        def one(x: Any) -> str:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.eval_shape(jax.random.key_data, x)  # what a saved key consists of
            return f"{tuple(x.shape)} {x.dtype}"

        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): one(leaf) for path, leaf in leaves}

    have, want = arrays(saved), arrays(target)
    other = [
        f"{name}: wanted {want.get(name, 'nothing')}, found {have.get(name, 'nothing')}"
        for name in sorted(set(have) | set(want))
        if have.get(name) != want.get(name)
    ]
    if other:
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        raise ValueError("; ".join(other[:5]) + more)


def refuse_other(store: Store, step: int, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses to continue from a checkpoint of another run.

    Args:
      store, step: where ``saved`` was read, for the message.
      saved: the identities in the checkpoint's record, name -> digest or description.
      wanted: those of this run.

    Raises:
      UserError: names each one that differs.
    """
    other = [name for name in wanted if saved.get(name) != wanted[name]]
    if other:
        pairs = ", ".join(f"{n} {saved.get(n)!r} (this run: {wanted[n]!r})" for n in other)
        raise UserError(
            f"{store.directory}: step {step} belongs to another run: {pairs}; "
            "use another --workdir, or restore what changed"
        )


def tree_digest(tree: Any) -> str:
    """Computes a SHA-256 over the path, dtype, shape and bytes of every array; 16 hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        digest.update(f"{path_name(path)} {np.dtype(leaf.dtype)} {tuple(leaf.shape)} ".encode())
        for piece in _pieces(leaf):
            digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()[:16]


def _pieces(leaf: Any) -> Iterator[np.ndarray]:
    """Yields an array in blocks of rows: fetching one that is spread puts it on every device."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or not leaf.ndim:
        yield distributed.fetch(leaf)
        return
    rows = max(1, PIECE // max(1, leaf.nbytes // len(leaf)))
    for begin in range(0, len(leaf), rows):
        size = min(rows, len(leaf) - begin)
        yield distributed.fetch(jax.lax.dynamic_slice_in_dim(leaf, begin, size))
