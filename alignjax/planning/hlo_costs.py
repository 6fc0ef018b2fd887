"""What a compiled program computes, moves and keeps; all numbers are of one device and one call."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from alignjax.planning import hlo
from alignjax.planning.hlo import BYTES, Instruction, Program, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# These name or rearrange buffers that are there already.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"),
}
_HANDED = re.compile(r"\{(\d+)\}: \((\d+), \{\}\)")  # numbers of a result and its operand
_KERNEL = re.compile(r'op_name="[^"]*\bsplash_(\d+)_(\d+)\b[^"]*_(fwd|dq|dkv)_')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, and how often a step runs it."""

    kind: str
    size: int  # bytes of the result, on one device, each time
    group: int  # devices that take part
    times: int
    shapes: tuple[Shape, ...]
    source: str  # the operation it was made for, as JAX names it

    @property
    def entered(self) -> int:
        """Bytes of the result; of a reduce-scatter, what goes into it."""
        return self.size * (self.group if self.kind == "reduce-scatter" else 1)

    @property
    def wire(self) -> float:
        """Bytes that one device sends each time, in a ring."""
        share = (self.group - 1) / max(1, self.group)
        factor = {
            "all-gather": share,
            "all-reduce": 2 * share,
            "reduce-scatter": self.group - 1,  # of what it ends with, which is a part
            "all-to-all": share,
            "collective-permute": 1.0,
        }
        return factor[self.kind] * self.size


def collectives(program: Program) -> list[Collective]:
    """Every collective of a program. What is spread over several fusions counts once."""
    callers, around = _callers(program), _around(program)
    lines = [
        (where, line)
        for where, line, _ in program.running()
        if line.opcode.removesuffix("-done") in COLLECTIVES
    ]
    bodies: dict[tuple[str, ...], set[str]] = {}
    for where, line in lines:
        if chain := _chain(line):
            bodies.setdefault(chain, set()).add(_body(callers, where))
    found: dict[tuple[str, ...], Collective] = {}
    for where, line in lines:
        kind, chain = line.opcode.removesuffix("-done"), _chain(line)
        # Started in one fusion and continued in others, of the same body of a loop or of loops
        # inside it: one operation.
        body = _body(callers, where) if chain else where
        key = (*chain, body) if chain else (where, line.name)
        if key in found or (chain and bodies[chain] & {*_outer(around, body)}):
            continue
        shapes, told = line.shapes, line.text
        if where.startswith("all-reduce-scatter"):  # a TPU's reduce-scatter: the fusion is the one
            kind, (_, fusion) = "reduce-scatter", callers[where]
            shapes, told = fusion.shapes, fusion.text
        source = re.search(r'op_name="([^"]*)"', told)
        found[key] = Collective(
            kind=kind,
            size=sum(shape.size for shape in shapes),
            group=_group(line.text, program.devices),
            times=program.times[body],
            shapes=shapes,
            source=source[1] if source else "",
        )
    return sorted(found.values(), key=lambda c: -c.size * c.times)


def _chain(line: Instruction) -> tuple[str, ...]:
    """What the parts of one collective have in common; () for a collective in one part."""
    chain = re.search(r'chain_id="(\w+)"', line.text)
    channel = re.search(r"channel_id=(\d+)", line.text)
    return (line.opcode, chain[1], channel[1] if channel else "") if chain else ()


def _around(program: Program) -> dict[str, str]:
    """For every body of a loop: the computation that the loop is in."""
    return {
        called: name
        for name, lines in program.computations.items()
        for line in lines
        if line.opcode == "while"
        for called in hlo.CALLED.findall(line.text)
    }


def _outer(around: dict[str, str], body: str) -> Iterator[str]:
    """The computations around a loop's body, from the inside out."""
    while body in around:
        body = around[body]
        yield body


def _callers(program: Program) -> dict[str, tuple[str, Instruction]]:
    """For every computation inside a fusion: the fusion, and the computation that it is in."""
    return {
        called: (name, line)
        for name, lines in program.computations.items()
        for line in lines
        if line.opcode == "fusion"
        for called in hlo.CALLED.findall(line.text)
    }


def _body(callers: dict[str, tuple[str, Instruction]], name: str) -> str:
    """The loop's body, or the like, that a computation inside fusions belongs to."""
    while name in callers:
        name = callers[name][0]
    return name


