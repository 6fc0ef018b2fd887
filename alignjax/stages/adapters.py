"""Makes LoRA adapters for configs with ``lora``, and joins them with their base.

The mesh holds one copy of the base, which is an argument of every step and also the reference.
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
    """Initialises adapters, and a reward model's head if ``objectives`` > 0."""
    base = jax.eval_shape(functools.partial(init_params, model), key)
    adapters = lora.init(config, base, key)
    if objectives:
        head = jnp.zeros((model.width, objectives), jnp.float32)
        adapters["reward"] = {"kernel": head}
    return adapters


def target(config: LoraConfig, model: ModelConfig, mesh: Mesh, *, objectives: int = 0) -> Params:
    """Returns shapes, dtypes and shardings of the result of `init`."""
    start = functools.partial(init, config, model, objectives=objectives)
    shapes = jax.eval_shape(start, jax.random.key(0))
    return sharding.abstract(shapes, sharding.shard_tree(shapes, mesh))


def fresh(config: Config, mesh: Mesh, base: Params, *, objectives: int = 0) -> Callable[[], Params]:
    """Makes a loader of the initial adapters of a run.

    Args:
      config: its ``lora`` is set.
      mesh: the devices.
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
    # Steps fold numbers below 2^31 into the key, and dropout numbers from 2^31; this one is unused.
    key = jax.random.fold_in(jax.random.key(config.train.seed), np.uint32(2**32 - 1))
    make = jax.jit(start, out_shardings=jax.tree.map(lambda x: x.sharding, adapters))
    return lambda: make(key)


def whole(config: Config, base: Params | None, params: Params) -> Params:
    """Returns the network to run: the trained parameters, or the base with them as adapters."""
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
      config, model, seed: from the run's config; ``config`` None: it had no adapters.
      workdir: the run's folder.
      mesh: the devices.
      sft: whether the run had a supervised stage.
      digest: the base's digest in the run's checkpoints.

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
            f"{workdir}: its adapters need the base {digest}, but {where} is {actual}; "
            "restore the base"
        )
    return base
