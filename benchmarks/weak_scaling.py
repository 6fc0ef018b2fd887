"""Compiles a DPO step for more and more chips with constant work per chip: what do chips send?

    pip install -c requirements.txt -e ".[tpu]"
    python benchmarks/weak_scaling.py                       # no TPU is needed
    python benchmarks/weak_scaling.py --topologies=v5e:2x2,v5e:4x4 --tensor=2 --fsdp=2

A small network is compiled for every topology on two meshes: all chips in ``fsdp``; ``fsdp`` and
``tensor`` as given, the rest in ``data``. Every device of ``data`` x ``fsdp`` has ``--rows`` pairs.
Printed per chip and step: memory; FLOPs as compiled; by kind of collective, the larger of its input
and output bytes (a reduce-scatter's input), counted once per iteration of a loop; the bytes sent;
the time by published peaks.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from alignjax.config import Config, DataConfig, EvaluateConfig, MeshConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import dpo
from alignjax.models.config import ModelConfig
from alignjax.planning import programs
from alignjax.planning.chips import Machine, find_machine
from alignjax.planning.collectives import COLLECTIVES
from alignjax.planning.measure import Measurement, estimate_seconds, measure_program
from alignjax.runtime import sharding
from alignjax.training import optim

MIB = 2.0**20


def config_of(args: argparse.Namespace, mesh: MeshConfig) -> Config:
    """Makes the config of a small network; its data are never read."""
    return Config(
        data=DataConfig(
            source=sources.hh, max_prompt_tokens=args.prompt, max_response_tokens=args.response
        ),
        model=ModelConfig(
            vocab_size=args.vocabulary,
            width=args.width,
            layers=args.layers,
            heads=16,
            kv_heads=8,
            head_dim=128,
            mlp_width=2 * args.width,
            dtype="bfloat16",
            remat="full",
            logits_chunk=args.response,
        ),
        loss=functools.partial(dpo.loss, beta=0.1),
        optim=OptimConfig(schedule=optim.cosine),
        train=TrainConfig(
            steps=1000,
            batch_size=args.rows * mesh.data * mesh.fsdp * args.parts,
            microbatch_tokens=args.rows * (args.prompt + 2 * args.response),
        ),
        mesh=mesh,
        evaluate=EvaluateConfig(batch_size=mesh.data * mesh.fsdp),
    )


def measure(config: Config, on: Machine) -> Measurement:
    """Makes the step as a run does."""
    size = config.mesh
    mesh = sharding.make_mesh(size.data, size.fsdp, size.tensor, list(on.devices))
    made = programs.make(config, mesh, "step")
    return measure_program(made.function, *made.args, on=on)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topologies", default="v5e:8x8,v5e:16x16,v5p:4x4x4,v5p:8x8x8")
    parser.add_argument("--fsdp", type=int, default=16, help="of the mesh that has data, too")
    parser.add_argument("--tensor", type=int, default=4, help="of the mesh that has data, too")
    parser.add_argument("--rows", type=int, default=1, help="pairs per data x fsdp place")
    parser.add_argument(
        "--parts", type=int, default=1, help="of so many rows each that a step takes"
    )
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--response", type=int, default=128, help="tokens")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--out", default="", help="JSON file")
    args = parser.parse_args()
    found = {}
    kinds = [kind for kind in COLLECTIVES if kind != "all-to-all"]
    heads = ["HBM", "1e9 FLOPs", *kinds, "all-to-all", "entered", "sent", "ms"]
    print("MiB per chip and step\n\n| topology | data x fsdp x tensor |", " | ".join(heads), "|")
    print("|---|---|" + "---|" * len(heads))
    for topology in args.topologies.split(","):
        on = find_machine(topology)
        count = len(on.devices)
        data = count // (args.fsdp * args.tensor)
        meshes = (MeshConfig(fsdp=count), MeshConfig(data=data, fsdp=args.fsdp, tensor=args.tensor))
        for mesh in meshes:
            one = measure(config_of(args, mesh), on)
            took = estimate_seconds(one, on.chip)
            name = " x ".join(str(n) for n in dataclasses.astuple(mesh))
            sizes = [
                one.collectives.get(kind, {}).get("entered", 0.0) / MIB
                for kind in (*kinds, "all-to-all")
            ]
            cells = [f"{one.total / MIB:,.0f}", f"{one.flops / 1e9:,.0f}"]
            cells += [f"{x:,.1f}" for x in (*sizes, one.entered / MIB, one.sent / MIB)]
            cells += [f"{took['estimate'] * 1e3:.2f} to {took['at_most'] * 1e3:.2f}"]
            print(f"| {topology}, {count} | {name} |", " | ".join(cells), "|", flush=True)
            found[f"{topology} {name}"] = dataclasses.asdict(one)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
