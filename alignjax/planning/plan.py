"""Runs the command ``plan``: whether a run fits a machine, its costs, and how long it takes.

It compiles the programs of a run (`planning.programs`) for any machine, also absent ones
(`planning.chips`, `planning.measure`).
"""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from alignjax.config import Config, MeshConfig
from alignjax.config.load import override
from alignjax.config.validate import get
from alignjax.errors import UserError
from alignjax.evaluation.tables import say
from alignjax.models import kernels
from alignjax.models.config import REMAT
from alignjax.planning import chips, measure, programs, resolved, tables
from alignjax.planning.chips import Machine
from alignjax.planning.programs import PARTS
from alignjax.runtime import sharding, storage

log = logging.getLogger("alignjax")

PlanPart = Callable[[Config, str], dict[str, Any]]  # a config and a part -> the plan of its program


def run(
    config: Config,
    topology: str,
    *,
    mesh: str = "",
    parts: tuple[str, ...] = ("step",),
    responses: int = 0,
    price: float = 0.0,
    sweep: bool = False,
    out: str = "",
) -> dict[str, Any]:
    """Compiles programs of a config for a topology, prints the plan, and writes it as JSON.

    Args:
      config: of the run.
      topology: such as ``v5p:4x4x4``.
      mesh: ``data=1,fsdp=16,tensor=4``; empty: the config's if it fits, otherwise the most fsdp.
      parts: programs to compile, of `PARTS`.
      responses: per prompt, in the data; 0: 2, or 1 with labels.
      price: dollars per chip and hour; 0: no dollars.
      sweep: rank all meshes and remat policies instead of planning one.
      out: JSON file; empty: none.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: the topology is unknown, the mesh does not divide the devices or the batch, or
        libtpu is missing.
    """
    on = chips.find_machine(topology)
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts: wanted some of {','.join(PARTS)}, found {part!r}")
    config = resolved.resolve(config)
    say(resolved.say_parameters(config))
    if not on.exact:
        config = _without_kernels(config, topology)
    plan_part = functools.partial(_plan_part, on=on, responses=responses, price=price)
    if sweep:
        plans = _sweep(config, on, plan_part)
    else:
        config = dataclasses.replace(config, mesh=_choose_mesh(config, mesh, on))
        plans = [plan_part(config, part) for part in parts]
        for one in plans:
            tables.print_one(one, on)
        for one in [x for x in plans if not x["measured"]["fits"]]:
            if one["part"] in ("step", "sample"):
                plans += _shrink_until_it_fits(config, one["part"], one["tokens"], plan_part)
    result = {
        "topology": topology,
        "exact": on.exact,
        "assumption": measure.ASSUMPTION,
        "plans": plans,
    }
    if out:
        path = pathlib.Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.as_json(result))
        say(f"numbers: {out}")
    return result


def _without_kernels(config: Config, topology: str) -> Config:
    """Chooses XLA's attention, because the CPU compiler has no GPU kernels."""
    say(
        f"{topology}: its compiler needs such a GPU; memory, products and collectives are an "
        "estimate by XLA's compiler for CPUs, with XLA's attention"
    )
    kernels.choose(config.model, "gpu", config.mesh.tensor)  # raises the errors of a run on GPUs
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))


def _choose_mesh(config: Config, text: str, on: Machine) -> MeshConfig:
    count = len(on.devices)
    if not text:
        if math.prod(dataclasses.astuple(config.mesh)) == count:
            return config.mesh
        return next(_meshes(config, count))
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for item in text.split(","):
        name, _, size = item.partition("=")
        if name not in sizes or not size.isdigit() or not int(size):
            raise UserError(
                f"--mesh={text}: wanted data=..,fsdp=..,tensor=.. with positive numbers, found "
                f"{item!r}"
            )
        sizes[name] = int(size)
    if math.prod(sizes.values()) != count:
        product = " x ".join(f"{k}={v}" for k, v in sizes.items())
        raise UserError(
            f"--mesh={text}: wanted the {count} devices of {on.topology}, found {product} = "
            f"{math.prod(sizes.values())}"
        )
    return MeshConfig(**sizes)


def _meshes(config: Config, count: int) -> Iterator[MeshConfig]:
    """Yields the meshes of ``count`` devices that divide batch and heads, the most fsdp first."""
    rows = config.train.batch_size
    some = False
    for tensor in (1, 2, 4, 8, 16):
        for data in (1, 2, 4, 8, 16, 32):
            fsdp, rest = divmod(count, tensor * data)
            heads = config.model.heads % tensor or config.model.kv_heads % tensor
            if rest or not fsdp or rows % (data * fsdp) or heads:
                continue
            some = True
            yield MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    if not some:
        raise UserError(
            f"train.batch_size: wanted rows that a mesh of {count} devices divides, found {rows}; "
            "give a mesh with --mesh, or change the batch size"
        )


