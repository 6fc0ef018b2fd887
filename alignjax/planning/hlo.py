"""Parses the text of a compiled program, and counts how often each part of it runs.

XLA's ``cost_analysis`` counts the body of a loop once. Here every computation counts as often as
it runs: a loop's body once per iteration. A loop that may end early (sampling) has its maximum
number of iterations, and a conditional counts all branches. `hlo_costs` and `collectives` compute
the costs of parts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

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
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
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
    text: str  # after the operands

    @property
    def size(self) -> int:
        """Bytes of its results."""
        return sum(shape.size for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, parsed."""

    computations: dict[str, tuple[Instruction, ...]]
    times: dict[str, int]  # how often each computation runs in one call of the program
    fused: frozenset[str]  # computations inside fusions, whose values have no buffers
    devices: int

    def running(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields every instruction that runs: its computation, itself, how often."""
        for name, lines in self.computations.items():
            if self.times.get(name, 0):
                for line in lines:
                    yield name, line, self.times[name]


def parse(text: str) -> Program:
    """Parses the text of a compiled program (``compiled.as_text()``)."""
    # Join the metadata of a kernel, which have several lines, to the kernel's line.
    text = text.replace('={\n"', '={"').replace('"\n}}', '"}}')
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[1]
            computations[current] = []
            if line.startswith("ENTRY"):
                entry = current
        elif current and (parts := _LINE.match(line)):
            computations[current].append(_instruction(parts[1], parts[2]))
    whole = {name: tuple(lines) for name, lines in computations.items()}
    times: dict[str, int] = {}
    fused: set[str] = set()
    _count(whole, entry, 1, times, fused, inside=False)
    header = text[: text.find("\n")]
    devices = re.search(r"num_partitions=(\d+)", header)
    return Program(whole, times, frozenset(fused), int(devices[1]) if devices else 1)


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


def _count(
    computations: dict[str, tuple[Instruction, ...]],
    name: str,
    count: int,
    times: dict[str, int],
    fused: set[str],
    inside: bool,
) -> None:
    """Adds the runs of a computation, and of all that it calls, to ``times`` and ``fused``."""
    times[name] = times.get(name, 0) + count
    if inside:
        fused.add(name)
    for line in computations.get(name, ()):
        if line.opcode.endswith(("-done", "-update")):
            continue  # counted where it starts
        called = CALLED.findall(line.text)
        for one, two in _BRANCHES.findall(line.text):
            called += re.findall(r"%?([\w.\-]+)", one) if one else [two]
        turns = _iterations(computations, line) if line.opcode == "while" else 1
        elementwise = line.opcode in ("reduce", "reduce-window", "scatter", "sort", "map", "select")
        elementwise |= line.opcode.startswith(("all-reduce", "reduce-scatter"))
        if not elementwise:  # functions applied to single elements cost almost nothing
            for other in called:
                deeper = inside or line.opcode == "fusion"
                _count(computations, other, count * turns, times, fused, deeper)


def _iterations(computations: dict[str, tuple[Instruction, ...]], loop: Instruction) -> int:
    """Finds a loop's number of iterations: from the compiler, or the bound in its condition."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.text):
        return int(known[1])
    condition, body = (
        name[1] if (name := re.search(rf"{part}=%?([\w.\-]+)", loop.text)) else ""
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
    """Finds the increment of a loop's counter; it is above 1 if the loop was unrolled."""
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
