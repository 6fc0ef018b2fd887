"""Where a config has ``lora``: a job that trains adapters, and whole networks to measure.

The base is one copy on the mesh: an argument of every step, and the reference as it is.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.errors import UserError
from alignjax.models import lora
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.models.transformer import init_params
from alignjax.runtime import checkpoint, sharding
from alignjax.stages import pretrained
from alignjax.training.loop import Job
from alignjax.training.step import with_adapters
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")


def init(config: LoraConfig, model: ModelConfig, key: Array, *, objectives: int = 0) -> Params:
    """What a run trains: fresh adapters, and a reward model's head of M outputs where M > 0."""
    base = jax.eval_shape(functools.partial(init_params, model), key)
    adapters = lora.init(config, base, key)
    if objectives:
        head = jnp.zeros((model.width, objectives), jnp.float32)
        adapters["reward"] = {"kernel": head}
    return adapters


def target(config: LoraConfig, model: ModelConfig, mesh: Mesh, *, objectives: int = 0) -> Params:
    """Shapes, dtypes and shardings of that."""
    start = functools.partial(init, config, model, objectives=objectives)
    shapes = jax.eval_shape(start, jax.random.key(0))
    return sharding.abstract(shapes, sharding.shard_tree(shapes, mesh))


def trains(
    job: Job, config: Config, base: Params, *, live: bool, objectives: int = 0
) -> tuple[Job, Callable[[], Params]]:
    """A job that trains adapters where it trained a whole network.

    Args:
      job: of the network.
      config: its ``lora`` is set.
      base: the network's frozen parameters, on the job's mesh.
      live: whether the base is scored in every step, as the reference.
      objectives: outputs of a reward model's head, which is trained too; 0: a policy.

    Returns:
      The job, and what gives the adapters it starts from.
    """
    assert config.lora is not None
    wanted = target(config.lora, config.model, job.mesh, objectives=objectives)
    network = jax.eval_shape(functools.partial(init_params, config.model), jax.random.key(0))
    trained, frozen = (sum(x.size for x in jax.tree.leaves(t)) for t in (wanted, network))
    log.info(
        "lora: %s parameters trained, %s frozen (%.2f%%) in %.1f MiB",
        *(f"{trained:,}", f"{frozen:,}", 100 * trained / frozen),
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base)) / 2**20,
    )
    forward = functools.partial(with_adapters, forward=job.forward, config=config.lora, live=live)
    start = functools.partial(init, config.lora, config.model, objectives=objectives)
    # A step's keys have numbers below 2^31, its dropout's from there on: this is nobody's.
    key = jax.random.fold_in(jax.random.key(config.train.seed), np.uint32(2**32 - 1))
    layout = jax.tree.map(lambda x: x.sharding, wanted)
    fresh = jax.jit(start, out_shardings=layout)
    job = dataclasses.replace(job, params_shape=wanted, ref_params=base, forward=forward)
    return job, lambda: fresh(key)


def whole(config: Config, base: Params | None, params: Params) -> Params:
    """The network of trained parameters: themselves, or the base with these adapters."""
    if config.lora is None:
        return params
    assert base is not None
    return lora.join(base, params, config.lora)


def base_of(
    config: LoraConfig,
    model: ModelConfig,
    seed: int,
    workdir: pathlib.Path,
    mesh: Mesh,
    *,
    sft: bool,
    digest: str,
) -> Params:
    """The base that a run's adapters were trained beside, quantised if it was.

    Args:
      config, model, seed: of the run's config.
      workdir: the run's folder.
      sft: whether the run had a supervised stage.
      digest: of the base, as the run's checkpoints tell it.

    Raises:
      UserError: what is found now is another one.
    """
    if sft:
        load = pretrained.supervised(model, workdir, mesh, config.quantize)
    else:
        load = pretrained.fresh(model, seed, mesh, config.quantize)
    base = load()
    found = checkpoint.tree_digest(base)
    if found != digest:
        where = str(pretrained.supervised_params(workdir)) if sft else model.path or "the seed"
        raise UserError(
            f"{workdir}: its adapters belong to base {digest}, {where} gives {found}: restore it"
        )
    return base
