"""What a program needs on machines that are not here: compiled for them, and read.

For TPUs the compiler is a package (libtpu) that compiles for any topology on any machine, so that
memory, products and collectives are those of the program that would run. For GPUs there is no such
compiler where there is no GPU: their numbers are those of XLA's compiler for CPUs, an estimate.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from alignjax.errors import UserError, did_you_mean
from alignjax.models.config import ModelConfig
from alignjax.planning import hlo, hlo_costs

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one device, as JAX counts devices."""

    memory: float  # bytes of HBM
    flops: float  # per second, bfloat16
    bandwidth: float  # bytes per second, HBM
    network: float  # bytes per second that a device can send to its neighbours, all links together
    shapes: tuple[str, ...]  # topologies that are sold; () for any number of devices


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
ASSUMPTION = (
    "published peaks; the estimate takes the slowest of computing, memory and network, as if they "
    "overlapped fully, and the limit above their sum, as if they never did"
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for."""

    topology: str
    chip: Chip
    devices: Sequence[Any]
    exact: bool  # the compiler is the machine's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One program on one machine; sizes and counts are per device and per call."""

    fits: bool
    limit: float  # bytes of HBM
    total: float  # bytes: arguments + output + temporary - what the output reuses
    arguments: float
    output: float  # beyond what reuses an argument's memory
    temporary: float
    flops: float  # of matrix products as compiled, recomputed ones included
    moved: float  # bytes read and written in HBM
    collectives: dict[str, dict[str, float]]  # kind -> times; bytes of results, entered, sent
    compile_seconds: float
    uncounted: list[str] = dataclasses.field(default_factory=list)  # kernels not in flops
    note: str = ""  # what the compiler said when it does not fit

    @property
    def results(self) -> float:
        """Bytes of the results of all collectives."""
        return sum(kind["bytes"] for kind in self.collectives.values())

    @property
    def entered(self) -> float:
        """The same, but of a reduce-scatter what goes into it, as of an all-reduce."""
        return sum(kind["entered"] for kind in self.collectives.values())

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(kind["sent"] for kind in self.collectives.values())


def machine(topology: str) -> Machine:
    """The devices of a topology such as ``v5p:4x4x4`` or ``h100:8``.

    Raises:
      UserError: there is no such topology (the message lists what there is), or libtpu is missing.
    """
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS:
        raise UserError(
            f"--topology={topology}: no chip {kind!r}{did_you_mean(kind, CHIPS)}; {_known()}"
        )
    chip = CHIPS[kind]
    if not chip.shapes:
        if not shape.isdigit() or not int(shape):
            raise UserError(f"--topology={topology}: wanted a number of GPUs, such as {kind}:8")
        return Machine(topology, chip, _virtual(int(shape)), exact=False)
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology={topology}: wanted {kind}:SHAPE; {_known()}")
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise UserError(
            f"--topology={topology}: compiling for TPUs wants libtpu, which needs no TPU; it is "
            'not installed: pip install -c requirements.txt -e ".[tpu]" (Linux, x86-64)'
        )
    # What libtpu looks for on a TPU machine, and warns of where there is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    # Compiling holds no chip: nothing is gained by one process at a time.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # the library names its errors as it pleases
        what = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology={topology}: {what[:200]}; {_known()}") from None
    return Machine(topology, chip, found.devices, exact=True)


def _known() -> str:
    told = [f"{kind}:{'|'.join(chip.shapes) or 'N'}" for kind, chip in CHIPS.items()]
    return "known: " + ", ".join(told)


def _virtual(count: int) -> Sequence[Any]:
    """CPU devices in the place of GPUs."""
    wanted: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    with contextlib.suppress(RuntimeError):  # JAX may have its devices already
        jax.config.update("jax_num_cpu_devices", max(count, wanted))
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology: wants {count} devices, this process has {len(devices)}")
    return devices[:count]


def measure(function: Any, *args: Any, on: Machine, **static: Any) -> Measured:
    """Compiles a jitted function for a machine and reads the result.

    Args:
      function: of `jax.jit`.
      args: arrays' shapes, dtypes and shardings over the machine's devices.
      on: the machine.
      static: keywords of the function.
    """
    lowered = function.lower(*args, **static)
    since = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _too_large(str(error), on, time.perf_counter() - since)
    seconds = time.perf_counter() - since
    memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output
    kinds: dict[str, dict[str, float]] = {}
    for one in hlo_costs.collectives(program):
        kind = kinds.setdefault(one.kind, {"times": 0, "bytes": 0, "entered": 0, "sent": 0})
        kind["times"] += one.times
        kind["bytes"] += one.times * one.size
        kind["entered"] += one.times * one.entered
        kind["sent"] += one.times * one.wire
    return Measured(
        fits=total <= on.chip.memory,
        limit=on.chip.memory,
        total=total,
        arguments=memory.argument_size_in_bytes,
        output=output,
        temporary=memory.temp_size_in_bytes,
        flops=hlo_costs.flops(program),
        moved=hlo_costs.moved(program),
        collectives=kinds,
        compile_seconds=seconds,
        uncounted=hlo_costs.uncounted(program),
    )


def _too_large(error: str, on: Machine, seconds: float) -> Measured:
    """What the compiler says of a program that it refuses for its size."""
    sizes = [float(n) * GIB for n in re.findall(r"([\d.]+)G\b", error)]
    note = next(line for line in error.splitlines() if "RESOURCE_EXHAUSTED" in line)
    return Measured(
        fits=False,
        limit=on.chip.memory,
        total=max([on.chip.memory, *sizes]),
        arguments=math.nan,
        output=math.nan,
        temporary=math.nan,
        flops=math.nan,
        moved=math.nan,
        collectives={},
        compile_seconds=seconds,
        note=" ".join(note.split()).removeprefix("RESOURCE_EXHAUSTED: ")[:300],
    )


def seconds(found: Measured, chip: Chip) -> dict[str, float]:
    """Seconds per call under `ASSUMPTION`, and what they are made of."""
    parts = {
        "computing": found.flops / chip.flops,
        "memory": found.moved / chip.bandwidth,
        "network": found.sent / chip.network,
    }
    return {**parts, "estimate": max(parts.values()), "at_most": sum(parts.values())}


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes with shardings, on one device."""

    def size(leaf: Any) -> int:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 0  # a few words
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def forward_flops(model: ModelConfig, rows: int, k: int, prompt: int, response: int) -> float:
    """Multiplications and additions of one pass over a batch, as the mathematics has it.

    The prompt once, causal attention counted as the half that it is, the vocabulary at response
    tokens only; all tokens are taken for real ones.
    """
    c = model
    inner = c.heads * c.head_dim
    layer = 2 * c.width * inner + 2 * c.width * c.kv_heads * c.head_dim + 3 * c.width * c.mlp_width
    tokens = prompt + k * response
    pairs = prompt * (prompt + 1) / 2 + k * (response * prompt + response * (response + 1) / 2)
    products = tokens * layer * c.layers + k * response * c.width * c.vocab_size
    return 2.0 * rows * (products + 2 * pairs * inner * c.layers)
