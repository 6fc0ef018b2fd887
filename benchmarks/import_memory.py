"""Measures the host memory that reading a model takes beyond its parameters.

    python benchmarks/import_memory.py --megabytes=200,400,800
    python benchmarks/import_memory.py --layers=1,2,4       Llama 3 8B with so many of its 32 layers

Random bfloat16 models of the Llama family are written to a temporary folder; a process of its own
reads each into float32 parameters (with --layers: bfloat16) on a CPU device, where the parameters
are host memory too. Peak is the largest resident size less that before reading.
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

from alignjax.models import presets
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load, tensorfile
from alignjax.models.hf.configjson import write
from alignjax.models.hf.save import write_json
from alignjax.runtime import sharding
from alignjax.stages import pretrained

MIB = 2**20


def small(megabytes: int, vocab: int) -> ModelConfig:
    """Makes the config of a model of about this many megabytes in bfloat16."""
    width, mlp = 1024, 3584
    layer = 2 * (width * width * 5 // 2 + 3 * width * mlp)
    return dataclasses.replace(
        presets.llama3_8b(),
        vocab_size=vocab,
        width=width,
        heads=8,
        kv_heads=2,
        mlp_width=mlp,
        layers=max(1, (megabytes * 10**6 - 4 * width * vocab) // layer),
    )


def make(folder: pathlib.Path, config: ModelConfig) -> None:
    """Writes a random model."""
    rng = np.random.default_rng(0)
    dtype = tensorfile.DTYPES["BF16"]
    wanted = load.wanted_tensors(pretrained.target(config, sharding.make_mesh(1, 1, 1)), config)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(dtype)

    sources = [(n, dtype, s, lambda s=s: draw(s)) for n, s in wanted.items()]  # type: ignore[misc]
    tensorfile.write(folder / "model.safetensors", sources)
    write_json(folder / "config.json", write(config))


def status(field: str) -> int:
    """Reads a line of this process's status, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def measure(folder: str, dtype: str) -> None:
    """Reads the model and prints bytes: of the parameters, and of the peak beyond them."""
    config = load.resolve(ModelConfig(path=folder, param_dtype=dtype))
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
    parser.add_argument("--layers", default="", help="layers of Llama 3 8B, in the place of sizes")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    dtype = "bfloat16" if given.layers else "float32"
    if given.measure:
        measure(given.measure, dtype)
        return
    configs = [small(int(x), given.vocab) for x in given.megabytes.split(",")]
    if given.layers:
        whole = presets.llama3_8b()
        configs = [dataclasses.replace(whole, layers=int(x)) for x in given.layers.split(",")]
    print("file MB  layers  parameters MiB  largest tensor MiB  peak beyond the parameters MiB")
    for config in configs:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            make(folder, config)
            written = (folder / "model.safetensors").stat().st_size
            largest = max(math.prod(x.shape) for x in load.find_tensors(folder).values())
            command = [sys.executable, __file__, f"--measure={name}", f"--layers={given.layers}"]
            done = subprocess.run(command, capture_output=True, check=True)
            size, extra = map(int, done.stdout.split())
            print(
                f"{written / 1e6:7.0f}  {config.layers:6}  {size / MIB:14.0f}  "
                f"{np.dtype(dtype).itemsize * largest / MIB:18.0f}  {extra / MIB:30.0f}"
            )


if __name__ == "__main__":
    main()
