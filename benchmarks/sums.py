"""Writes questions with answers for the command `grpo`: sums of two numbers from 2 to 24.

    python benchmarks/sums.py --out=sums.jsonl

docs/measured.md has what SmolLM2 learns from them.
"""

import argparse
import json
import pathlib
import random

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=pathlib.Path, required=True)
parser.add_argument("--size", type=int, default=300)
parser.add_argument("--seed", type=int, default=1)


def main() -> None:
    given = parser.parse_args()
    pairs = [(a, b) for a in range(2, 25) for b in range(2, 25)]
    random.Random(given.seed).shuffle(pairs)
    rows = [
        {"question": f"What is {a} + {b}? Answer with the number.", "answer": str(a + b)}
        for a, b in pairs[: given.size]
    ]
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
