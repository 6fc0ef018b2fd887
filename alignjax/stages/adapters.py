"""LoRA: adapters to train, and whole networks to evaluate, for configs with ``lora``.

The base is one copy on the mesh: an argument of every step, and the reference as it is.
"""

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
from alignjax.types import Array, Params

log = logging.getLogger("alignjax")


def init(config: LoraConfig, model: ModelConfig, key: Array, *, objectives: int = 0) -> Params:
    """Makes fresh adapters, and for a reward model its head of M > 0 outputs."""
    base = jax.eval_shape(functools.partial(init_params, model), key)
    adapters = lora.init(config, base, key)
    if objectives:
        head = jnp.zeros((model.width, objectives), jnp.float32)
        adapters["reward"] = {"kernel": head}
    return adapters


def target(config: LoraConfig, model: ModelConfig, mesh: Mesh, *, objectives: int = 0) -> Params:
    """Gives shapes, dtypes and shardings of what `init` makes."""
    start = functools.partial(init, config, model, objectives=objectives)
    shapes = jax.eval_shape(start, jax.random.key(0))
    return sharding.abstract(shapes, sharding.shard_tree(shapes, mesh))


def fresh(config: Config, mesh: Mesh, base: Params, *, objectives: int = 0) -> Callable[[], Params]:
    """Makes a function that gives the adapters of a run as they start, on the mesh.

    Args:
      config: its ``lora`` is set.
      mesh: where.
      base: the network's frozen parameters.
      objectives: outputs of a reward model's head, which is trained too; 0: a policy.
    """
    assert config.lora is not None
    adapters = target(config.lora, config.model, mesh, objectives=objectives)
    network = jax.eval_shape(functools.partial(init_params, config.model), jax.random.key(0))
    trained, frozen = (sum(x.size for x in jax.tree.leaves(t)) for t in (adapters, network))
    log.info(
        "lora: %s parameters trained, %s frozen (%.2f%%) in %.1f MiB",
        *(f"{trained:,}", f"{frozen:,}", 100 * trained / frozen),
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(base)) / 2**20,
    )
    start = functools.partial(init, config.lora, config.model, objectives=objectives)
    # Steps fold numbers below 2^31 into the key, their dropout those from 2^31 on: this is free.
    key = jax.random.fold_in(jax.random.key(config.train.seed), np.uint32(2**32 - 1))
    make = jax.jit(start, out_shardings=jax.tree.map(lambda x: x.sharding, adapters))
    return lambda: make(key)


def whole(config: Config, base: Params | None, params: Params) -> Params:
    """Returns the network of trained parameters: the parameters, or the base with adapters."""
    if config.lora is None:
        return params
    assert base is not None
    return lora.join(base, params, config.lora)


def load_base(
    config: LoraConfig | None,
    model: ModelConfig,
    seed: int,
    workdir: pathlib.Path,
    mesh: Mesh,
    *,
    sft: bool,
    digest: str,
) -> Params:
    """Loads the base of a run's adapters, quantised as in the run.

    Args:
      config, model, seed: of the run's config; None: it had no adapters.
      workdir: the run's folder.
      sft: whether the run had a supervised stage.
      digest: of the base, as the run's checkpoints tell it.

    Raises:
      UserError: the base has changed since.
    """
    quantize = config.quantize if config is not None else ""
    if sft:
        load = pretrained.supervised(model, workdir, mesh, quantize)
    else:
        load = pretrained.fresh(model, seed, mesh, quantize)
    base = load()
    actual = checkpoint.tree_digest(base)
    if actual != digest:
        where = str(pretrained.supervised_params(workdir)) if sft else model.path or "the seed"
        raise UserError(
            f"{workdir}: its adapters were trained on base {digest}, but {where} is {actual}: "
            "restore the base"
        )
    return base
