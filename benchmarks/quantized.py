"""What int8 and nf4 change in a trained network: its memory, its distributions, its log-probs.

    python benchmarks/quantized.py --config=configs/demo/dpo.py --workdir=runs/quantized

The supervised stage of the config is run, or read if it is in the workdir. Its network and the same
with quantised projections read the held-out responses: the KL from the first to the second, summed
exactly over the vocabulary, and the log-probabilities of whole responses.
"""

import argparse
import functools
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

from alignjax import configfile, kl, sharding
from alignjax.data.batching import read
from alignjax.models import quantized
from alignjax.models.config import QUANTIZED
from alignjax.recipes import pretrained, stages, workdirs
from alignjax.recipes.prepared import prepare_data
from alignjax.sharding import put_rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/demo/dpo.py")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--prompts", type=int, default=256, help="held-out rows, at most")
    given = parser.parse_args()
    config = pretrained.resolve(configfile.load(given.config, []))
    workdir, mesh = pathlib.Path(given.workdir), sharding.make_mesh(1, 1, 1)
    with workdirs.owned(workdir):
        data = prepare_data(config, workdir)
        network = stages.supervised(config, workdir, data, mesh)()
    rows = data.held_out
    plan = rows.in_order(32)
    compare = jax.jit(functools.partial(kl.against, config=config.model))

    print("kernels  bits  MiB   size lost  KL/token  |d logp|/token  |d logp|, 95%  largest")
    for kind in QUANTIZED[1:]:
        other = pretrained._quantized(network, kind, mesh)
        own, lost, used, count, all_kernels = 0.0, 0.0, 0, 0, 0
        for name, leaves in other["layers"].items():
            if "kernel" in leaves:
                kernel = np.asarray(network["layers"][name]["kernel"], np.float64)
                lost += ((np.asarray(quantized.decode(leaves["kernel"])) - kernel) ** 2).sum()
                own, count = own + (kernel**2).sum(), count + kernel.size
                used += sum(x.nbytes for x in leaves["kernel"].values())
                all_kernels += 1
        divergence, logps, tokens = [], [], []
        for _, batch in list(zip(plan.rows, read(rows.dataset, plan), strict=True)):
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
