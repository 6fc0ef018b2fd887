"""Prints plans: one program as a table, or several ranked."""

import math
from typing import Any

from alignjax.evaluation.tables import print_rows, say
from alignjax.planning import measure
from alignjax.planning.chips import GIB, Machine


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def size(plan: dict[str, Any]) -> str:
    """Formats the memory that a program needs, and the available memory."""
    measured = plan["measured"]
    return f"{_gib(measured['total'])} of {_gib(measured['limit'])} GiB"


def time(plan: dict[str, Any]) -> str:
    """Formats the time of a call, from full overlap to none."""
    seconds = plan["seconds"]
    return f"{seconds['estimate'] * 1e3:,.1f} to {seconds['at_most'] * 1e3:,.1f} ms"


def print_one(plan: dict[str, Any], on: Machine) -> None:
    """Prints the plan of one program as a table."""
    measured = plan["measured"]
    mesh = ", ".join(f"{k} {v}" for k, v in plan["mesh"].items())
    title = (
        f"{plan['name']} on {on.topology}: {_count(len(on.devices), 'device')}, {mesh}; batch "
        f"{plan['batch_size']} in {_count(plan['parts'], 'part')}, remat {plan['remat']}, "
        f"attention {plan['attention']}"
    )
    rows = {"fits": ["yes" if measured["fits"] else f"no: {measured['note'] or size(plan)}"]}
    if measured["note"]:  # the compiler refused the program, so there are no other numbers
        print_rows(rows, ("per device", ""), title)
        return
    known = not math.isnan(plan["seconds"]["estimate"])
    rows |= _memory(plan, on) | _work(plan, on) | (_speed(plan) if known else {})
    rows["compiled in, s"] = [f"{measured['compile_seconds']:.0f}"]
    if plan["reference"]:
        say(f"reference log-probs: {plan['reference']}")
    print_rows(rows, ("per device", ""), title)
    say(f"times: {measure.ASSUMPTION}." if known else "times: no peaks are published for CPUs.")


def _memory_name(on: Machine) -> str:
    return "memory" if on.process else "HBM"  # a CPU has no other memory


def _memory(plan: dict[str, Any], on: Machine) -> dict[str, list[str]]:
    measured, held = plan["measured"], plan["holds"]
    rows = {f"{_memory_name(on)}, GiB": [f"{_gib(measured['total'])} of {_gib(measured['limit'])}"]}
    rows |= {f"  {name}": [_gib(size_)] for name, size_ in held.items() if size_}
    rows["  batch"] = [_gib(max(0.0, measured["arguments"] - sum(held.values())))]
    rows["  temporary (activations, gradients, gathered weights)"] = [_gib(measured["temporary"])]
    rows["  output"] = [_gib(measured["output"])]
    if on.process:
        rows["  process (Python, JAX, compiled programs)"] = [_gib(on.process)]
    return rows


def _work(plan: dict[str, Any], on: Machine) -> dict[str, list[str]]:
    measured = plan["measured"]
    rows = {"FLOPs of the model": [f"{plan['model_flops']:.3g}"]}
    # The number of iterations of loops over a stream's tokens depends on its rows.
    loops = ", loops of unknown length once" if plan["attention"] == "tiles" else ""
    rows[f"FLOPs as compiled{loops}"] = [f"{measured['flops']:.3g}"]
    if measured["uncounted"]:
        rows["  without those of kernels"] = [", ".join(measured["uncounted"])]
    rows[f"{_memory_name(on)} traffic, GiB"] = [_gib(measured["moved"])]
    for kind, numbers in sorted(measured["collectives"].items()):
        rows[f"{kind}, GiB of results"] = [f"{_gib(numbers['bytes'])} in {numbers['times']:,.0f}"]
    return rows


def _speed(plan: dict[str, Any]) -> dict[str, list[str]]:
    rows = {
        f"{name}, ms": [f"{plan['seconds'][name] * 1e3:,.2f}"]
        for name in ("computing", "memory", "network")
    }
    rows["time per call"] = [time(plan)]
    low, high = plan["tokens_per_second"]
    rows["tokens/s, all devices"] = [f"{low:,.0f} to {high:,.0f}"]
    rows["model FLOPs utilisation, at most"] = [f"{plan['model_flops_utilisation']:.0%}"]
    if "dollars_per_hour" in plan:
        low, high = plan["dollars_per_million_tokens"]
        rows["dollars per million tokens"] = [f"{low:.3g} to {high:.3g}"]
        rows["dollars per hour"] = [f"{plan['dollars_per_hour']:,.2f}"]
    return rows


def print_ranked(plans: list[dict[str, Any]], on: Machine) -> None:
    """Prints one line for each of several programs, in the given order."""
    rows = {
        f"{','.join(f'{k}={v}' for k, v in plan['mesh'].items())} {plan['remat']}": [
            "yes" if plan["measured"]["fits"] else "no",
            _gib(plan["measured"]["total"]),
            f"{plan['measured']['flops']:.3g}",
            _gib(sum(kind["bytes"] for kind in plan["measured"]["collectives"].values())),
            time(plan),
        ]
        for plan in plans
    }
    columns = (
        "mesh, remat",
        "fits",
        f"{_memory_name(on)}, GiB",
        "FLOPs",
        "collectives GiB",
        "step",
    )
    print_rows(rows, columns, f"{on.topology}, {_count(len(on.devices), 'device')}")
