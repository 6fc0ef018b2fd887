"""Places arrays on devices: one mesh, and one table of rules for all parameters.

The mesh has three axes, any of size 1: ``data`` (copies of the model), ``fsdp`` (parameters,
optimizer state and batch rows split alike) and ``tensor`` (heads, feed-forward and vocabulary
split). A rule names parameters by path; optimizer moments mirror the parameters' paths and so
follow the same rules.
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
    (r"", P()),  # norms, counters, keys: everywhere
)


def make_mesh(data: int, fsdp: int, tensor: int, devices: list[Any] | None = None) -> Mesh:
    """A ``(data, fsdp, tensor)`` mesh over the first ``data * fsdp * tensor`` devices.

    Raises:
      UserError: there are fewer devices; or more, and of several processes.
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
            f"mesh: data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices, the "
            f"processes have {len(devices)}, and none may be left out"
        )
    # Auto axes: explicit ones, the library's new default, reject a plain embedding gather.
    types, shape = (AxisType.Auto,) * 3, (data, fsdp, tensor)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices[:wanted])
    except NotImplementedError:  # an axis that is no product of the torus's own, as 4 of 8x8x8
        split = mesh_utils.create_device_mesh(
            shape, devices[:wanted], allow_split_physical_axes=True
        )
        return Mesh(split, AXES, axis_types=types)


def check_heads(config: ModelConfig, tensor: int) -> None:
    """Refuses a mesh that cuts heads: their halves would be exchanged in every layer.

    Heads of keys and values may be cut, with XLA's attention: with fewer of them than ``tensor``
    there is no other way to split the model further.

    Raises:
      UserError: with the field.
    """
    if config.heads % tensor:
        raise UserError(f"mesh.tensor={tensor} does not divide model.heads={config.heads}")


def path_name(path: tuple[Any, ...]) -> str:
    """``layers/q/kernel`` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(name: str) -> P:
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def shard_tree(tree: Any, mesh: Mesh, *, stacked: bool = False) -> Any:
    """Looks up the sharding of every leaf of a tree of arrays, or of their shapes, in `RULES`.

    Args:
      tree: the arrays.
      mesh: the devices.
      stacked: every leaf has one more axis in front, of networks side by side; it is not split.

    Raises:
      UserError: a dimension does not divide by the mesh axes that split it.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = P(None, *_rule(name)) if stacked else _rule(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"mesh.{axis}={mesh.shape[axis]} does not divide {size}, a dimension of "
                    f"{name} {tuple(leaf.shape)}"
                )
        return NamedSharding(mesh, spec if leaf.ndim else P())

    return jax.tree_util.tree_map_with_path(one, tree)


def unshard_weights(params: Params, config: ModelConfig) -> Params:
    """Gathers weights over ``fsdp`` in ``config.dtype``, for programs that use them many times.

    A single pass rather gathers each layer when it gets there. Products have the same values.
    Quantised kernels keep their types. The embedding stays split, as it is only looked up in.
    Where it is the head too, a separate head is added: the compiler would give one array one
    layout for both uses.

    Args:
      params: a network's parameters, with adapters beside them or without.
      config: the network's shape.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path_name(path)
        spec = _rule(name)
        if "fsdp" not in spec or name == "embed/embedding":
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not name.endswith("scale"):
            leaf = leaf.astype(config.dtype)
        return layout.place(leaf, P(*(None if axis == "fsdp" else axis for axis in spec)))

    if config.tied_embeddings:
        params = {**params, "head": params["embed"]["embedding"]}
    gathered: Params = jax.tree_util.tree_map_with_path(one, params)
    return gathered


def abstract(tree: Any, sharding: Any) -> Any:
    """Describes a tree by shapes, dtypes and shardings, to restore a checkpoint into."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
    )


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Splits rows over ``data`` and ``fsdp``: the sharding of every field of a batch."""
    return NamedSharding(mesh, ROWS)


def shards_of(holders: np.ndarray, process: int) -> np.ndarray:
    """Lists the parts of a batch's rows that a process holds, in ascending order.

    Args:
      holders: ``[data, fsdp, tensor]``, the process of every device of a mesh. Where ``tensor``
        spans processes, several of them hold the same rows.
      process: number of the process.
    """
    parts = holders.reshape(-1, holders.shape[-1])
    return np.flatnonzero((parts == process).any(axis=1))


def _own_shards(mesh: Mesh) -> np.ndarray:
    holders = np.array([device.process_index for device in mesh.devices.flat])
    return shards_of(holders.reshape(mesh.devices.shape), jax.process_index())


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Lists the rows of a global batch that this process reads: those that its devices hold.

    Args:
      mesh: the devices of the batch.
      rows: of the global batch; a multiple of ``data * fsdp``.

    Returns:
      Their positions in the batch, in ascending order; with one process all of them.
    """
    size = _divided(rows, mesh.shape["data"] * mesh.shape["fsdp"])
    return (_own_shards(mesh)[:, None] * size + np.arange(size)).reshape(-1)


def fitting(rows: int, mesh: Mesh) -> int:
    """Returns the smallest batch that holds so many rows and that the devices divide."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // devices) * devices


def _divided(rows: int, parts: int) -> int:
    if rows % parts:
        raise ValueError(f"{rows} rows cannot be partitioned {parts} times")
    return rows // parts


def put_rows(batch: Any, mesh: Mesh) -> Any:
    """Puts host arrays with a leading row axis on the mesh, split by rows.

    Every process passes its `own_rows` and no others.
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
