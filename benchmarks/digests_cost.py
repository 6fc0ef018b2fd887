"""Measures what digests add to saving and loading parameters.

    python benchmarks/digests_cost.py --mebibytes=1024 --rounds=7

Random float32 parameters are saved and loaded with digests and without, in turn, in a temporary
folder; what is loaded is in the page cache. Prints the medians, the smallest and the largest time
of each, by the clock and of all processors together, and the median of the rounds' ratios; then
what comparing the digests alone takes. Use an idle machine: on a shared one only that tells much.
"""

import argparse
import functools
import logging
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax import digests
from alignjax.runtime import checkpoint

PIECE = 4  # MiB of an array


def seconds(act: Callable[[], Any]) -> tuple[float, float]:
    """Times a call: by the clock, and of all processors."""
    begin = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def save(path: pathlib.Path, params: Any, *, sealed: bool) -> tuple[float, float]:
    """Times a save; without digests the folder is left without its list."""
    kept = digests.seal
    if not sealed:
        digests.seal = lambda folder: None
    try:
        return seconds(lambda: checkpoint.save_params(path, params))
    finally:
        digests.seal = kept


def load(path: pathlib.Path, target: Any) -> tuple[float, float]:
    """Times a load; parameters without digests are read as they are."""
    return seconds(lambda: jax.block_until_ready(checkpoint.load_params(path, target)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    logging.getLogger("alignjax").setLevel(logging.ERROR)  # a warning for each load without digests
    draw = np.random.default_rng(0)
    count = max(1, args.mebibytes // PIECE)
    params = {
        f"w{i}": jax.numpy.asarray(draw.random((PIECE, 512, 512), np.float32)) for i in range(count)
    }
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    alone: list[tuple[float, float]] = []
    times: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as top:
        for number in range(args.rounds + 1):
            for sealed in (True, False) if number % 2 else (False, True):
                path = pathlib.Path(top) / "params"
                shutil.rmtree(path, ignore_errors=True)
                found = {"save": save(path, params, sealed=sealed), "load": load(path, target)}
                if sealed:
                    alone.append(seconds(functools.partial(digests.find_damage, path)))
                if number:  # the first round warms up
                    for name, value in found.items():
                        times.setdefault((name, sealed), []).append(value)
    print(f"{count * PIECE} MiB in {count} arrays, {args.rounds} rounds")
    print("seconds, median [smallest, largest]")
    for kind, title in enumerate(("by the clock", "of all processors")):
        for name in ("save", "load"):
            with_, without = ([x[kind] for x in times[name, sealed]] for sealed in (True, False))
            for which, found in (("with digests", with_), ("without", without)):
                shown = f"{statistics.median(found):.3f} [{min(found):.3f}, {max(found):.3f}]"
                print(f"{name} {title}, {which:12}  {shown}")
            ratio = statistics.median(a / b for a, b in zip(with_, without, strict=True))
            print(f"{name} {title}: {100 * (ratio - 1):+.1f}%")
        shown = statistics.median(x[kind] for x in alone)
        print(f"digests alone, {title}: {shown:.3f}")


if __name__ == "__main__":
    main()
