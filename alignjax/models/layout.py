"""Constrains the sharding of arrays within a program.

Without constraints, the compiler shards the result of a lookup or a product like its weights, and
then computes all rows on every device. An array knows the mesh of the program in which it is
traced; if it is not the library's (one device, NumPy arrays), all functions here are the identity.
No function here changes a value.

    rows      split over ``data`` and ``fsdp``, from the first token to the loss
    width     not split, except over ``fsdp`` in the lookup, so that the table is not gathered
    sequence  split over ``tensor`` between the blocks, in norms and sums: an all-reduce becomes a
              reduce-scatter and an all-gather, and each device keeps only its part for the
              backward pass
    weights   gathered over ``fsdp`` while a layer uses them, in the product's dtype; a gradient
              returns to its part in one reduce-scatter
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alignjax.types import Array

ROWS = ("data", "fsdp")
COLUMNS = (P(None, "tensor"), P("fsdp", "tensor"))  # q, k, v, gate, up: in use, in storage
LINES = (P("tensor", None), P("tensor", "fsdp"))  # o, down, embedding and head


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def move(x: Array, to: P, back: P) -> Array:
    """Constrains the sharding of an array, and of its gradient.

    Args:
      x: any array.
      to: mesh axes of its dimensions; an axis that does not divide its dimension is left out.
      back: the same for the gradient.
    """
    del back
    return place(x, to)


def _forward(x: Array, to: P, back: P) -> tuple[Array, None]:
    del back
    return place(x, to), None


def _backward(to: P, back: P, _: None, gradient: Array) -> tuple[Array]:
    del to
    return (place(gradient, back),)


move.defvjp(_forward, _backward)


def mesh_of(x: Array) -> AbstractMesh | None:
    """Returns the mesh of the program that traces an array; None if it is not the library's."""
    mesh: AbstractMesh = jax.typeof(x).sharding.mesh
    return mesh if {*ROWS, "tensor"} <= {*mesh.axis_names} else None


def place(x: Array, spec: P) -> Array:
    """Constrains the sharding of an array; the compiler chooses its gradient's, unlike in `move`.

    Args:
      x: any array.
      spec: mesh axes of its dimensions; an axis that does not divide its dimension is left out.
    """
    mesh = mesh_of(x)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _dividing(x, spec, mesh)))


def _dividing(x: Array, spec: P, mesh: AbstractMesh) -> P:
    """Drops the axes that do not divide their dimension."""

    def fits(size: int, axes: str | tuple[str, ...] | None) -> bool:
        names = (axes,) if isinstance(axes, str) else axes or ()
        count = 1
        for name in names:
            count *= mesh.shape[name]
        return size % count == 0

    return P(*(axes if fits(n, axes) else None for n, axes in zip(x.shape, spec, strict=False)))


def each_device(
    function: Callable[..., Array], args: tuple[Array, ...], specs: tuple[P, ...]
) -> Array:
    """Calls a function on every device with its parts of the arguments, e.g. a kernel.

    Args:
      function: takes the parts; its result has the shape and sharding of its first argument.
      args: arrays.
      specs: mesh axes of their dimensions, as for `move`.
    """
    mesh = mesh_of(args[0])
    if mesh is None:
        return function(*args)
    parts = tuple(_dividing(x, spec, mesh) for x, spec in zip(args, specs, strict=True))
    # Pallas calls do not declare the axes over which their results vary.
    each = jax.shard_map(function, mesh=mesh, in_specs=parts, out_specs=parts[0], check_vma=False)
    out: Array = each(*args)
    return out


def rows(x: Array) -> Array:
    """Shards states and their gradient by rows only."""
    return move(x, P(ROWS), P(ROWS))


def looked_up(x: Array) -> Array:
    """Shards the result of the embedding's lookup, ``[B, S, width]``.

    Every device looks up all rows in its part of the table, and the devices exchange the states,
    which are much smaller than the table.
    """
    part = P("data", None, "fsdp")
    return rows(move(x, part, part))


def whole(x: Array) -> Array:
    """Gathers states ``[B, S, width]`` over ``tensor``; more axes may follow."""
    return move(x, P(ROWS), P(ROWS, "tensor"))


def part(x: Array) -> Array:
    """Splits states ``[B, S, width]`` along the sequence over ``tensor``."""
    return move(x, P(ROWS, "tensor"), P(ROWS))


def places(x: Array, count: int) -> int:
    """Returns over how many places ``count`` rows are split; 1 if it does not divide them.

    Args:
      x: any array of the program.
      count: number of rows.
    """
    mesh = mesh_of(x)
    places = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return 1 if count % places else places


def of_rows(x: Array) -> Array:
    """Splits an array along its first axis, rows or places of rows."""
    return place(x, P(ROWS))


def copies(x: Array, count: int) -> Array:
    """Copies an array for each of the F places that rows are split over: ``[F, ...]``.

    In a loop, each copy then accumulates its own gradient, and the copies are summed once, after
    the loop; with one array the compiler would sum over all places in every iteration. If the array
    is split over ``tensor``, that sum is cheap (a reduce-scatter into parts), and copies would cost
    more memory than they save (`benchmarks/tpu_step.py`: 0.28 GiB more for 1.6 of 17.9 sent): then
    F is 1.

    Args:
      x: any array, not split over ``data`` and ``fsdp``.
      count: number of rows; F is 1 if the places do not divide it.
    """
    mesh = mesh_of(x)
    places = 1
    if mesh is not None and mesh.shape["tensor"] == 1:
        places = mesh.shape["data"] * mesh.shape["fsdp"]
    places = places if count % places == 0 else 1
    spec = P(ROWS)
    return move(jnp.broadcast_to(x, (places, *x.shape)), spec, spec) if places > 1 else x[None]


def gather(parts: dict[str, Array], weights: tuple[P, P]) -> dict[str, Array]:
    """Gathers the codes and scales of a quantised kernel; it has no gradient."""
    return {name: place(part, weights[0]) for name, part in parts.items()}


def dot(weights: tuple[P, P]):  # type: ignore[no-untyped-def]
    """Makes the product of a dense layer, which gathers its kernel."""

    def product(x: Array, kernel: Array, *args, **options):  # type: ignore[no-untyped-def]
        return jax.lax.dot_general(x, move(kernel, *weights), *args, **options)

    return product
