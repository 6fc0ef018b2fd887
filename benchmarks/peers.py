"""Compares the speed and memory of DPO steps: alignjax, torch by hand, and TRL, on the same rows.

    make bench-peers                                            # the small network, drawn rows
    make bench-peers ARGUMENTS="--model=FOLDER --pairs=pairs.jsonl"    # a model of yours as well

Each program runs by itself, one after the other, eight pairs a step, full fine-tuning in float32 on
all cores of this machine; the peers in the environment of `tests/parity/requirements.txt`. The rows
are token ids, the same for all. Tokens count the prompt once per response, as the peers compute
them, whether a program does or not. Steps are medians over passes after the first; "clean" is the
share that ran beside no other work, and a table below 100% is not to be quoted. "first pass" holds
what a program compiles and warms up. "of matmul rate" is useful products a second, attention left
out, over what XLA reaches on 2048 x 2048 float32 matrices in the same process. Losses of the first
pass are compared with TRL's where all programs begin at the same parameters, which is with a model.

fixed    prompts and responses of 64 tokens
ragged   lognormal lengths: prompt median 40, at most 256; responses median 60, at most 512
model    the pairs' own lengths, whole
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax.data import sources
from alignjax.data.encode import encode_all
from alignjax.data.records import DataReport, check
from alignjax.data.tokenizer.load import load as load_tokenizer
from alignjax.errors import UserError
from benchmarks.peers_steps import Row, draw_rows

HERE = pathlib.Path(__file__).parent
PROGRAMS = {
    "alignjax, reference kept": ("peers_ours.py",),
    "alignjax, reference kept, layers recomputed": ("peers_ours.py", "--remat=full"),
    "alignjax, reference live": ("peers_ours.py", "--live"),
    "torch by hand, packed, prompt once, reference kept": ("peers_torch.py",),
    "TRL, reference kept": ("peers_trl.py",),
    "TRL, reference live": ("peers_trl.py", "--live"),
}
# What torch is quickest with on a CPU under glibc; XLA does not mind.
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def encode_pairs(path: str, model: str) -> list[Row]:
    """Reads pairs of any form that docs/data.md lists, and encodes them for a model, whole."""
    report = DataReport()
    records = list(check(sources.auto(report, path=path), report))
    rows = encode_all(
        records,
        load_tokenizer(model, model=model),
        max_prompt_tokens=10**6,
        max_response_tokens=10**6,
        report=report,
    )
    return [
        {
            "prompt_ids": row.prompt_ids.tolist(),
            "chosen_ids": row.response_ids[0].tolist(),
            "rejected_ids": row.response_ids[1].tolist(),
        }
        for row in rows
    ]


def run_program(
    name: str, rows: pathlib.Path, more: list[str], peers: str
) -> dict[str, Any] | None:
    """Runs one program to its end, and returns what it printed; None if it failed."""
    script, *flags = PROGRAMS[name]
    ours = script == "peers_ours.py"
    done = subprocess.run(
        [sys.executable if ours else peers, str(HERE / script), str(rows), *flags, *more],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", **({} if ours else MALLOC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        print(
            f"{name} failed, exit code {done.returncode}:\n{done.stdout[-2000:]}", file=sys.stderr
        )
        return None
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def row_of(
    name: str, found: dict[str, Any], all_found: dict[str, dict[str, Any]], *, same: bool
) -> str:
    """Writes one row of a table, beside TRL's; ``same``: all programs began at one model."""
    trl = next((x for key, x in all_found.items() if key.startswith("TRL")), None)
    ratio = f"{found['tokens_per_second'] / trl['tokens_per_second']:.2f}" if trl else "-"
    apart = max(
        (abs(a - b) for a, b in zip(found["losses"], trl["losses"], strict=True)) if trl else [0.0]
    )
    cells = (
        name,
        f"{found['tokens_per_second']:,.0f}",
        ratio,
        f"{found['peak_mb']:,.0f}",
        f"{found['first_pass'] + found.get('compile_s', 0.0):.1f}",
        f"{found['pass']:.1f}",
        f"{100 * (1 - found['empty']):.0f}%" if "empty" in found else "-",
        f"{100 * found['flops'] / found['pass'] / found['rate']:.0f}%" if "rate" in found else "-",
        f"{apart:.1e}" if trl and same else "-",
        f"{100 * found['clean']:.0f}%",
    )
    return "| " + " | ".join(cells) + " |"


def compare(title: str, rows: list[Row], more: list[str], args: argparse.Namespace) -> None:
    """Runs the programs on the same rows, one after the other, and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = {}
        for name in PROGRAMS:
            if args.only in name:
                print(f"{title}: {name}", file=sys.stderr, flush=True)
                result = run_program(name, path, [*more, f"--passes={args.passes}"], args.peers)
                found |= {} if result is None else {name: result}
    print(f"\n**{title}**\n")
    print(
        "| program | tokens/s | to TRL | peak MB | first pass, s | pass, s | useful places "
        "| of matmul rate | loss to TRL | clean |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, result in found.items():
        print(row_of(name, result, found, same=bool(more)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, help="Python that has torch and TRL")
    parser.add_argument("--batches", type=int, default=8, help="of drawn rows")
    parser.add_argument("--passes", type=int, default=4, help="over the rows; the first warms up")
    parser.add_argument("--model", default="", help="folder of a model, as transformers saves it")
    parser.add_argument("--pairs", default="", help="pairs for the model, see docs/data.md")
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--tables", default="fixed,ragged", help="of drawn rows: fixed, ragged")
    args = parser.parse_args()
    if bool(args.model) != bool(args.pairs):
        parser.error("--model and --pairs go together")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    for kind in filter(None, args.tables.split(",")):
        rows = draw_rows(8 * args.batches, ragged=kind == "ragged")
        compare(kind, rows, [], args)
    if args.model:
        try:
            rows = encode_pairs(args.pairs, args.model)
        except UserError as error:
            sys.exit(f"peers: {error}")
        compare(
            f"{pathlib.Path(args.model).name}, {len(rows)} pairs",
            rows,
            [f"--model={args.model}"],
            args,
        )


if __name__ == "__main__":
    main()