def _group(text: str, devices: int) -> int:
    """Devices in one group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(tiled[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return devices


def flops(program: Program) -> float:
    """Multiplications and additions of all matrix products, as they run (padding not counted)."""
    shapes = _shapes(program)
    total = 0.0
    for where, line, times in program.running():
        if line.opcode == "dot":
            left = shapes[where][line.operands[0]][0]
            inner = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
            size = math.prod(left.dims[int(i)] for i in inner[1].split(",") if i) if inner else 1
            total += 2.0 * times * line.shapes[0].elements * size
        elif line.opcode == "convolution":
            left, right = (shapes[where][name][0] for name in line.operands[:2])
            total += times * _convolution(line, left, right)
        elif kernel := _splash(line, shapes[where]):
            total += times * kernel[0]
    return total


def _splash(line: Instruction, shapes: dict[str, tuple[Shape, ...]]) -> tuple[float, float] | None:
    """FLOPs of a call of splash attention, and bytes that it reads block by block; None: no such.

    `models.kernels` says in the call's name how many blocks of scores are not empty, and how wide a
    block is. The forward pass has two products for each (with the keys and with the values), the
    gradients of the queries three, those of keys and values four: both begin with the scores again.
    For every block two blocks are read: of keys and values, or where the gradients of those stay,
    of queries and what comes back to them.
    """
    told = _KERNEL.search(line.text)
    if line.opcode != "custom-call" or told is None:
        return None
    query = shapes[line.operands[3]][0]  # [..., heads, tokens, size], after three tables of blocks
    blocks, width = int(told[1]), int(told[2])
    passed = blocks * width * query.elements / query.dims[-2]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[told[3]]
    return products * 2 * width * passed, 2 * passed * BYTES[query.dtype]


def uncounted(program: Program) -> list[str]:
    """Names of the kernels that cannot be looked into: what they compute is not in `flops`."""
    calls = (x for _, x, _ in program.running() if "tpu_custom_call" in x.text)
    return sorted({line.name for line in calls if _KERNEL.search(line.text) is None})


def _shapes(program: Program) -> dict[str, dict[str, tuple[Shape, ...]]]:
    return {
        name: {line.name: line.shapes for line in lines}
        for name, lines in program.computations.items()
    }


def _convolution(line: Instruction, left: Shape, right: Shape) -> float:
    """FLOPs of a convolution; TPUs have every matrix product as one.

    A batch axis of a product becomes a window that meets its own element only: places of a window
    on padding or between the elements of a dilated axis are not counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    assert labels is not None, line.text
    told = re.search(r"window=\{(.*?)\}", line.text)  # none for a product without batch axes
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", told[1] if told else ""))
    sizes = [int(n) for n in window.get("size", "").split("x") if n]

    def per_axis(field: str, default: str) -> list[str]:
        return window[field].split("x") if field in window else [default] * len(sizes)

    total = 2.0
    for i, size in enumerate(sizes):
        low = int(per_axis("pad", "0_0")[i].split("_")[0])
        stride, holes = int(per_axis("stride", "1")[i]), int(per_axis("lhs_dilate", "1")[i])
        spread = int(per_axis("rhs_dilate", "1")[i])
        total *= _places(
            line.shapes[0].dims[labels[3].index(str(i))],
            left.dims[labels[1].index(str(i))],
            *(size, stride, low, holes, spread),
        )
    output, kernel = line.shapes[0], right
    total *= output.dims[labels[3].index("b")] * output.dims[labels[3].index("f")]
    return total * kernel.dims[labels[2].index("i")]


@functools.cache
def _places(
    outputs: int, inputs: int, size: int, stride: int, low: int, holes: int, spread: int
) -> int:
    """Pairs of an output and a place of its window that lie on an element of the input."""
    count = 0
    for place in range(size):
        for output in range(outputs):
            at = output * stride - low + place * spread
            count += at >= 0 and at % holes == 0 and at // holes < inputs
    return count


def moved(program: Program) -> float:
    """Bytes that instructions read and write, kept buffers only: what fusions hide is not moved.

    Where a fusion reads a slice of an operand, or writes into a part of one, the part counts. A
    collective that is spread over fusions counts where it begins and ends: those between hand its
    buffers on.
    """
    shapes = _shapes(program)
    total = 0.0
    for where, line, times in program.running():
        if where in program.fused or line.opcode in FREE or line.opcode.endswith("-start"):
            continue
        sizes = [sum(s.size for s in shapes[where].get(name, ())) for name in line.operands]
        written = line.size
        if line.opcode == "fusion":
            inner = program.computations[hlo.CALLED.findall(line.text)[0]]
            sizes = [_read(program, inner, i, size) for i, size in enumerate(sizes)]
            written = _written(inner, written)
            if any(x.opcode in COLLECTIVES for x in inner):
                handed = [(int(out), int(operand)) for out, operand in _HANDED.findall(line.text)]
                written -= sum(line.shapes[out].size for out, _ in handed)
                for _, operand in handed:
                    sizes[operand] = 0
        elif line.opcode in ("dynamic-slice", "slice", "gather"):
            sizes = [written]
        elif line.opcode == "dynamic-update-slice":
            written = sum(s.size for s in shapes[where].get(line.operands[1], ()))
            sizes = [written]
        elif kernel := _splash(line, shapes[where]):
            sizes.append(int(kernel[1]))
        total += times * (written + sum(sizes))
    return total


def _read(program: Program, inner: tuple[Instruction, ...], index: int, size: int) -> int:
    """Bytes that a fusion, or one inside of it, reads of its operand number ``index``."""
    name = next(
        (x.name for x in inner if x.opcode == "parameter" and x.operands[0] == str(index)), ""
    )
    parts = 0
    for x in inner:
        for place, operand in enumerate(x.operands):
            if operand != name:
                continue
            if x.opcode in ("dynamic-slice", "slice", "gather") and not place:
                parts += x.size
            elif x.opcode == "fusion":
                nested = program.computations[hlo.CALLED.findall(x.text)[0]]
                parts += _read(program, nested, place, size)
            elif x.opcode != "dynamic-update-slice" or place:
                return size
    return min(size, parts)


def _written(inner: tuple[Instruction, ...], size: int) -> int:
    """Bytes that a fusion writes: of a buffer updated in place only the update."""
    by_name = {x.name: x for x in inner}
    for x in inner:
        if x.opcode == "dynamic-update-slice" and x.size == size and x.operands[1] in by_name:
            return by_name[x.operands[1]].size
    return size


def kept(program: Program) -> dict[Shape, str]:
    """Every array that has a buffer of its own at some time, and the name of one that does."""
    return {
        shape: line.name
        for where, line, _ in program.running()
        if where not in program.fused
        for shape in line.shapes
    }
