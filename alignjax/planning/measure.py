"""Compiles programs for any machine, also absent ones, and measures their memory and costs."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from alignjax.models.config import ModelConfig
from alignjax.planning import collectives, hlo, hlo_costs
from alignjax.planning.chips import GIB, Chip, Machine

ASSUMPTION = (
    "published peaks; the estimate takes the slowest of computing, memory and network, as if they "
    "overlapped fully, and the limit above their sum, as if they never did"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The memory and costs of a program on a machine, per device and per call."""

    fits: bool
    limit: float  # bytes of HBM
    total: float  # bytes: arguments + output + temporary + the process itself
    arguments: float
    output: float  # without results that reuse the memory of arguments
    temporary: float
    flops: float  # of matrix products as compiled, recomputed ones included
    moved: float  # bytes read and written in HBM
    collectives: dict[str, dict[str, float]]  # kind -> times, and bytes of results, entered, sent
    compile_seconds: float
    uncounted: list[str] = dataclasses.field(default_factory=list)  # kernels not in flops
    note: str = ""  # the compiler's message if the program does not fit

    @property
    def results(self) -> float:
        """Bytes of the results of all collectives."""
        return sum(kind["bytes"] for kind in self.collectives.values())

    @property
    def entered(self) -> float:
        """The same, but for reduce-scatters the bytes of their operands."""
        return sum(kind["entered"] for kind in self.collectives.values())

    @property
    def sent(self) -> float:
        """Bytes that a device sends."""
        return sum(kind["sent"] for kind in self.collectives.values())


def measure_program(function: Any, *args: Any, on: Machine, **static: Any) -> Measurement:
    """Compiles a jitted function for a machine and measures the program.

    Args:
      function: of `jax.jit`.
      args: shapes, dtypes and shardings of arrays on the machine's devices.
      on: the machine.
      static: keywords of the function.
    """
    lowered = function.lower(*args, **static)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _too_large(str(error), on, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    memory, program = compiled.memory_analysis(), hlo.parse(compiled.as_text())
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes + output + on.process
    return Measurement(
        fits=total <= on.chip.memory,
        limit=on.chip.memory,
        total=total,
        arguments=memory.argument_size_in_bytes,
        output=output,
        temporary=memory.temp_size_in_bytes,
        flops=hlo_costs.flops(program),
        moved=hlo_costs.bytes_moved(program),
        collectives=collectives.totals(program),
        compile_seconds=seconds,
        uncounted=hlo_costs.uncounted(program),
    )


def _too_large(error: str, on: Machine, seconds: float) -> Measurement:
    """Reads the size of a program from the compiler's error message."""
    sizes = [float(n) * GIB for n in re.findall(r"([\d.]+)G\b", error)]
    note = next(line for line in error.splitlines() if "RESOURCE_EXHAUSTED" in line)
    return Measurement(
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


def estimate_seconds(measured: Measurement, chip: Chip) -> dict[str, float]:
    """Estimates the seconds of a call under `ASSUMPTION`, and of its parts."""
    parts = {
        "computing": measured.flops / chip.flops,
        "memory": measured.moved / chip.bandwidth,
        "network": measured.sent / chip.network,
    }
    return {**parts, "estimate": max(parts.values()), "at_most": sum(parts.values())}


def bytes_per_device(tree: Any) -> int:
    """Counts the bytes of a tree of arrays, or of their abstract shapes, on one device."""

    def size(leaf: Any) -> int:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 0  # negligible
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def forward_flops(model: ModelConfig, rows: int, k: int, prompt: int, response: int) -> float:
    """Computes multiplications and additions of a forward pass by a formula.

    The prompt counts once, causal attention half, and the vocabulary only at response tokens;
    padding counts like real tokens.
    """
    c = model
    inner = c.heads * c.head_dim
    layer = 2 * c.width * inner + 2 * c.width * c.kv_heads * c.head_dim + 3 * c.width * c.mlp_width
    tokens = prompt + k * response
    pairs = prompt * (prompt + 1) / 2 + k * (response * prompt + response * (response + 1) / 2)
    products = tokens * layer * c.layers + k * response * c.width * c.vocab_size
    return 2.0 * rows * (products + 2 * pairs * inner * c.layers)
