"""What ``plan`` prints: one program as a table, and several ranked."""

from typing import Any

from alignjax.evaluation import report
from alignjax.planning import compile
from alignjax.planning.compile import GIB, Machine


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"


def size(one: dict[str, Any]) -> str:
    """Memory of a program, of what there is."""
    found = one["measured"]
    return f"{_gib(found['total'])} of {_gib(found['limit'])} GiB"


def time(one: dict[str, Any]) -> str:
    """The time of a call, from all overlapping to nothing."""
    took = one["seconds"]
    return f"{took['estimate'] * 1e3:,.1f} to {took['at_most'] * 1e3:,.1f} ms"


def print_one(one: dict[str, Any], on: Machine) -> None:
    """All that is known of one program, as a table."""
    found, took = one["measured"], one["seconds"]
    mesh = ", ".join(f"{k} {v}" for k, v in one["mesh"].items())
    title = (
        f"{one['name']} on {on.topology}: {len(on.devices)} devices, {mesh}; batch "
        f"{one['batch_size']}, accumulate {one['accumulate']}, remat {one['remat']}, attention "
        f"{one['attention']}"
    )
    rows = {"fits": ["yes" if found["fits"] else f"no: {found['note'] or size(one)}"]}
    if found["note"]:
        report.print_rows(rows, ("per device", ""), title)
        return
    held = one["holds"]
    rows["HBM, GiB"] = [f"{_gib(found['total'])} of {_gib(found['limit'])}"]
    for name, held_bytes in held.items():
        if held_bytes:
            rows[f"  {name}"] = [_gib(held_bytes)]
    rows["  batch"] = [_gib(max(0.0, found["arguments"] - sum(held.values())))]
    rows["  temporary (activations, gradients, gathered weights)"] = [_gib(found["temporary"])]
    rows["  output"] = [_gib(found["output"])]
    rows["FLOPs of the model"] = [f"{one['model_flops']:.3g}"]
    rows["FLOPs as compiled"] = [f"{found['flops']:.3g}"]
    if found["uncounted"]:
        rows["  without those of kernels"] = [", ".join(found["uncounted"])]
    rows["HBM traffic, GiB"] = [_gib(found["moved"])]
    for kind, numbers in sorted(found["collectives"].items()):
        rows[f"{kind}, GiB of results"] = [f"{_gib(numbers['bytes'])} in {numbers['times']:,.0f}"]
    for name in ("computing", "memory", "network"):
        rows[f"{name}, ms"] = [f"{took[name] * 1e3:,.2f}"]
    rows["time per call"] = [time(one)]
    low, high = one["tokens_per_second"]
    rows["tokens/s, all devices"] = [f"{low:,.0f} to {high:,.0f}"]
    rows["model FLOPs utilisation, at most"] = [f"{one['model_flops_utilisation']:.0%}"]
    if "dollars_per_hour" in one:
        low, high = one["dollars_per_million_tokens"]
        rows["dollars per million tokens"] = [f"{low:.3g} to {high:.3g}"]
        rows["dollars per hour"] = [f"{one['dollars_per_hour']:,.2f}"]
    rows["compiled in, s"] = [f"{found['compile_seconds']:.0f}"]
    report.print_rows(rows, ("per device", ""), title)
    report.say(f"times: {compile.ASSUMPTION}.")


def print_ranked(found: list[dict[str, Any]], on: Machine) -> None:
    """One line for each of several programs, in the order given."""
    rows = {
        f"{','.join(f'{k}={v}' for k, v in one['mesh'].items())} {one['remat']}": [
            "yes" if one["measured"]["fits"] else "no",
            _gib(one["measured"]["total"]),
            f"{one['measured']['flops']:.3g}",
            _gib(sum(kind["bytes"] for kind in one["measured"]["collectives"].values())),
            time(one),
        ]
        for one in found
    }
    columns = ("mesh, remat", "fits", "HBM GiB", "FLOPs", "collectives GiB", "step")
    report.print_rows(rows, columns, f"{on.topology}, {len(on.devices)} devices")
