"""What the step programs of `peers.py` share: rows of token ids, and a clock that sees other work.

Standard library and NumPy alone: each program runs in the environment of its own library.
"""

import argparse
import json
import math
import os
import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

PAIRS = 8  # a step
VOCABULARY = 8192
END = 1  # id that ends a response
BETA = 0.1
LEARNING_RATE = 1e-6
# Shape of the small network, in the words of transformers' Qwen2Config.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 688,
    "max_position_embeddings": 1024,
    "rope_theta": 1e6,
}

Row = dict[str, list[int]]  # prompt_ids, chosen_ids, rejected_ids


def draw_rows(count: int, *, ragged: bool, seed: int = 0) -> list[Row]:
    """Draws pairs of random ids: all of 64 + 64 tokens, or with lognormal lengths."""
    rng = np.random.default_rng(seed)

    def lengths(median: float, sigma: float, longest: int) -> np.ndarray:
        if not ragged:
            return np.full(count, 64)
        drawn = rng.lognormal(math.log(median), sigma, count)
        return np.clip(np.rint(drawn), 8, longest).astype(int)

    def ids(length: int) -> list[int]:
        drawn: list[int] = rng.integers(END + 2, VOCABULARY, length).tolist()
        return drawn

    prompts, chosen, rejected = lengths(40, 0.9, 256), lengths(60, 1, 512), lengths(60, 1, 512)
    return [
        {"prompt_ids": ids(p), "chosen_ids": [*ids(c - 1), END], "rejected_ids": [*ids(r - 1), END]}
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]


def tokens_of(rows: list[Row]) -> int:
    """Counts tokens as peers compute them: the prompt once for each response."""
    return sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    )


def batches_of(rows: list[Row]) -> list[list[Row]]:
    """Cuts rows into batches, in order."""
    return [rows[i : i + PAIRS] for i in range(0, len(rows) - PAIRS + 1, PAIRS)]


def arguments() -> argparse.Namespace:
    """Reads the command line of a step program, whose rows become batches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", help="JSON lines of token ids")
    parser.add_argument("--model", default="", help="folder of a model; empty: the small network")
    parser.add_argument("--passes", type=int, default=3, help="over the rows; the first warms up")
    parser.add_argument("--live", action="store_true", help="the reference in every step")
    parser.add_argument("--remat", default="none", help="of alignjax: see ModelConfig.remat")
    args = parser.parse_args()
    lines = pathlib.Path(args.rows).read_text().splitlines()
    args.batches = batches_of([json.loads(line) for line in lines])
    return args


class Clock:
    """Times steps, and notes which ran beside other work: over 0.12 cores of it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.clean: list[bool] = []
        self.start()

    def start(self) -> None:
        """Begins a step."""
        self._at = time.perf_counter(), time.process_time(), _busy()

    def tick(self) -> None:
        """Ends a step, and begins the next one."""
        wall, own, busy = self._at
        self.start()
        seconds = self._at[0] - wall
        others = (self._at[2] - busy - (self._at[1] - own)) / seconds
        self.seconds.append(seconds)
        self.clean.append(others < 0.12 + 0.02 / seconds)  # /proc/stat counts in 10 ms


def _busy() -> float:
    """Seconds that all processes together have used, on all cores."""
    with open("/proc/stat") as file:
        fields = [int(x) for x in file.readline().split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def run(step: Callable[[int], float], args: argparse.Namespace, **more: Any) -> None:
    """Takes the steps of all passes and prints one line of JSON.

    Args:
      step: trains on the batch of a number and returns its loss.
      args: of `arguments`.
      more: what else the line says.
    """
    clock, losses = Clock(), []
    for number in range(args.passes * len(args.batches)):
        losses.append(step(number % len(args.batches)))
        clock.tick()
    report(clock, losses, args.batches, **more)


def report(clock: Clock, losses: list[float], batches: list[list[Row]], **more: Any) -> None:
    """Prints tokens a second of the median steps, all passes but the first, as JSON."""
    steps = range(len(batches), len(clock.seconds))
    middle = [
        float(np.median([clock.seconds[i] for i in steps if i % len(batches) == batch]))
        for batch in range(len(batches))
    ]
    line = {
        "tokens_per_second": sum(tokens_of(batch) for batch in batches) / sum(middle),
        "first_pass": sum(clock.seconds[: len(batches)]),
        "pass": sum(middle),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "clean": sum(clock.clean[i] for i in steps) / len(steps),
        "losses": losses[: len(batches)],
        **more,
    }
    print("RESULT " + json.dumps(line), flush=True)
