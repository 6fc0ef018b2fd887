"""Compares GRPO steps of alignjax and of TRL's GRPOTrainer: sums, one model, the same settings.

    python benchmarks/sums_peers.py --model=FOLDER --peers=.venv-parity/bin/python

Each program runs by itself, one after the other: adapters of rank 16 on every linear layer, in
float32, 4 prompts with 8 samples of at most 24 tokens a step, no KL term, one update on each step's
samples. Seconds a step are medians after the first two steps, in which programs compile and warm
up; tokens are those that were sampled. The peak of memory is of the process, loading and compiling
included. CPU seconds are of the whole process, all threads.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
SETTINGS = {
    "prompts": 4,
    "samples": 8,
    "new_tokens": 24,
    "learning_rate": 2e-4,
    "rank": 16,
    "alpha": 32.0,
}
WARM_UP = 2  # steps
# What torch is quickest with on a CPU under glibc; XLA does not mind.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def run(command: list[str], **env: str) -> tuple[str, float, float]:
    """Runs a program; returns what it printed, its CPU seconds and its peak of memory in MB."""
    with tempfile.TemporaryFile("w+") as output:
        program = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **env},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(program.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        sys.exit(f"{' '.join(command[:4])} failed, status {status}:\n{text[-3000:]}")
    return text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def run_ours(model: str, rows: str, folder: pathlib.Path, steps: int, seed: int) -> dict[str, Any]:
    sets = {
        "train.steps": steps,
        "train.batch_size": SETTINGS["prompts"],
        "train.seed": seed,
        "train.log_every": 1,
        "candidates.samples": SETTINGS["samples"],
        "candidates.max_new_tokens": SETTINGS["new_tokens"],
        "optim.learning_rate": SETTINGS["learning_rate"],
        "lora.rank": SETTINGS["rank"],
        "lora.alpha": SETTINGS["alpha"],
        "evaluate": "none",
    }
    command = [sys.executable, "-m", "alignjax", "grpo", f"--model={model}", f"--data={rows}"]
    command += [f"--workdir={folder}", *(f"--set={name}={value}" for name, value in sets.items())]
    _, cpu, peak = run(command)
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "loss" in x]
    return {
        "seconds": [x["step_seconds"] for x in lines],
        "rewards": [x["scores"] for x in lines],
        "lengths": [x["response_tokens"] for x in lines],
        "cpu": cpu,
        "peak_mb": peak,
    }


def run_trl(
    peers: str, model: str, rows: str, folder: pathlib.Path, steps: int, seed: int, recompute: bool
) -> dict[str, Any]:
    more = dict(model=model, rows=rows, out=str(folder), steps=steps, seed=seed)
    settings = json.dumps({**SETTINGS, **more, "recompute": recompute})
    text, cpu, peak = run([peers, str(HERE / "sums_trl.py"), settings], **MALLOC)
    (line,) = [x for x in text.splitlines() if x.startswith("RESULT ")]
    return {**json.loads(line.removeprefix("RESULT ")), "cpu": cpu, "peak_mb": peak}


def row_of(name: str, found: dict[str, Any]) -> str:
    """Writes one row of the table."""
    seconds = statistics.median(found["seconds"][WARM_UP:])
    samples = SETTINGS["prompts"] * SETTINGS["samples"]
    tokens = samples * statistics.mean(found["lengths"][WARM_UP:])
    cells = (
        name,
        f"{seconds:.2f}",
        f"{tokens / seconds:.0f}",
        f"{1e3 * seconds / tokens:.1f}",
        f"{found['peak_mb']:,.0f}",
        f"{found['cpu']:.0f}",
        f"{statistics.mean(found['rewards'][:WARM_UP]):.2f} to "
        f"{statistics.mean(found['rewards'][-WARM_UP:]):.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder, as transformers saves it")
    parser.add_argument("--peers", required=True, help="Python that has torch and TRL")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {os.cpu_count()} cores, {args.steps} steps")
    print("| program | s a step | tokens/s | ms a token | peak MB | CPU s, whole | mean reward |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        rows = str(folder / "sums.jsonl")
        run([sys.executable, str(HERE / "sums.py"), f"--out={rows}"])
        ours = run_ours(args.model, rows, folder / "ours", args.steps, args.seed)
        print(row_of("alignjax", ours), flush=True)
        for name, recompute in (("TRL", False), ("TRL, layers recomputed", True)):
            found = run_trl(
                args.peers, args.model, rows, folder / name, args.steps, args.seed, recompute
            )
            print(row_of(name, found), flush=True)


if __name__ == "__main__":
    main()
