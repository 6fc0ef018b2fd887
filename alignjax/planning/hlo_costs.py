"""Counts a compiled program's FLOPs, memory traffic and buffers, per device and per call."""

import functools
import math
import re

from alignjax.planning import hlo
from alignjax.planning.collectives import COLLECTIVES
from alignjax.planning.hlo import BYTES, Instruction, Program, Shape

# These name or rearrange existing buffers, and move nothing.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"),
}
_PASSED = re.compile(r"\{(\d+)\}: \((\d+), \{\}\)")  # a result that is an operand: both numbers
_KERNEL = re.compile(r'op_name="[^"]*\bsplash_(\d+)_(\d+)\b[^"]*_(fwd|dq|dkv)_')


def flops(program: Program) -> float:
    """Counts multiplications and additions of all matrix products, without those on padding."""
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
    """Counts FLOPs of a call of splash attention and bytes it reads; None for other lines.

    `models.kernels` writes the number of blocks of scores that are not empty, and their width, into
    the call's name. For each block the forward pass has two products (with keys and with values),
    the gradient of the queries three, and that of keys and values four, because both compute the
    scores again. For each block, two blocks are read: of keys and values, or for their gradient of
    queries and of the queries' incoming gradient.
    """
    name = _KERNEL.search(line.text)
    if line.opcode != "custom-call" or name is None:
        return None
    query = shapes[line.operands[3]][0]  # [..., heads, tokens, size], after three tables of blocks
    blocks, width = int(name[1]), int(name[2])
    per_product = blocks * width * query.elements / query.dims[-2]
    products = {"fwd": 2, "dq": 3, "dkv": 4}[name[3]]
    return products * 2 * width * per_product, 2 * per_product * BYTES[query.dtype]


def uncounted(program: Program) -> list[str]:
    """Lists the kernels whose contents are unknown, so that `flops` does not count them."""
    calls = (x for _, x, _ in program.running() if "tpu_custom_call" in x.text)
    return sorted({line.name for line in calls if _KERNEL.search(line.text) is None})


def _shapes(program: Program) -> dict[str, dict[str, tuple[Shape, ...]]]:
    return {
        name: {line.name: line.shapes for line in lines}
        for name, lines in program.computations.items()
    }


def _convolution(line: Instruction, left: Shape, right: Shape) -> float:
    """Counts FLOPs of a convolution: TPU programs have matrix products as convolutions.

    A batch axis becomes a window that covers one element and padding, or gaps of a dilated axis.
    Only elements are counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.text)
    assert labels is not None, line.text
    listed = re.search(r"window=\{(.*?)\}", line.text)  # none for a product without batch axes
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", listed[1] if listed else ""))
    sizes = [int(n) for n in window.get("size", "").split("x") if n]

    def per_axis(field: str, default: str) -> list[str]:
        return window[field].split("x") if field in window else [default] * len(sizes)

    total = 2.0
    for i, size in enumerate(sizes):
        low = int(per_axis("pad", "0_0")[i].split("_")[0])
        stride, holes = int(per_axis("stride", "1")[i]), int(per_axis("lhs_dilate", "1")[i])
        spread = int(per_axis("rhs_dilate", "1")[i])
        total *= _pairs(
            line.shapes[0].dims[labels[3].index(str(i))],
            left.dims[labels[1].index(str(i))],
            *(size, stride, low, holes, spread),
        )
    output, kernel = line.shapes[0], right
    total *= output.dims[labels[3].index("b")] * output.dims[labels[3].index("f")]
    return total * kernel.dims[labels[2].index("i")]


@functools.cache
def _pairs(
    outputs: int, inputs: int, size: int, stride: int, low: int, holes: int, spread: int
) -> int:
    """Counts pairs of an output and a place in its window that lie on an element of the input."""
    count = 0
    for place in range(size):
        for output in range(outputs):
            at = output * stride - low + place * spread
            count += at >= 0 and at % holes == 0 and at // holes < inputs
    return count


def bytes_moved(program: Program) -> float:
    """Counts bytes that instructions read from and write to memory; values in a fusion are free.

    If a fusion reads a slice of an operand, or updates a part of one, only that part counts. A
    collective that is spread over fusions counts in the first and the last one; those between only
    pass its buffers on.
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
                passed = [(int(out), int(operand)) for out, operand in _PASSED.findall(line.text)]
                written -= sum(line.shapes[out].size for out, _ in passed)
                for _, operand in passed:
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
    """Counts bytes that a fusion, or one inside it, reads of its operand number ``index``."""
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
    """Counts bytes that a fusion writes; of a buffer updated in place, only the update."""
    by_name = {x.name: x for x in inner}
    for x in inner:
        if x.opcode == "dynamic-update-slice" and x.size == size and x.operands[1] in by_name:
            return by_name[x.operands[1]].size
    return size


def buffers(program: Program) -> dict[Shape, str]:
    """Lists the shapes of buffers, each with an instruction that has it."""
    return {
        shape: line.name
        for where, line, _ in program.running()
        if where not in program.fused
        for shape in line.shapes
    }
