"""Finds the collectives of a compiled program; numbers are per device and per call."""

import dataclasses
import math
import re
from collections.abc import Iterator

from alignjax.planning import hlo
from alignjax.planning.hlo import Instruction, Program, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation, and how often a call of the program runs it."""

    kind: str
    size: int  # bytes of the result, on one device, each time
    group: int  # number of devices that exchange data
    times: int
    shapes: tuple[Shape, ...]
    source: str  # JAX's name of the operation that it is for

    @property
    def entered(self) -> int:
        """Bytes of the result; of a reduce-scatter, of its operand."""
        return self.size * (self.group if self.kind == "reduce-scatter" else 1)

    @property
    def wire(self) -> float:
        """Bytes that one device sends each time, in a ring."""
        share = (self.group - 1) / max(1, self.group)
        factor = {
            "all-gather": share,
            "all-reduce": 2 * share,
            "reduce-scatter": self.group - 1,  # of the result, which is one part of the operand
            "all-to-all": share,
            "collective-permute": 1.0,
        }
        return factor[self.kind] * self.size


def totals(program: Program) -> dict[str, dict[str, float]]:
    """Sums the collectives of a program by kind: their number, and bytes of each sort."""
    kinds: dict[str, dict[str, float]] = {}
    for one in find_collectives(program):
        kind = kinds.setdefault(one.kind, {"times": 0, "bytes": 0, "entered": 0, "sent": 0})
        kind["times"] += one.times
        kind["bytes"] += one.times * one.size
        kind["entered"] += one.times * one.entered
        kind["sent"] += one.times * one.wire
    return kinds


def find_collectives(program: Program) -> list[Collective]:
    """Lists the collectives of a program, one spread over several fusions only once."""
    callers, loops = _callers(program), _enclosing_loops(program)
    lines = [
        (where, line)
        for where, line, _ in program.running()
        if line.opcode.removesuffix("-done") in COLLECTIVES
    ]
    bodies: dict[tuple[str, ...], set[str]] = {}
    for where, line in lines:
        if chain := _chain(line):
            bodies.setdefault(chain, set()).add(_body(callers, where))
    by_key: dict[tuple[str, ...], Collective] = {}
    for where, line in lines:
        kind, chain = line.opcode.removesuffix("-done"), _chain(line)
        # One operation may start in one fusion and continue in others, in the same loop body or in
        # loops inside it. It counts where it starts.
        body = _body(callers, where) if chain else where
        key = (*chain, body) if chain else (where, line.name)
        if key in by_key or (chain and bodies[chain] & {*_outer(loops, body)}):
            continue
        shapes, text = line.shapes, line.text
        # TPU programs have a reduce-scatter as a fusion of an all-reduce and a slice.
        if where.startswith("all-reduce-scatter"):
            kind, (_, fusion) = "reduce-scatter", callers[where]
            shapes, text = fusion.shapes, fusion.text
        source = re.search(r'op_name="([^"]*)"', text)
        by_key[key] = Collective(
            kind=kind,
            size=sum(shape.size for shape in shapes),
            group=_group(line.text, program.devices),
            times=program.times[body],
            shapes=shapes,
            source=source[1] if source else "",
        )
    return sorted(by_key.values(), key=lambda c: -c.size * c.times)


def _chain(line: Instruction) -> tuple[str, ...]:
    """Returns the ids shared by the parts of a collective; () if it has only one part."""
    chain = re.search(r'chain_id="(\w+)"', line.text)
    channel = re.search(r"channel_id=(\d+)", line.text)
    return (line.opcode, chain[1], channel[1] if channel else "") if chain else ()


def _enclosing_loops(program: Program) -> dict[str, str]:
    """Maps every body of a loop to the computation that the loop is in."""
    return {
        called: name
        for name, lines in program.computations.items()
        for line in lines
        if line.opcode == "while"
        for called in hlo.CALLED.findall(line.text)
    }


def _outer(loops: dict[str, str], body: str) -> Iterator[str]:
    """Yields the computations around a loop's body, from the inside out."""
    while body in loops:
        body = loops[body]
        yield body


def _callers(program: Program) -> dict[str, tuple[str, Instruction]]:
    """Maps every computation in a fusion to the fusion, and the computation that has it."""
    return {
        called: (name, line)
        for name, lines in program.computations.items()
        for line in lines
        if line.opcode == "fusion"
        for called in hlo.CALLED.findall(line.text)
    }


def _body(callers: dict[str, tuple[str, Instruction]], name: str) -> str:
    """Follows fusions outwards to the computation, such as a loop's body, around them."""
    while name in callers:
        name = callers[name][0]
    return name


def _group(text: str, devices: int) -> int:
    """Reads how many devices are in one group of a collective."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(tiled[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return devices
