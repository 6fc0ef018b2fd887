"""Reads a compiled program: what it computes, moves and keeps, with loops counted in full.

XLA's own ``cost_analysis`` counts the body of a loop once. Here every computation is weighed by how
often it runs: a loop's body as often as the loop turns. A loop that may end early (sampling) is
counted to its bound. Numbers are per device: the text is that of one device's program.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "c64": 8,
    "c128": 16,
}
# These name or rearrange buffers that are there already.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "iota"),
}

_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type and dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * BYTES.get(self.dtype, 4)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of its results
    operands: tuple[str, ...]
    text: str  # what follows the operands

    @property
    def size(self) -> int:
        """Bytes of its results."""
        return sum(shape.size for shape in self.shapes)


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


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program's text, taken apart."""

    computations: dict[str, tuple[Instruction, ...]]
    times: dict[str, int]  # how often each computation runs in one call of the program
    fused: frozenset[str]  # computations inside fusions: what they name is not kept in memory
    devices: int

    def running(self) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction that runs: its computation, itself, how often."""
        for name, lines in self.computations.items():
            if self.times.get(name, 0):
                for line in lines:
                    yield name, line, self.times[name]


def parse(text: str) -> Program:
    """Takes the text of a compiled program apart (``compiled.as_text()``)."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current and (found := _LINE.match(line)):
            computations[current].append(_instruction(found[1], found[2]))
    whole = {name: tuple(lines) for name, lines in computations.items()}
    times: dict[str, int] = {}
    fused: set[str] = set()
    _weigh(whole, entry, 1, times, fused, inside=False)
    header = text[: text.find("\n")]
    parts = re.search(r"num_partitions=(\d+)", header)
    return Program(whole, times, frozenset(fused), int(parts[1]) if parts else 1)


def _instruction(name: str, rest: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    if rest.startswith("("):
        end = _closing(rest, 0) + 1
    else:
        end = rest.index(" ")
    shapes = tuple(
        Shape(kind, tuple(int(d) for d in dims.split(",") if d))
        for kind, dims in _ARRAY.findall(rest[:end])
    )
    rest = rest[end:].lstrip()
    opens = rest.index("(")
    closes = _closing(rest, opens)
    inner = rest[opens + 1 : closes]
    operands = tuple(re.findall(r"%([\w.\-]+)", inner)) or (inner.strip(),)
    return Instruction(name, rest[:opens], shapes, operands, rest[closes + 1 :])


def _closing(text: str, opens: int) -> int:
    depth = 0
    for i in range(opens, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"unbalanced: {text[:80]}")


def _weigh(
    computations: dict[str, tuple[Instruction, ...]],
    name: str,
    count: int,
    times: dict[str, int],
    fused: set[str],
    inside: bool,
) -> None:
    times[name] = times.get(name, 0) + count
    if inside:
        fused.add(name)
    for line in computations.get(name, ()):
        if line.opcode.endswith(("-done", "-update")):
            continue  # counted where it starts
        called = _CALLED.findall(line.text)
        for one, two in _BRANCHES.findall(line.text):
            called += re.findall(r"%?([\w.\-]+)", one) if one else [two]
        turns = _turns(computations, line) if line.opcode == "while" else 1
        small = line.opcode in ("reduce", "reduce-window", "scatter", "sort", "map", "select")
        small |= line.opcode.startswith(("all-reduce", "reduce-scatter"))
        if not small:  # what is applied to single elements holds nothing of interest
            for other in called:
                deeper = inside or line.opcode == "fusion"
                _weigh(computations, other, count * turns, times, fused, deeper)


def _turns(computations: dict[str, tuple[Instruction, ...]], loop: Instruction) -> int:
    """How often a loop turns: told by the compiler, or the bound in its condition."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.text):
        return int(known[1])
    condition, body = (
        found[1] if (found := re.search(rf"{part}=%?([\w.\-]+)", loop.text)) else ""
        for part in ("condition", "body")
    )
    bounds, compared, names = [1], "0", [condition]
    while names:
        for line in computations.get(names.pop(), ()):
            if line.opcode == "constant" and line.operands[0].isdigit():
                bounds.append(int(line.operands[0]))
            if line.opcode == "get-tuple-element" and line.shapes[0].dtype in ("s32", "u32"):
                compared = line.text.partition("index=")[2].partition(",")[0]
            names += re.findall(r"calls=%?([\w.\-]+)", line.text)
    return -(-max(bounds) // _stride(computations.get(body, ()), int(compared)))


def _stride(body: tuple[Instruction, ...], index: int) -> int:
    """By how much a loop's body raises its counter: more than 1 where it was unrolled."""
    if not body:
        return 1
    by_name = {line.name: line for line in body}
    total, at = 0, by_name.get(body[-1].operands[index])
    while at is not None and at.opcode in ("add", "copy"):
        following = None
        for name in at.operands:
            term = by_name.get(name)
            if term is not None and term.opcode == "constant":
                total += int(term.operands[0])
            else:
                following = term
        at = following
    return max(1, total)


def collectives(program: Program) -> list[Collective]:
    """Every collective of a program. What is spread over several fusions counts once."""
    callers = _callers(program)
    found: dict[tuple[str, ...], Collective] = {}
    for where, line, times in program.running():
        kind = line.opcode.removesuffix("-done")
        if kind not in COLLECTIVES:
            continue
        chain = re.search(r'chain_id="(\w+)"', line.text)
        channel = re.search(r"channel_id=(\d+)", line.text)
        # Started in one fusion, continued in others, of the same body of a loop: one operation.
        body = _body(callers, where) if chain else where
        key = (kind, body, chain[1], channel[1] if channel else "") if chain else (where, line.name)
        if key in found:
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


def _callers(program: Program) -> dict[str, tuple[str, Instruction]]:
    """For every computation inside a fusion: the fusion, and the computation that it is in."""
    return {
        called: (name, line)
        for name, lines in program.computations.items()
        for line in lines
        if line.opcode == "fusion"
        for called in _CALLED.findall(line.text)
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
    return total


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

    Where a fusion reads a slice of an operand, or writes into a part of one, the part counts.
    """
    shapes = _shapes(program)
    total = 0.0
    for where, line, times in program.running():
        if where in program.fused or line.opcode in FREE or line.opcode.endswith("-start"):
            continue
        sizes = [sum(s.size for s in shapes[where].get(name, ())) for name in line.operands]
        written = line.size
        if line.opcode == "fusion":
            inner = program.computations[_CALLED.findall(line.text)[0]]
            sizes = [_read(inner, i, size) for i, size in enumerate(sizes)]
            written = _written(inner, written)
        elif line.opcode in ("dynamic-slice", "slice", "gather"):
            sizes = [written]
        elif line.opcode == "dynamic-update-slice":
            written = sum(s.size for s in shapes[where].get(line.operands[1], ()))
            sizes = [written]
        total += times * (written + sum(sizes))
    return total


def _read(inner: tuple[Instruction, ...], index: int, size: int) -> int:
    """Bytes that a fusion reads of its operand number ``index``."""
    name = next(
        (x.name for x in inner if x.opcode == "parameter" and x.operands[0] == str(index)), ""
    )
    used = [x for x in inner if name in x.operands]
    parts = 0
    for x in used:
        if x.opcode in ("dynamic-slice", "slice", "gather") and x.operands[0] == name:
            parts += x.size
        elif x.opcode != "dynamic-update-slice" or x.operands[0] != name:
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
