"""Samples from trained policies: responses for a preference, and responses to train on."""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from alignjax.commands import policies
from alignjax.commands.policies import Policies, Preference
from alignjax.config import SamplingConfig
from alignjax.config.fields import describe, identity
from alignjax.errors import UserError
from alignjax.recipes.multi_objective import cost
from alignjax.recipes.multi_objective.method import Setting, require
from alignjax.sampling.generate import Question, Sample
from alignjax.types import Params


def whole_network(setting: Setting, params: Params) -> Params:
    """Adds the adapters of `training.fit` to the reference; returns whole networks unchanged."""
    from alignjax.stages import adapters

    if "embed" in params:
        return params
    return adapters.whole(setting.run.config, setting.reference.load(), params)


def merged_network(setting: Setting, params: Params) -> Params:
    """Merges adapters into the reference's weights, which makes sampling faster."""
    from alignjax.models import lora

    config = setting.run.config.lora
    if config is None or "embed" in params:
        return params
    return lora.merge(setting.reference.load(), params, config)


def settings(
    setting: Setting, *, max_new_tokens: int, temperature: float, top_p: float
) -> SamplingConfig:
    """Makes the settings of responses to train on, one per prompt.

    The batch size is that of ``evaluate``; it changes no response.

    Raises:
      UserError: one is out of its range.
    """
    require(max_new_tokens > 0, "max_new_tokens", "a positive number", max_new_tokens)
    require(temperature >= 0, "temperature", "a number >= 0", temperature)
    require(0 < top_p <= 1, "top_p", "a number in (0, 1]", top_p)
    evaluate = setting.run.config.evaluate
    return SamplingConfig(
        samples=1,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        batch_size=evaluate.batch_size,
        gather_weights=evaluate.gather_weights,
    )


def respond(
    setting: Setting, trained: Policies, preference: Preference, questions: Sequence[Question]
) -> list[Sample]:
    """Samples responses to held-out prompts with the settings of ``evaluate``, for a preference.

    Raises:
      UserError: the method trains a network for each preference, but has none for this one.
    """
    from alignjax.commands import finished_run, networks

    run = setting.run
    present = [network.preference for network in trained.networks]
    if trained.way == policies.TRAINED and preference not in present:
        raise UserError(
            f"recipe.objectives.method: wanted a policy for {policies.as_flag(preference)}, found "
            f"{' '.join(map(policies.as_flag, present))}"
        )
    rows = run.data.originals.dataset
    records = [run.data.original_records[rows[question.number].id] for question in questions]
    own = finished_run.trained_in(run.workdir, describe(run.config))
    return networks.respond(
        run.sampling(run.config.evaluate, "  sampling"),
        networks.Source(own, run.mesh, setting.reference.load),
        policies.choose(trained, preference),
        [record.prompt for record in records],
        questions,
        max_prompt_tokens=run.config.data.max_prompt_tokens,
    )


def sample_to_train(
    setting: Setting,
    name: str,
    params: Params,
    questions: Sequence[Question],
    *,
    settings: SamplingConfig,
    seed: int,
) -> list[Sample]:
    """Samples responses that a method trains on, and saves them in ``workdir/NAME.json``.

    Args:
      name: of the file, the progress bar and the file of the time.
      params: of a whole network, or adapters of `training.fit`.
      questions: the prompts, e.g. ``generate.take_questions(setting.run.data.train, 1000)``.
      settings: number of responses to each, and how to sample them.
      seed: folded into the run's, so that calls with different seeds draw differently.

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
