"""Host memory that reading a model takes beyond its parameters, against one whole in memory.

    python benchmarks/import_memory.py --megabytes=200,400,800

Random bfloat16 models of the Llama family are written to a temporary folder; a process of its own
reads each into float32 parameters on a CPU device, where the parameters are host memory too. Peak
is the largest resident size less that before reading.
"""

import argparse
import dataclasses
import math
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax import sharding
from alignjax.models import presets
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load, tensorfile
from alignjax.models.hf.configjson import write
from alignjax.models.hf.save import write_json
from alignjax.recipes import pretrained

MIB = 2**20


def make(folder: pathlib.Path, megabytes: int, vocab: int) -> ModelConfig:
    """Writes a model of about this many megabytes in bfloat16."""
    width, mlp = 1024, 3584
    layer = 2 * (width * width * 5 // 2 + 3 * width * mlp)
    config = dataclasses.replace(
        presets.llama3_8b(),
        vocab_size=vocab,
        width=width,
        heads=8,
        kv_heads=2,
        mlp_width=mlp,
        layers=max(1, (megabytes * 10**6 - 4 * width * vocab) // layer),
    )
    rng = np.random.default_rng(0)
    dtype = tensorfile.DTYPES["BF16"]
    wanted = load.wanted_tensors(pretrained.target(config, sharding.make_mesh(1, 1, 1)), config)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    sources = [(n, dtype, s, lambda s=s: draw(s)) for n, s in wanted.items()]  # type: ignore[misc]
    tensorfile.write(folder / "model.safetensors", sources)
    write_json(folder / "config.json", write(config))
    return config


def status(field: str) -> int:
    """Bytes of a line of this process's status."""
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def measure(folder: str) -> None:
    """Reads the model and prints bytes: of the parameters, and of the peak beyond them."""
    config = load.resolve(ModelConfig(path=folder))
    mesh = sharding.make_mesh(1, 1, 1)
    jax.block_until_ready(jax.numpy.zeros(8))
    before = status("VmRSS")
    params = jax.block_until_ready(pretrained.load(config, mesh))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    print(size, status("VmHWM") - before - size)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", default="200,400,800", help="sizes of the files")
    parser.add_argument("--vocab", type=int, default=16384, help="rows of the embedding")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return
    print("file MB  layers  parameters MiB  largest tensor MiB  peak beyond the parameters MiB")
    for megabytes in map(int, given.megabytes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            config = make(folder, megabytes, given.vocab)
            largest = max(math.prod(x.shape) for x in load.find_tensors(folder).values())
            command = [sys.executable, __file__, f"--measure={name}"]
            done = subprocess.run(command, capture_output=True, check=True)
            size, extra = map(int, done.stdout.split())
            print(
                f"{megabytes:7}  {config.layers:6}  {size / MIB:14.0f}  {4 * largest / MIB:18.0f}  "
                f"{extra / MIB:30.0f}"
            )


if __name__ == "__main__":
    main()
