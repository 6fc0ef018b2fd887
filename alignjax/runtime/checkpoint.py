"""Saves and restores checkpoints: the state, the data position, and the identity of the run.

A checkpoint holds a `TrainState` (parameters, optimizer, step, root key, counters), or the two of a
`GameState`, and a JSON record: the index of the next batch, and the identity of the run (digests of
data, tokenizer and reference). Before restoring, the record is compared, and another run's
checkpoint is refused. Saves are atomic. A checkpoint holds the digests of its files, which are
verified before it is read (`alignjax.runtime.stores`); the error names a damaged file.
"""

import dataclasses
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

PIECE = 2**28  # bytes of an array, about, that are fetched from other processes at a time


def save(store: Store, step: int, state: Any, record: dict[str, Any]) -> None:
    """Starts a save; on return the state is on the host, and may be donated.

    Raises:
      CheckpointError: this save, or the previous one, could not be written.
    """
    with one_line(store.directory, f"saving step {step} failed"):
        stores.wait(store)  # raises errors of the previous save
        path = store.directory / f"{step}.writing"
        response = ocp.save_checkpointables_async(
            path, {"state": _as_dict(state), "record": {"format": FORMAT, **record}}
        )
        store.saving = store.writer.submit(_finish, store, step, path, response)


def _finish(store: Store, step: int, path: pathlib.Path, response: Any) -> None:
    """Waits for the arrays, then completes the checkpoint; runs on the writer thread."""
    response.result()
    if not distributed.is_main():
        return
    digests.seal(path)
    path.rename(store.directory / str(step))
    steps = sorted(int(p.name) for p in store.directory.iterdir() if p.name.isdigit())
    for old in steps[: -store.keep]:
        stores.remove(store, old)


def save_final(directory: pathlib.Path, step: int, params: Any, record: dict[str, Any]) -> None:
    """Saves only the parameters, as the last checkpoint of a training, unless it exists."""
    with stores.open_store(directory, keep=1) as store:
        if stores.latest(store) != step:
            save(store, step, {"params": params}, record)


def read_record(store: Store, step: int) -> dict[str, Any]:
    """Reads the JSON record of a checkpoint.

    Raises:
      CheckpointError: it is damaged, or of another format.
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
    """Restores the state of a checkpoint into ``target`` (shapes, dtypes and shardings).

    Raises:
      CheckpointError: it is damaged, or its arrays differ from ``target``.
    """
    stores.verify(store, step)
    path = store.directory / str(step)
    with one_line(store.directory, f"step {step} cannot be restored"):
        wanted = _as_dict(target)
        _check_arrays(ocp.checkpointables_metadata(path).metadata["state"], wanted)
        return _filled(target, ocp.load_checkpointables(path, {"state": wanted})["state"])


def _as_dict(state: Any) -> Any:
    """Turns a state into the dict of its fields that are not None: older ones lack these."""
    if not dataclasses.is_dataclass(state) or isinstance(state, type):
        return state
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {name: _as_dict(x) for name, x in fields.items() if x is not None}


def _filled(target: Any, found: Any) -> Any:
    """Puts what `_as_dict` made of a state back into one."""
    if not dataclasses.is_dataclass(target) or isinstance(target, type):
        return found
    parts = {name: _filled(getattr(target, name), x) for name, x in found.items()}
    return dataclasses.replace(target, **parts)


def restore_params(store: Store, step: int, target: Any) -> Any:
    """Restores only the parameters of a checkpoint, in a game the policy's.

    Raises:
      CheckpointError: it is damaged, or its parameters differ from ``target``.
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
    """Writes the final parameters of a stage and their digests; replaces older ones.

    The folder is a scratch folder of `runtime.artifacts`.
    """
    with one_line(path, "the parameters cannot be written"):
        ocp.save(path.resolve(), params, overwrite=True)
        distributed.run_on_main("digests", lambda: digests.seal(path))


def load_params(path: pathlib.Path, target: Any) -> Any:
    """Loads parameters into ``target`` (shapes, dtypes and shardings).

    Raises:
      CheckpointError: they are damaged, or differ from ``target``.
    """
    with one_line(path, "the parameters cannot be read"):
        if distributed.broadcast("look for digests", (path / digests.NAME).is_file):
            share, shares = distributed.index(), distributed.count()
            damaged = digests.find_damage(path, share=share, shares=shares)
            if names := [x for x in distributed.exchange("damage", damaged) if x]:
                raise CheckpointError(
                    f"{path}: damaged: {names[0]} has changed since it was written"
                )
        else:
            log.warning("%s: parameters without digests (an earlier version): not checked", path)
        _check_arrays(ocp.metadata(path.resolve()).metadata, target)
        return ocp.load(path.resolve(), target)


def _check_arrays(saved: Any, target: Any) -> None:
    """Compares shapes and dtypes: the library's errors name no array, and it casts dtypes."""

    def arrays(tree: Any) -> dict[str, str]:
        def describe(x: Any) -> str:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.eval_shape(jax.random.key_data, x)  # keys are saved as their data
            return f"{tuple(x.shape)} {x.dtype}"

        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {path_name(path): describe(leaf) for path, leaf in leaves}

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
      store, step: the place of the checkpoint, for the message.
      saved: the identity in its record, name -> digest or description.
      wanted: this run's identity.

    Raises:
      UserError: some differ; names each.
    """
    other = [name for name in wanted if saved.get(name) != wanted[name]]
    if other:
        pairs = ", ".join(f"{n} {saved.get(n)!r} (this run: {wanted[n]!r})" for n in other)
        raise UserError(
            f"{store.directory}: step {step} belongs to another run: {pairs}; "
            "use another --workdir, or restore what changed"
        )


def tree_digest(tree: Any) -> str:
    """Computes the SHA-256 of the path, dtype, shape and bytes of every array; 16 hex digits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        digest.update(f"{path_name(path)} {np.dtype(leaf.dtype)} {tuple(leaf.shape)} ".encode())
        for piece in _pieces(leaf):
            digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()[:16]


def _pieces(leaf: Any) -> Iterator[np.ndarray]:
    """Yields an array in blocks of rows, because fetching gathers a block on each device."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or not leaf.ndim:
        yield distributed.fetch(leaf)
        return
    rows = max(1, PIECE // max(1, leaf.nbytes // len(leaf)))
    for begin in range(0, len(leaf), rows):
        size = min(rows, len(leaf) - begin)
        yield distributed.fetch(jax.lax.dynamic_slice_in_dim(leaf, begin, size))
