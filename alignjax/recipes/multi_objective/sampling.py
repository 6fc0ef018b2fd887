"""Samples from trained policies: answers for a preference, and responses to train on."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from alignjax.config import SamplingConfig
from alignjax.config.fields import identity
from alignjax.errors import UserError
from alignjax.models.mixture import Mixture
from alignjax.recipes.multi_objective import cost
from alignjax.recipes.multi_objective.method import Preference, Respond, Setting
from alignjax.sampling import generate
from alignjax.sampling.generate import Question, Sample
from alignjax.types import Params


def whole_network(setting: Setting, params: Params | Mixture) -> Params | Mixture:
    """Joins adapters of `training.fit` to the reference; leaves whole networks as they are."""
    from alignjax.stages import adapters

    if isinstance(params, Mixture) or "embed" in params:
        return params
    return adapters.whole(setting.run.config, setting.reference.load(), params)


def merged_network(setting: Setting, params: Params) -> Params:
    """Adds adapters into the reference's weights, which samples quicker than beside them."""
    from alignjax.models import lora

    config = setting.run.config.lora
    if config is None or "embed" in params:
        return params
    return lora.merge(setting.reference.load(), params, config)


def respond(
    setting: Setting, params: Params | Mixture, questions: Sequence[Question]
) -> list[Sample]:
    """Samples responses to prompts as ``evaluate`` says.

    Args:
      params: of a whole network, adapters of `training.fit`, or a mixture of whole networks.
    """
    sampling = setting.run.sampling(setting.run.config.evaluate, "  sampling")
    return generate.respond(sampling, whole_network(setting, params), questions)


def respond_if_trained(setting: Setting, load_policy: Callable[[Preference], Params]) -> Respond:
    """Responds with the policy of a preference, for methods that train one for each.

    Args:
      load_policy: gives the policy of one of the config's preferences.

    Returns:
      Raises a `UserError` for any other preference.
    """

    def respond_for(preference: Preference, questions: Sequence[Question]) -> list[Sample]:
        if preference not in setting.preferences:
            raise UserError(
                f"preference {preference}: no policy was trained for it; wanted one of "
                "recipe.objectives.preferences"
            )
        return respond(setting, load_policy(preference), questions)

    return respond_for


def sample_to_train(
    setting: Setting,
    name: str,
    params: Params,
    questions: Sequence[Question],
    *,
    settings: SamplingConfig,
    seed: int,
) -> list[Sample]:
    """Samples responses that a method trains on, and keeps them in ``workdir/NAME.json``.

    Args:
      name: of the file, the progress bar and the time.
      params: of a whole network, or adapters of `training.fit`.
      questions: the prompts, e.g. ``generate.take_questions(setting.run.data.train, 1000)``.
      settings: how many responses to each, and how to draw them.
      seed: folded into the run's, so that two draws for one prompt differ.

    Returns:
      ``settings.samples`` responses per prompt, in the order of ``questions``.
    """
    from alignjax.runtime import checkpoint
    from alignjax.stages.samples import draw_samples, reuse_samples

    run, network = setting.run, whole_network(setting, params)
    key = {
        "params": checkpoint.tree_digest(network),
        "settings": identity(settings),
        "seed": [run.config.train.seed, seed],
        "asked": _digest([[q.number, q.prompt] for q in questions]),
    }

    def draw(scratch: pathlib.Path) -> list[Sample]:
        draws = jax.random.fold_in(jax.random.key(run.config.train.seed), seed)
        samples, seconds = draw_samples(
            scratch,
            name.rpartition("/")[2],
            run.sampling(settings, name, draws),
            network,
            questions,
        )
        cost.note_seconds(setting, name, seconds)
        return [sample for of_prompt in samples for sample in of_prompt]

    return reuse_samples(run.workdir / f"{name}.json", key, draw)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
