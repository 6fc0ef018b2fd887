"""Chooses the model's shape, the reference and the sampling for a plan, as a run does.

What depends on the data is assumed to be the worst case.
"""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from alignjax import recipes
from alignjax.config import Config, SamplingConfig
from alignjax.config.fields import keywords, plain
from alignjax.config.validate import get
from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import configjson
from alignjax.models.transformer import init_params
from alignjax.stages import pretrained
from alignjax.stages.reference import Choice, choose

log = logging.getLogger("alignjax")

MANY = 10**6  # assumed number of rows, where it does not matter


def resolve(config: Config) -> Config:
    """Fills in the shape of the model in ``model.path``, as a run does.

    Raises:
      UserError: the model is not on this machine, and the config has no shape; or as
        `pretrained.resolve`.
    """
    path = config.model.path
    if not path or pathlib.Path(path).exists():
        return pretrained.resolve(config, runs=False)
    if configjson.shape_fields(config.model) == configjson.shape_fields(ModelConfig()):
        raise UserError(
            f"model.path: wanted the model's folder or GGUF file, or its shape in fields such as "
            f"model.layers, found neither: {path} does not exist"
        )
    log.warning("model.path: %s does not exist; the model's shape is the config's", path)
    return config


def say_parameters(config: Config) -> str:
    """Describes the number of the model's parameters, and the source of its shape."""
    init = functools.partial(init_params, config.model)
    leaves = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    path = config.model.path
    exists = bool(path) and pathlib.Path(path).exists()
    source = f"the shape is that of {path}" if exists else "the shape is the config's"
    return f"model: {_millions(count)} parameters ({count:,}; {source})"


def _millions(count: int) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{name}"
    return str(count)


def choose_reference(config: Config, *, responses: int, scored: int, cacheable: bool) -> Choice:
    """Chooses how steps score the reference, as a run without a table on disk does.

    With ``train.epochs`` the choice does not depend on the number of rows. With ``train.steps`` it
    does, and the number is unknown; then the plan has steps that score the reference, which need
    more memory.

    Args:
      config: of the run.
      responses: K, responses per row of the data.
      scored: K', responses per row that a step scores.
      cacheable: see `stages.reference.choose`.
    """
    train = config.train
    pick = functools.partial(
        choose, config.reference.mode, responses=responses, scored=scored, cacheable=cacheable
    )
    trained = train.steps * train.batch_size or round(train.epochs * MANY)
    choice = pick(rows=MANY, trained_rows=trained, cached=False)
    if config.reference.mode != "auto" or not cacheable:
        return dataclasses.replace(choice, reason=choice.reason.partition(" (")[0])
    if train.steps:
        most = trained * scored // responses
        return Choice("live", f"depends on the data: precomputed for at most {most:,} rows")
    passes = (
        f"forward passes per row: {responses} to precompute, {train.epochs * scored:g} on the fly"
    )
    return dataclasses.replace(choice, reason=passes)


def is_online(config: Config) -> bool:
    """Whether each step samples its responses: those of `recipes.train_online`."""
    return config.recipe is not None and plain(config.recipe) is recipes.train_online


def sampling_field(config: Config) -> str:
    """Names the field of a run's sampling settings: of training if it samples, or evaluation."""
    if config.candidates is not None:
        return "candidates"
    if "samples" in _sampled_by(config):
        return "train"  # its batch_size is the number of prompts
    return "evaluate" if get(config, "recipe.game") is None else "recipe.game.sampling"


def sampling_settings(config: Config) -> SamplingConfig:
    """Returns a run's sampling settings: of training if it samples, or evaluation."""
    field, own = sampling_field(config), _sampled_by(config)
    if not own:
        settings: SamplingConfig = get(config, field)
        rows = config.train.batch_size if is_online(config) else settings.batch_size
        return dataclasses.replace(settings, batch_size=rows)
    drawn = {name: own[name] for name in ("temperature", "top_p") if name in own}
    return SamplingConfig(
        samples=own.get("samples", 1),
        max_new_tokens=own["max_new_tokens"],
        batch_size=get(config, field).batch_size,
        gather_weights=config.evaluate.gather_weights,
        **drawn,
    )


def _sampled_by(config: Config) -> dict[str, Any]:
    """Returns the settings of a method for several objectives that samples to train, or none."""
    several = get(config, "recipe.objectives")
    own = {} if several is None else _values(several.method)
    if "expert" in own:  # of soups and MOD
        own = _values(own["expert"])
    return own if "max_new_tokens" in own else {}


def _values(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: x.default for name, x in keywords(function).items()}  # bound values too
