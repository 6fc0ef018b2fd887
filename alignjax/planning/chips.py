"""Describes devices to compile for, also absent ones: chips, their published peaks, topologies.

The TPU compiler (the package libtpu) compiles for any topology on any machine, so memory, products
and collectives are exact. The GPU compiler needs a GPU, so plans for GPUs are estimates with XLA's
CPU compiler.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from alignjax.errors import UserError, did_you_mean

GIB = 2.0**30
PROCESS = 1.0 * GIB  # memory of a process on CPUs besides its arrays, measured: docs/pods.md


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one device, as JAX counts devices."""

    memory: float  # bytes of HBM
    flops: float  # per second, bfloat16
    bandwidth: float  # bytes per second, HBM
    network: float  # bytes per second that a device can send over all links
    shapes: tuple[str, ...]  # available topologies; () for any number of devices


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")
# TPUs: cloud.google.com/tpu/docs (v5e, v5p, v6e, tpu7x; half of the bidirectional bandwidth between
# chips; a tpu7x chip is two devices). GPUs: NVIDIA's data sheets of the SXM boards (dense, half of
# NVLink's bidirectional bandwidth).
CHIPS = {
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, _FLAT),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, _CUBE),
    "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, _FLAT),
    "tpu7x": Chip(96 * GIB, 1153.5e12, 3690e9, 300e9, _CUBE),
    "a100": Chip(80e9, 312e12, 2039e9, 300e9, ()),
    "h100": Chip(80e9, 989e12, 3350e9, 450e9, ()),
    "h200": Chip(141e9, 989e12, 4800e9, 450e9, ()),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for."""

    topology: str
    chip: Chip
    devices: Sequence[Any]
    exact: bool  # whether its own compiler is used
    process: float = 0.0  # bytes of the process besides its arrays, if they share memory


def find_machine(topology: str) -> Machine:
    """Finds the devices of a topology such as ``v5p:4x4x4`` or ``h100:8``.

    Raises:
      UserError: the topology is unknown (the message lists the known ones), or libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        return _this_machine(topology, shape)
    if kind not in CHIPS:
        raise UserError(
            f"--topology={topology}: wanted a known chip, found {kind!r}"
            f"{did_you_mean(kind, CHIPS)}; {_known()}"
        )
    chip = CHIPS[kind]
    if not chip.shapes:
        if not shape.isdigit() or not int(shape):
            raise UserError(f"--topology={topology}: wanted a number of GPUs, such as {kind}:8")
        return Machine(topology, chip, _virtual_devices(int(shape)), exact=False)
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology={topology}: wanted {kind}:SHAPE; {_known()}")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            f"--topology={topology}: compiling for TPUs requires libtpu (but no TPU), which is not "
            'installed: pip install -c requirements.txt -e ".[tpu]" (Linux, x86-64)'
        )
    # libtpu looks for these, and warns without a TPU.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    # Compiling uses no chip, so several processes may compile at the same time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu does not document the type
        reason = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={topology}: {reason[:200]}; {_known()}") from None
    return Machine(topology, chip, described.devices, exact=True)


def _this_machine(topology: str, shape: str) -> Machine:
    """Describes this machine's CPUs and its memory, which their devices share."""
    if not shape.isdigit() or not int(shape):
        raise UserError(f"--topology={topology}: wanted a number of devices, such as cpu:1")
    count = int(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
    unknown = math.nan
    chip = Chip(memory, unknown, unknown, unknown, ())
    devices = _virtual_devices(count)
    return Machine(topology, chip, devices, exact=True, process=PROCESS / count)


def _known() -> str:
    known = [f"{kind}:{'|'.join(chip.shapes) or 'N'}" for kind, chip in CHIPS.items()] + ["cpu:N"]
    return "known: " + ", ".join(known)


def _virtual_devices(count: int) -> Sequence[Any]:
    """Makes CPU devices, also as a substitute for GPUs."""
    present: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    with contextlib.suppress(RuntimeError):  # JAX has made its devices already
        jax.config.update("jax_num_cpu_devices", max(count, present))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology: wanted {count} devices, found {len(devices)} in this process")
    return devices[:count]
