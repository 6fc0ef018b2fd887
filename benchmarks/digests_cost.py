"""Measures what digests add to saving and loading parameters.

    python benchmarks/digests_cost.py --mebibytes=1024 --rounds=7

Random float32 parameters are saved and loaded with digests and without, in turn, in a temporary
folder. The times are of the clock; what is loaded is in the page cache. Prints the medians, the
smallest and the largest time of each, and the median of the rounds' ratios. Use an idle machine.
"""

import argparse
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


def seconds(act: Callable[[], Any]) -> float:
    """Times a call."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def save(path: pathlib.Path, params: Any, *, sealed: bool) -> float:
    """Times a save; without digests the folder is left without its list."""
    kept = digests.seal
    if not sealed:
        digests.seal = lambda folder: None
    try:
        return seconds(lambda: checkpoint.save_params(path, params))
    finally:
        digests.seal = kept


def load(path: pathlib.Path, target: Any) -> float:
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
    times: dict[tuple[str, bool], list[float]] = {}
    with tempfile.TemporaryDirectory() as top:
        for number in range(args.rounds + 1):
            for sealed in (True, False) if number % 2 else (False, True):
                path = pathlib.Path(top) / "params"
                shutil.rmtree(path, ignore_errors=True)
                found = {"save": save(path, params, sealed=sealed), "load": load(path, target)}
                if number:  # the first round warms up
                    for name, value in found.items():
                        times.setdefault((name, sealed), []).append(value)
    print(f"{count * PIECE} MiB in {count} arrays, {args.rounds} rounds")
    print("seconds, median [smallest, largest]")
    for name in ("save", "load"):
        with_, without = times[name, True], times[name, False]
        for title, found in (("with digests", with_), ("without", without)):
            low, high = min(found), max(found)
            print(f"{name}, {title:12}  {statistics.median(found):.3f} [{low:.3f}, {high:.3f}]")
        ratio = statistics.median(a / b for a, b in zip(with_, without, strict=True))
        print(f"{name}: {100 * (ratio - 1):+.1f}%")


if __name__ == "__main__":
    main()
