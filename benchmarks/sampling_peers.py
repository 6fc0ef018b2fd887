"""Compares the speed of sampling with that of transformers' `generate`: one model, one machine.

    python benchmarks/sampling_peers.py --model=FOLDER --peers=.venv-parity/bin/python

31 prompts of random ids (lengths lognormal, median 40, 8 to 128), 4 samples of exactly 64 tokens
each, temperature 1, float32. Each program runs by itself, one after the other; the first call
compiles and warms up, the second has other draws. transformers runs once with all prompts in one
batch and once in batches of 8. The peak of memory is of the process, loading and compiling
included.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np

from benchmarks.sums_peers import MALLOC, run

SETTINGS = {"samples": 4, "new_tokens": 64}
PROMPTS = 31
VOCABULARY = 32_000  # ids are drawn below it: no special tokens


def draw_prompts() -> list[list[int]]:
    """Draws prompts of random ids, the same ones in every call."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.rint(rng.lognormal(np.log(40), 0.6, PROMPTS)), 8, 128).astype(int)
    return [rng.integers(10, VOCABULARY, length).tolist() for length in lengths]


def sample_here(settings: dict[str, Any]) -> None:
    """Samples with alignjax, and prints the seconds of two calls."""
    import jax

    import alignjax as aj
    from alignjax.config import SamplingConfig
    from alignjax.sampling.decode import sample

    policy, prompts = aj.load(settings["model"]), settings["prompts"]
    longest = -(-max(map(len, prompts)) // 16) * 16
    ids = np.zeros((len(prompts), longest), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[longest - len(prompt) :] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    how = SamplingConfig(
        samples=settings["samples"], max_new_tokens=settings["new_tokens"], temperature=1.0
    )
    seconds = []
    for turn in range(2):
        since = time.perf_counter()
        _, found, _ = sample(
            policy.params, ids, lengths, np.arange(len(prompts), dtype=np.int32),
            jax.random.key(turn), config=policy.config, settings=how, eos=(),
        )  # fmt: skip
        assert int(found.sum()) == len(prompts) * how.samples * how.max_new_tokens
        seconds.append(time.perf_counter() - since)
    print("RESULT " + json.dumps({"seconds": seconds}))


def row_of(name: str, text: str, peak: float) -> str:
    """Writes one row of the table."""
    (line,) = [x for x in text.splitlines() if x.startswith("RESULT ")]
    first, second = json.loads(line.removeprefix("RESULT "))["seconds"]
    tokens = PROMPTS * SETTINGS["samples"] * SETTINGS["new_tokens"]
    cells = (name, f"{tokens / first:.0f}", f"{tokens / second:.0f}", f"{peak:,.0f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="folder, as transformers saves it")
    parser.add_argument("--peers", help="Python that has torch and transformers")
    parser.add_argument("--here", action="store_true", help="only sample, with alignjax")
    args = parser.parse_args()
    settings = {**SETTINGS, "model": args.model, "prompts": draw_prompts()}
    if args.here:
        sample_here(settings)
        return
    if args.peers is None:
        parser.error("wanted --peers, a Python that has torch and transformers")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print("| program | tokens/s, first call | tokens/s after | peak MB |\n|---|---|---|---|")
    text, _, peak = run([sys.executable, __file__, f"--model={args.model}", "--here"])
    print(row_of("alignjax", text, peak), flush=True)
    for batch in (PROMPTS, 8):
        given = json.dumps({**settings, "batch": batch})
        script = str(pathlib.Path(__file__).parent / "sampling_hf.py")
        text, _, peak = run([args.peers, script, given], **MALLOC)
        print(row_of(f"transformers, batches of {batch}", text, peak), flush=True)


if __name__ == "__main__":
    main()
