"""The verb ``plan``: does it fit, what does a step do, how long does it take, before renting it.

The programs are those of a run (`alignjax.planning.programs`), compiled for machines that need not
be there (`alignjax.planning.compile`).
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from alignjax.config import Config, MeshConfig
from alignjax.config.load import override
from alignjax.config.validate import get
from alignjax.errors import UserError
from alignjax.evaluation import report
from alignjax.models import kernels
from alignjax.models.config import REMAT
from alignjax.planning import compile, programs, tables
from alignjax.planning.compile import Machine
from alignjax.planning.programs import PARTS
from alignjax.runtime import sharding

log = logging.getLogger("alignjax")


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
    """Compiles what a config would run on a topology, prints the plan, writes it as JSON.

    Args:
      config: of the run.
      topology: ``v5p:4x4x4`` and the like.
      mesh: ``data=1,fsdp=16,tensor=4``; empty: the config's where it fits, else the most fsdp.
      parts: programs to compile, of `PARTS`.
      responses: per prompt, in the data; 0: 2, or 1 with labels.
      price: dollars per chip and hour; 0: no dollars.
      sweep: all meshes and remat policies, ranked, instead of one.
      out: JSON file; empty: none.

    Returns:
      What the JSON holds.

    Raises:
      UserError: an unknown topology, a mesh or batch that does not divide, no libtpu.
    """
    on = compile.machine(topology)
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts: wanted some of {','.join(PARTS)}, found {part!r}")
    if not on.exact:
        report.say(
            f"{topology}: no compiler for it without one; memory, products and collectives are "
            "those of XLA's compiler for CPUs, with its attention: an estimate"
        )
        kernels.chosen(config.model, "gpu", config.mesh.tensor)
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, attention="xla")
        )
    if sweep:
        found = _sweep(config, on, responses, price)
    else:
        config = dataclasses.replace(config, mesh=_mesh(config, mesh, on))
        found = [_planned(config, on, part, responses, price) for part in parts]
        for one in found:
            tables.print_one(one, on)
        for one in [x for x in found if not x["measured"]["fits"]]:
            if one["part"] in ("step", "sample"):
                found += _until_it_fits(config, on, one["part"], responses, price)
    told = {
        "topology": topology,
        "exact": on.exact,
        "assumption": compile.ASSUMPTION,
        "plans": found,
    }
    if out:
        path = pathlib.Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_known(told), indent=2) + "\n", encoding="utf-8")
        report.say(f"numbers: {out}")
    return told


def _known(value: Any) -> Any:
    """With None in the place of what a program that does not fit leaves unknown."""
    if isinstance(value, dict):
        return {name: _known(x) for name, x in value.items()}
    if isinstance(value, list):
        return [_known(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _mesh(config: Config, text: str, on: Machine) -> MeshConfig:
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
        told = " x ".join(f"{k}={v}" for k, v in sizes.items())
        raise UserError(
            f"--mesh={text}: {told} is {math.prod(sizes.values())}, {on.topology} has "
            f"{count} devices"
        )
    return MeshConfig(**sizes)


def _meshes(config: Config, count: int) -> Iterator[MeshConfig]:
    """Meshes of so many devices that the batch and the heads divide by, the most fsdp first."""
    micro = config.train.batch_size // config.train.accumulate
    some = False
    for tensor in (1, 2, 4, 8, 16):
        for data in (1, 2, 4, 8, 16, 32):
            fsdp, rest = divmod(count, tensor * data)
            heads = config.model.heads % tensor or config.model.kv_heads % tensor
            if rest or not fsdp or micro % (data * fsdp) or heads:
                continue
            some = True
            yield MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    if not some:
        raise UserError(
            f"train.batch_size: {config.train.batch_size} / accumulate {config.train.accumulate} = "
            f"{micro} rows divide over no mesh of {count} devices; name one with --mesh, or "
            "change them"
        )


def _planned(
    config: Config, on: Machine, part: str, responses: int, price: float
) -> dict[str, Any]:
    """One program compiled, and all there is to say of it."""
    sizes = config.mesh
    sharding.check_heads(config.model, sizes.tensor)
    mesh = sharding.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, list(on.devices))
    kernel = kernels.chosen(config.model, on.devices[0].platform, sizes.tensor)
    program = programs.make(config, mesh, part, responses)
    log.info("%s: compiling %s on mesh %s", on.topology, program.name, _name(config))
    found = compile.measure(program.function, *program.args, on=on, **program.static)
    took = compile.seconds(found, on.chip)
    speeds = [program.tokens / took[x] for x in ("at_most", "estimate")]
    rates: dict[str, Any] = {
        "tokens_per_second": speeds,
        "model_flops_utilisation": program.model_flops
        / (took["estimate"] * on.chip.flops * len(on.devices)),
    }
    if price:
        hourly = price * len(on.devices)
        rates["dollars_per_million_tokens"] = [
            hourly / 3600 / speed * 1e6 for speed in reversed(speeds)
        ]
        rates["dollars_per_hour"] = hourly
    return {
        "part": part,
        "name": program.name,
        "mesh": dataclasses.asdict(config.mesh),
        "attention": kernel,
        "remat": config.model.remat,
        "batch_size": config.train.batch_size,
        "accumulate": config.train.accumulate,
        "logits_chunk": config.model.logits_chunk,
        "tokens": program.tokens,
        "model_flops": program.model_flops / len(on.devices),
        "holds": program.holds,
        "measured": dataclasses.asdict(found),
        "seconds": took,
        **rates,
    }


def _name(config: Config) -> str:
    return ",".join(f"{k}={v}" for k, v in dataclasses.asdict(config.mesh).items())


def _until_it_fits(
    config: Config, on: Machine, part: str, responses: int, price: float
) -> list[dict[str, Any]]:
    """Changes that save memory, one more at a time, until the program fits."""
    report.say("it does not fit; trying what would:")
    tried = []
    told: dict[str, str] = {}  # of every field, the last change
    for changes in _smaller(config) if part == "step" else _smaller_sampling(config):
        told |= {change.partition("=")[0]: change for change in changes}
        changed = override(config, list(told.values()))
        one = _planned(changed, on, part, responses, price)
        fits = one["measured"]["fits"]
        text = " ".join(f"--set {change}" for change in told.values())
        report.say(f"  {text}: {tables.size(one)}, {'fits' if fits else 'does not fit'}")
        tried.append(one)
        if fits:
            break
    else:
        report.say("  nothing tried fits: take a larger topology")
    return tried


def _smaller(config: Config) -> Iterator[list[str]]:
    """Overrides with which a step needs less memory, each beside those before it."""
    if config.model.remat != "full":
        yield ["model.remat=full"]
    mesh = config.mesh
    fsdp, tensor = mesh.data * mesh.fsdp, mesh.tensor
    if mesh.data > 1:
        yield ["mesh.data=1", f"mesh.fsdp={fsdp}"]
    accumulate = config.train.accumulate
    while config.train.batch_size // accumulate % (2 * fsdp) == 0:
        accumulate *= 2
        yield [f"train.accumulate={accumulate}"]
    while tensor < 8 and fsdp % 2 == 0 and config.model.kv_heads % (2 * tensor) == 0:
        fsdp, tensor = fsdp // 2, tensor * 2
        yield [f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"]
    chunk = config.model.logits_chunk
    while chunk > 16:
        chunk //= 2
        yield [f"model.logits_chunk={chunk}"]


def _smaller_sampling(config: Config) -> Iterator[list[str]]:
    """The same for sampling."""
    field = programs.sampling_of(config)
    settings = get(config, field)
    if settings.gather_weights:
        yield [f"{field}.gather_weights=False"]
    rows = settings.batch_size
    while rows % (2 * config.mesh.data * config.mesh.fsdp) == 0:
        rows //= 2
        yield [f"{field}.batch_size={rows}"]


def _sweep(config: Config, on: Machine, responses: int, price: float) -> list[dict[str, Any]]:
    """The step on every mesh and with every remat policy, the quickest that fit first."""
    found = []
    for mesh in _meshes(config, len(on.devices)):
        for remat in REMAT:
            model = dataclasses.replace(config.model, remat=remat)
            try:
                changed = dataclasses.replace(config, model=model, mesh=mesh)
                one = _planned(changed, on, "step", responses, price)
            except UserError as error:  # a dimension that the mesh does not divide
                log.info("%s: %s", mesh, error)
                continue
            found.append(one)
            told = f"{tables.size(one)}, {tables.time(one)}"
            report.say(f"  {_name(changed)} remat={remat}: {told}")
    found.sort(key=lambda x: (not x["measured"]["fits"], x["seconds"]["estimate"]))
    tables.print_ranked(found, on)
    return found
