"""Shards arrays over devices: one mesh, and one table of rules for all parameters.

The mesh has three axes, each of size 1 or more: ``data`` (copies of the model), ``fsdp`` (splits
parameters, optimizer state and rows) and ``tensor`` (splits heads, feed-forward and vocabulary). A
rule matches parameters by path; optimizer moments have the same paths and so follow the same rules.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alignjax.errors import UserError
from alignjax.models import layout
from alignjax.models.config import ModelConfig
from alignjax.runtime import distributed
from alignjax.types import Params

AXES = ("data", "fsdp", "tensor")
ROWS = P(("data", "fsdp"))  # how a batch is split over the mesh

RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding$|(^|/)head$", P("tensor", "fsdp")),
    (r"layers/(q|k|v|gate|up)/kernel(/codes)?$", P(None, "fsdp", "tensor")),
    (r"layers/(o|down)/kernel(/codes)?$", P(None, "tensor", "fsdp")),
    (r"layers/(q|k|v|gate|up)/kernel/scale$", P(None, None, "tensor")),
    (r"layers/(o|down)/kernel/scale$", P(None, None, "fsdp")),
    (r"layers/(q|k|v|gate|up)/lora_a$", P(None, "fsdp")),
    (r"layers/(q|k|v|gate|up)/lora_b$", P(None, None, "tensor")),
    (r"layers/(o|down)/lora_a$", P(None, "tensor")),
    (r"layers/(o|down)/lora_b$", P(None, None, "fsdp")),
    (r"layers/(q|k|v|gate|up)/bias$", P(None, "tensor")),
    (r"(^|/)reward/kernel$", P("fsdp")),
    (r"", P()),  # norms, counters, keys: replicated
)


def make_mesh(data: int, fsdp: int, tensor: int, devices: list[Any] | None = None) -> Mesh:
    """Makes a ``(data, fsdp, tensor)`` mesh of the first ``data * fsdp * tensor`` devices.

    Raises:
      UserError: there are fewer devices; or more, with several processes.
    """
    devices = jax.devices() if devices is None else devices
    wanted = data * fsdp * tensor
    if wanted > len(devices):
        raise UserError(
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices, "
            f"found {len(devices)} ({devices[0].platform})"
        )
    if wanted < len(devices) and distributed.several():
        raise UserError(
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices, found "
            f"{len(devices)} in all processes, which must all be used"
        )
    # Explicit axes, JAX's new default, reject a plain embedding lookup.
    types, shape = (AxisType.Auto,) * 3, (data, fsdp, tensor)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:wanted])
    except NotImplementedError:  # an axis that splits one of the torus, as 4 of 8x8x8
        split = mesh_utils.create_device_mesh(
            shape, devices[:wanted], allow_split_physical_axes=True
        )
        return Mesh(split, AXES, axis_types=types)


def check_heads(config: ModelConfig, tensor: int) -> None:
    """Refuses a mesh that splits query heads: their parts would be exchanged in every layer.

    Key and value heads may be split, with XLA's attention: if there are fewer than ``tensor``, the
    model can be split in no other way.

    Raises:
      UserError: ``mesh.tensor`` does not divide the heads.
    """
    if config.heads % tensor:
        raise UserError(f"mesh.tensor={tensor} does not divide model.heads={config.heads}")


def path_name(path: tuple[Any, ...]) -> str:
    """Formats a key path of `jax.tree_util`: ``layers/q/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(name: str) -> P:
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def shard_tree(tree: Any, mesh: Mesh, *, stacked: bool = False) -> Any:
    """Looks up the sharding of every leaf of a tree of arrays, or of their shapes, in `RULES`.

    Args:
      tree: the arrays.
      mesh: the devices.
      stacked: every leaf has a leading axis, of networks side by side, which is not split.

    Raises:
      UserError: a mesh axis does not divide the dimension that it splits.
    """

    def look_up(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = P(None, *_rule(name)) if stacked else _rule(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide {size}, a dimension of "
                    f"{name} {tuple(leaf.shape)}"
                )
        return NamedSharding(mesh, spec if leaf.ndim else P())

    return jax.tree_util.tree_map_with_path(look_up, tree)


def unshard_weights(params: Params, config: ModelConfig) -> Params:
    """Gathers weights over ``fsdp`` in ``config.dtype``, for programs that use them many times.

    A single pass gathers each layer only when it uses it. Products have the same values. Quantised
    kernels keep their dtypes. The embedding stays split, because it is only used for lookups. If it
    is also the head, a separate head is added: the compiler would give one array the same layout
    for both uses.

    Args:
      params: a network's parameters, with or without adapters.
      config: the network's shape.
    """

    def gather(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        spec = _rule(name)
        if "fsdp" not in spec or name == "embed/embedding":
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not name.endswith("scale"):
            leaf = leaf.astype(config.dtype)
        return layout.place(leaf, P(*(None if axis == "fsdp" else axis for axis in spec)))

    if config.tied_embeddings:
        params = {**params, "head": params["embed"]["embedding"]}
    gathered: Params = jax.tree_util.tree_map_with_path(gather, params)
    return gathered


def abstract(tree: Any, sharding: Any) -> Any:
    """Describes a tree by shapes, dtypes and shardings, to restore a checkpoint into."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows split over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, ROWS)


def shards_of(holders: np.ndarray, process: int) -> np.ndarray:
    """Lists the parts of a batch's rows that a process holds, in ascending order.

    Args:
      holders: ``[data, fsdp, tensor]``, the process of every device of a mesh. If ``tensor`` spans
        processes, several of them hold the same rows.
      process: number of the process.
    """
    parts = holders.reshape(-1, holders.shape[-1])
    return np.flatnonzero((parts == process).any(axis=1))


def _own_shards(mesh: Mesh) -> np.ndarray:
    holders = np.array([device.process_index for device in mesh.devices.flat])
    return shards_of(holders.reshape(mesh.devices.shape), jax.process_index())


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Lists the rows of a global batch that this process's devices hold.

    Args:
      mesh: the devices.
      rows: rows of the global batch; a multiple of ``data * fsdp``.

    Returns:
      Their positions in the batch, in ascending order; with one process, all.
    """
    size = _divided(rows, mesh.shape["data"] * mesh.shape["fsdp"])
    return (_own_shards(mesh)[:, None] * size + np.arange(size)).reshape(-1)


def fitting(rows: int, mesh: Mesh) -> int:
    """Returns the smallest batch size for ``rows`` that the devices divide."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // devices) * devices


def _divided(rows: int, parts: int) -> int:
    if rows % parts:
        raise ValueError(f"{rows} rows cannot be partitioned {parts} times")
    return rows // parts


def put_rows(batch: Any, mesh: Mesh) -> Any:
    """Puts host arrays with a leading row axis on the mesh, split by rows.

    Every process passes only its `own_rows`.
    """
    sharding, own = row_sharding(mesh), _own_shards(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(x: np.ndarray) -> jax.Array:
        size = _divided(len(x), len(own))

        def part(index: Any) -> np.ndarray:
            at = int(np.searchsorted(own, (index[0].start or 0) // size)) * size
            return x[at : at + size]

        return jax.make_array_from_callback((size * parts, *x.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)