def _plan_part(
    config: Config, part: str, *, on: Machine, responses: int, price: float
) -> dict[str, Any]:
    """Compiles the program of one part, and makes its plan."""
    sizes = config.mesh
    sharding.check_heads(config.model, sizes.tensor)
    mesh = sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, list(on.devices))
    kernel = kernels.choose(config.model, on.devices[0].platform, sizes.tensor)
    program = programs.make(config, mesh, part, responses)
    log.info("%s: compiling %s on mesh %s", on.topology, program.name, _mesh_name(config))
    measured = measure.measure_program(program.function, *program.args, on=on, **program.static)
    seconds = measure.estimate_seconds(measured, on.chip)
    return {
        "part": part,
        "name": program.name,
        "mesh": dataclasses.asdict(config.mesh),
        "attention": kernel,
        "remat": config.model.remat,
        "batch_size": config.train.batch_size,
        "parts": program.parts,
        "logits_chunk": config.model.logits_chunk,
        "tokens": program.tokens,
        "model_flops": program.model_flops / len(on.devices),
        "holds": program.holds,
        "reference": program.reference,
        "measured": dataclasses.asdict(measured),
        "seconds": seconds,
        **_rates(program, seconds, on, price),
    }


def _rates(
    program: programs.Program, seconds: dict[str, float], on: Machine, price: float
) -> dict[str, Any]:
    """Computes tokens per second, utilisation and dollars from the seconds of a call."""
    speeds = [program.tokens / seconds[x] for x in ("at_most", "estimate")]
    peak = seconds["estimate"] * on.chip.flops * len(on.devices)
    rates = {
        "tokens_per_second": speeds,
        "model_flops_utilisation": program.model_flops / peak,
    }
    if not price:
        return rates
    hourly = price * len(on.devices)
    per_million = [hourly / 3600 / speed * 1e6 for speed in reversed(speeds)]
    return {**rates, "dollars_per_million_tokens": per_million, "dollars_per_hour": hourly}


def _mesh_name(config: Config) -> str:
    return ",".join(f"{k}={v}" for k, v in dataclasses.asdict(config.mesh).items())


def _shrink_until_it_fits(
    config: Config, part: str, tokens: int, plan_part: PlanPart
) -> list[dict[str, Any]]:
    """Applies more and more changes that save memory, until the program fits."""
    say("it does not fit; trying changes that save memory:")
    plans = []
    overrides: dict[str, str] = {}  # field -> its last change
    tried = _smaller_steps(config, tokens) if part == "step" else _smaller_sampling(config)
    for changes in tried:
        overrides |= {change.partition("=")[0]: change for change in changes}
        one = plan_part(override(config, list(overrides.values())), part)
        fits = one["measured"]["fits"]
        text = " ".join(f"--set {change}" for change in overrides.values())
        say(f"  {text}: {tables.size(one)}, {'fits' if fits else 'does not fit'}")
        plans.append(one)
        if fits:
            break
    else:
        say("  none of these fits: use a larger topology")
    return plans


def _smaller_steps(config: Config, tokens: int) -> Iterator[list[str]]:
    """Yields overrides that reduce the memory of a step, each in addition to the previous ones.

    Args:
      tokens: of a step, over all devices.
    """
    if config.model.remat != "full":
        yield ["model.remat=full"]
    mesh = config.mesh
    fsdp, tensor = mesh.data * mesh.fsdp, mesh.tensor
    if mesh.data > 1:
        yield ["mesh.data=1", f"mesh.fsdp={fsdp}"]
    rows = config.train.batch_size // fsdp
    row = tokens // config.train.batch_size
    at_once = min(rows, (config.train.microbatch_tokens or rows * row) // row)
    while at_once % 2 == 0:
        at_once //= 2
        yield [f"train.microbatch_tokens={at_once * row}"]
    while tensor < 8 and fsdp % 2 == 0 and config.model.kv_heads % (2 * tensor) == 0:
        fsdp, tensor = fsdp // 2, tensor * 2
        yield [f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"]
    chunk = config.model.logits_chunk
    while chunk > 16:
        chunk //= 2
        yield [f"model.logits_chunk={chunk}"]


def _smaller_sampling(config: Config) -> Iterator[list[str]]:
    """Yields overrides that reduce the memory of sampling."""
    field = resolved.sampling_field(config)
    if field == "train":
        return  # it has the step's batch size
    settings = get(config, field)
    if settings.gather_weights:
        yield [f"{field}.gather_weights=False"]
    if resolved.is_online(config):
        return
    rows = settings.batch_size
    while rows % (2 * config.mesh.data * config.mesh.fsdp) == 0:
        rows //= 2
        yield [f"{field}.batch_size={rows}"]


def _rank(plan: dict[str, Any]) -> tuple[bool, float]:
    """Makes the sort key: fitting ones first, then by time, or by memory if time is unknown."""
    measured, seconds = plan["measured"], plan["seconds"]["estimate"]
    return not measured["fits"], measured["total"] if math.isnan(seconds) else seconds


def _sweep(config: Config, on: Machine, plan_part: PlanPart) -> list[dict[str, Any]]:
    """Plans the step on every mesh with every remat policy; the fastest fitting ones come first."""
    plans = []
    for mesh in _meshes(config, len(on.devices)):
        for remat in REMAT:
            model = dataclasses.replace(config.model, remat=remat)
            changed = dataclasses.replace(config, model=model, mesh=mesh)
            try:
                one = plan_part(changed, "step")
            except UserError as error:  # a dimension that the mesh does not divide
                log.info("%s: %s", mesh, error)
                continue
            plans.append(one)
            numbers = f"{tables.size(one)}, {tables.time(one)}"
            say(f"  {_mesh_name(changed)} remat={remat}: {numbers}")
    plans.sort(key=_rank)
    tables.print_ranked(plans, on)
    return plans
