"""Measures what int8 and nf4 change in a trained network: memory, distributions, log-probs.

    python benchmarks/quantized.py --config=configs/demo/kto.py --workdir=runs/kto
    python benchmarks/quantized.py --presets=qwen25_1p5b,llama31_8b,llama31_70b     bytes alone

The supervised stage of the config is run, or read if it is in the workdir. Its network and the same
with quantised projections read the held-out responses: the KL from the first to the second, summed
exactly over the vocabulary, and the log-probabilities of whole responses.
"""

import argparse
import dataclasses
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax.config import load
from alignjax.data.batching import read
from alignjax.models import presets, quantized
from alignjax.models.config import QUANTIZED
from alignjax.models.logps import exact_kl
from alignjax.models.transformer import init_params
from alignjax.runtime import sharding, workdirs
from alignjax.runtime.sharding import put_rows
from alignjax.stages import pretrained, sft
from alignjax.stages.data import prepare_data
from alignjax.stages.run import Run


def sizes(names: list[str]) -> None:
    """Prints the size of published models in bfloat16, and with quantised projections."""
    print("model           bfloat16  int8  nf4   GiB")
    for name in names:
        config = dataclasses.replace(getattr(presets, name)(), param_dtype="bfloat16")
        network = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
        total = {"": 0, "int8": 0, "nf4": 0}
        for path, leaf in jax.tree_util.tree_leaves_with_path(network):
            for kind in total:
                stored = leaf
                if kind and quantized.kernel_name(sharding.path_name(path)):
                    stored = jax.eval_shape(functools.partial(quantized.encode, kind=kind), leaf)
                total[kind] += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stored))
        bf16, int8, nf4 = (x / 2**30 for x in total.values())
        print(f"{name:14}  {bf16:8.1f}  {int8:4.1f}  {nf4:4.1f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--presets", default="", help="names, with commas")
    parser.add_argument("--config", default="configs/demo/kto.py")
    parser.add_argument("--workdir", default="runs/kto")
    parser.add_argument("--prompts", type=int, default=256, help="held-out rows, at most")
    given = parser.parse_args()
    if given.presets:
        sizes(given.presets.split(","))
        return
    config = pretrained.resolve(load.load(given.config, []))
    workdir, mesh = pathlib.Path(given.workdir), sharding.make_mesh(1, 1, 1)
    with workdirs.owned(workdir):
        data = prepare_data(config, workdir)
        network = sft.run_stage(Run(config, workdir, data, mesh))()
    rows = data.held_out
    plan = rows.in_order(32)
    compare = jax.jit(functools.partial(exact_kl, config=config.model))

    print("kernels  bits  MiB   size lost  KL/token  |d logp|/token  |d logp|, 95%  largest")
    for kind in QUANTIZED[1:]:
        other = pretrained.quantize_params(network, kind, mesh)
        own, lost, used, count = 0.0, 0.0, 0, 0
        for name, leaves in other["layers"].items():
            if "kernel" in leaves:
                kernel = np.asarray(network["layers"][name]["kernel"], np.float64)
                lost += ((np.asarray(quantized.decode(leaves["kernel"])) - kernel) ** 2).sum()
                own, count = own + (kernel**2).sum(), count + kernel.size
                used += sum(x.nbytes for x in leaves["kernel"].values())
        divergence, logps, tokens = [], [], []
        for batch in read(rows.dataset, plan):
            if len(tokens) * 32 >= given.prompts:
                break
            batch = put_rows(batch, mesh)
            # along given responses: KL(network || quantised), and the quantised one's logp
            theirs, away = compare(network, other, batch)
            ours, _ = compare(network, network, batch)
            real = np.asarray(batch.response_length) > 0
            divergence.append(np.asarray(away)[real])
            logps.append(np.abs(np.asarray(theirs) - np.asarray(ours))[real])
            tokens.append(np.asarray(batch.response_length)[real])
        away, change, length = map(np.concatenate, (divergence, logps, tokens))
        print(
            f"{kind:7}  {8 * used / count:4.2f}  {used / 2**20:4.2f}  "
            f"{(lost / own) ** 0.5:9.4f}  {away.sum() / length.sum():8.2e}  "
            f"{change.sum() / length.sum():14.2e}  {np.quantile(change, 0.95):13.4f}  "
            f"{change.max():7.4f}",
            flush=True,
        )
    size = 4 * count / 2**20
    print(f"{len(length)} responses, {length.sum()} tokens; float32 kernels {size:.2f} MiB")


if __name__ == "__main__":
    main()
