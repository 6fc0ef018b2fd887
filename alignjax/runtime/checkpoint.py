"""Checkpoints: the state, the data position and the identity of everything that matters.

One checkpoint holds a `TrainState` (parameters, optimizer, step, root key, counters), or the two
of a `GameState`, and a JSON record: the index of the next batch, and what the run is made of
(config, data, tokenizer, reference). Restoring compares that record first and refuses another
run's checkpoint. Saves are atomic: a killed save is never seen by a reader.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from alignjax.errors import CheckpointError, UserError
from alignjax.runtime import distributed
from alignjax.runtime.sharding import path_name

FORMAT = 2  # raised when what a checkpoint holds changes
PIECE = 2**28  # about so many bytes of an array are fetched from other processes at once


@contextlib.contextmanager
def open_store(directory: pathlib.Path, *, keep: int) -> Iterator[ocp.training.Checkpointer]:
    """Opens a directory of checkpoints; leaving the context waits for the last save.

    Args:
      directory: created if needed; the remains of killed saves are removed.
      keep: newest checkpoints kept.
    """
    with _one_line(directory, "cannot be opened"):
        directory.mkdir(parents=True, exist_ok=True)
        store = ocp.training.Checkpointer(
            directory.resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
    try:
        yield store
    finally:
        with _one_line(directory, "the last save failed"):
            store.close()


def latest(store: ocp.training.Checkpointer) -> int | None:
    """The newest complete step, None when there is none."""
    return None if store.latest is None else int(store.latest.step)


def save(store: ocp.training.Checkpointer, step: int, state: Any, record: dict[str, Any]) -> None:
    """Starts a save; on return the state is copied off the devices and may be donated.

    Raises:
      CheckpointError: this save, or the one before it, could not be written.
    """
    with _one_line(store.directory, f"saving step {step} failed"):
        store.wait()  # errors of the save before surface here, not at exit
        # force: whether a step is saved is the loop's decision, not the library's.
        store.save_checkpointables_async(
            step, {"state": state, "record": {"format": FORMAT, **record}}, force=True
        )


def save_final(directory: pathlib.Path, step: int, params: Any, record: dict[str, Any]) -> None:
    """Saves parameters alone as the last checkpoint of a training, unless it is there."""
    with open_store(directory, keep=1) as store:
        if latest(store) != step:
            save(store, step, {"params": params}, record)


def drop(store: ocp.training.Checkpointer, *, but: int | None) -> None:
    """Removes all checkpoints but one, or all, once the last save is written.

    Raises:
      CheckpointError: that save could not be written, or a checkpoint not removed.
    """
    with _one_line(store.directory, "removing checkpoints failed"):
        store.wait()
        for step in [one.step for one in store.checkpoints if one.step != but]:
            store.delete(step)


def drop_state(directory: pathlib.Path) -> None:
    """Removes the state of a stage's last checkpoint, whose parameters are kept elsewhere.

    The record stays, and with it what the stage was made of.
    """
    with open_store(directory, keep=1) as store, _one_line(directory, "cannot be removed"):
        newest = latest(store)
        if newest is not None:
            store.delete(newest, checkpointable_name="state", missing_ok=True)


def has_state(store: ocp.training.Checkpointer, step: int) -> bool:
    """Whether a checkpoint holds arrays, and not its record alone."""
    with _one_line(store.directory, f"step {step} cannot be read"):
        return "state" in store.checkpointables_metadata(step).metadata


def read_record(store: ocp.training.Checkpointer, step: int) -> dict[str, Any]:
    """Reads the JSON record of a checkpoint.

    Raises:
      CheckpointError: unreadable, or written in another format.
    """
    with _one_line(store.directory, f"step {step} cannot be read"):
        record = store.load_checkpointables(step, {"record": None})["record"]
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{store.directory}: step {step} has checkpoint format {record.get('format')}, "
            f"this version reads {FORMAT}"
        )
    return record


def restore(store: ocp.training.Checkpointer, step: int, target: Any) -> Any:
    """Reads the state of a checkpoint, laid out as ``target`` (shapes with shardings) says.

    Raises:
      CheckpointError: unreadable, or its arrays are not those of ``target``.
    """
    with _one_line(store.directory, f"step {step} cannot be restored"):
        _check_arrays(store.checkpointables_metadata(step).metadata["state"], target)
        return store.load_checkpointables(step, {"state": target})["state"]


def restore_params(store: ocp.training.Checkpointer, step: int, target: Any) -> Any:
    """Reads the parameters alone of a checkpoint's state; of a game those of the policy.

    The optimizer's state is not read.

    Raises:
      CheckpointError: unreadable, or its parameters are not those of ``target``.
    """
    with _one_line(store.directory, f"step {step} cannot be restored"):
        saved = store.checkpointables_metadata(step).metadata["state"]
        is_game = "policy" in saved
        _check_arrays((saved["policy"] if is_game else saved)["params"], target)
        wanted = {"params": target}
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        with context:
            state = store.load_checkpointables(
                step, {"state": {"policy": wanted} if is_game else wanted}
            )["state"]
        return (state["policy"] if is_game else state)["params"]


def save_params(path: pathlib.Path, params: Any) -> None:
    """Writes the final parameters of a stage, over older ones; atomic."""
    with _one_line(path, "the parameters cannot be written"):
        ocp.save(path.resolve(), params, overwrite=True)


def load_params(path: pathlib.Path, target: Any) -> Any:
    """Reads parameters, laid out as ``target`` (shapes with shardings) says."""
    with _one_line(path, "the parameters cannot be read"):
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


def refuse_other(
    store: ocp.training.Checkpointer, step: int, saved: dict[str, Any], wanted: dict[str, Any]
) -> None:
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


@contextlib.contextmanager
def _one_line(directory: Any, what: str) -> Iterator[None]:
    """Turns errors of the checkpoint library into one line that names the directory."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the library raises many kinds; all mean the same to a user
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{directory}: {what}: {type(error).__name__}: {reason}") from error
