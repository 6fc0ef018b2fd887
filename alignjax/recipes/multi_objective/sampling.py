"""Responses that methods of several objectives train on, drawn from a policy on the way."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from alignjax.config import SamplingConfig
from alignjax.config.fields import identity
from alignjax.recipes.multi_objective import cost
from alignjax.recipes.multi_objective.method import Setting
from alignjax.recipes.multi_objective.training import network
from alignjax.sampling.generate import Question, Sample
from alignjax.stages.samples import draw_samples, reuse_samples
from alignjax.types import Params


def sampled(
    setting: Setting,
    name: str,
    params: Params,
    asked: Sequence[Question],
    *,
    settings: SamplingConfig | None = None,
    seed: int = 1,
) -> list[Sample]:
    """Responses that a method trains on: drawn batch by batch, kept in ``workdir/name.json``.

    Args:
      name: of the file, the progress bar and the time.
      params: of a whole network, or adapters of `fit`.
      asked: the prompts, e.g. ``generate.questions(setting.data.train, 1000)``.
      settings: how many and how; None: as ``evaluate`` says.
      seed: folded into the run's, so that two draws for one prompt differ.

    Returns:
      ``settings.samples`` responses per prompt, in the order of ``asked``.
    """
    from alignjax.runtime import checkpoint

    config = setting.config
    settings = config.evaluate if settings is None else settings
    whole = network(setting, params)
    key = {
        "params": checkpoint.tree_digest(whole),
        "settings": identity(settings),
        "seed": [config.train.seed, seed],
        "asked": _digest([[q.number, q.prompt] for q in asked]),
    }

    def draw(scratch: pathlib.Path) -> list[Sample]:
        drawn, seconds = draw_samples(
            scratch,
            name.rpartition("/")[2],
            setting.run,
            whole,
            asked,
            settings=settings,
            key=jax.random.fold_in(jax.random.key(config.train.seed), seed),
            title=name,
        )
        cost.note_seconds(setting, name, seconds)
        return [sample for of_prompt in drawn for sample in of_prompt]

    return reuse_samples(setting.workdir / f"{name}.json", key, draw)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
