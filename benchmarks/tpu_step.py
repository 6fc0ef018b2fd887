"""Compiles a DPO step for a TPU pod, without TPUs: ours with both kernels, and a plain one.

    pip install -c requirements.txt -e ".[tpu]"
    python benchmarks/tpu_step.py                                   # Llama-3-8B on 64 v5p chips
    python benchmarks/tpu_step.py --topology=v5e:2x2 --fsdp=2 --tensor=2 --pairs=4 --layers=2

Per chip: memory (arguments + temporary + output - what the output reuses), FLOPs of matrix products
as compiled, and the results of collectives in one step, loops counted by how often they turn
(`planning.hlo`). A reduce-scatter's result is its part; "reduced whole" counts what goes into it.
Parameters and optimizer state are float32, products bfloat16; layers but for keys and values (and
what splash ends with) are recomputed in the backward pass; the reference's log-probabilities are
cached. "splash" is what a run takes on TPUs, "xla" the same step with XLA's attention, "plain" the
same with `tests/oracles/plain.py` too: the prompt in front of every response, logits in full.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax

from alignjax.config import Config, DataConfig, MeshConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import dpo
from alignjax.models import presets
from alignjax.planning import programs
from alignjax.planning.chips import GIB, Machine, find_machine
from alignjax.planning.collectives import COLLECTIVES
from alignjax.planning.measure import Measurement, measure_program
from alignjax.runtime import sharding
from alignjax.training import offline, optim
from tests.oracles.plain import plain_logps

STEPS = ("splash", "xla", "plain")


def config_of(args: argparse.Namespace) -> Config:
    """Makes the config whose step is compiled; its data are never read."""
    model = dataclasses.replace(
        presets.llama3_8b(),
        dtype="bfloat16",
        remat=args.remat,
        logits_chunk=args.chunk,
    )
    if args.layers:
        model = dataclasses.replace(model, layers=args.layers)
    return Config(
        data=DataConfig(
            source=sources.hh, max_prompt_tokens=args.prompt, max_response_tokens=args.response
        ),
        model=model,
        loss=functools.partial(dpo.loss, beta=0.1),
        optim=OptimConfig(schedule=optim.cosine),
        train=TrainConfig(steps=1000, batch_size=args.pairs),
        mesh=MeshConfig(fsdp=args.fsdp, tensor=args.tensor),
    )


def measure(config: Config, on: Machine, name: str) -> Measurement:
    """Compiles and measures one of `STEPS`."""
    plain, size = name == "plain", config.mesh
    model = dataclasses.replace(config.model, attention="xla" if plain else name)
    config = dataclasses.replace(config, model=model)
    mesh = sharding.make_mesh(size.data, size.fsdp, size.tensor, list(on.devices))
    made = programs.make_learner(config, mesh, "step")
    of, learner, batch = made.config, made.learner, made.batch
    if plain:
        apply = functools.partial(plain_logps, config=of.model)
        update = dataclasses.replace(learner.update, apply=apply)
        learner = dataclasses.replace(learner, update=update)
    _, state, step = offline.make_step(learner, mesh, jax.random.key(0))
    return measure_program(step, state, learner.ref_params, batch, on=on)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5p:4x4x4")
    parser.add_argument("--fsdp", type=int, default=16)
    parser.add_argument("--tensor", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--response", type=int, default=512, help="tokens")
    parser.add_argument("--remat", default="kv")
    parser.add_argument("--chunk", type=int, default=128, help="positions projected at a time")
    parser.add_argument("--layers", type=int, default=0, help="0: all 32")
    parser.add_argument("--only", default="", choices=("", *STEPS), help="one of the steps")
    parser.add_argument("--out", default="", help="JSON file")
    args = parser.parse_args()
    config, on = config_of(args), find_machine(args.topology)
    found = {name: measure(config, on, name) for name in ([args.only] if args.only else STEPS)}
    print(
        f"{args.topology}, fsdp {args.fsdp} x tensor {args.tensor}; {args.pairs} pairs, prompt "
        f"{args.prompt}, responses {args.response}; jax {jax.__version__}, libtpu "
        f"{importlib.metadata.version('libtpu')}\n"
    )
    print(f"{'per chip and step':<34}" + "".join(f"{name:>12}" for name in found))
    lines = {
        "memory, GiB": [x.total / GIB for x in found.values()],
        "  arguments": [x.arguments / GIB for x in found.values()],
        "  temporary": [x.temporary / GIB for x in found.values()],
        "matrix products, 1e13 FLOPs": [x.flops / 1e13 for x in found.values()],
        "HBM traffic, GiB": [x.moved / GIB for x in found.values()],
        "results of collectives, GiB": [x.results / GIB for x in found.values()],
    }
    for kind in COLLECTIVES:
        sizes = [x.collectives.get(kind, {}).get("bytes", 0) / GIB for x in found.values()]
        if any(sizes):
            lines[f"  {kind}"] = sizes
    lines["reduced whole, GiB"] = [x.entered / GIB for x in found.values()]
    lines["sent, GiB"] = [x.sent / GIB for x in found.values()]
    lines["compiled in, s"] = [x.compile_seconds for x in found.values()]
    for name, numbers in lines.items():
        print(f"{name:<34}" + "".join(f"{x:>12,.2f}" for x in numbers))
    if args.out:
        told = {name: dataclasses.asdict(x) for name, x in found.items()}
        pathlib.Path(args.out).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
