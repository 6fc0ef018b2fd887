"""Loads the networks of a multi-objective run, and samples from them: see `policies`."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from alignjax.commands import finished_run
from alignjax.commands.finished_run import Trained
from alignjax.commands.policies import AVERAGE, MIXTURE, Choice, Network, Policies
from alignjax.data.records import Prompt, extend_prompt
from alignjax.losses import rewards_in_context as ric
from alignjax.models import lora, mixture, quantized
from alignjax.models.mixture import Mixture
from alignjax.sampling import generate
from alignjax.sampling.generate import Question, Sample, Sampling
from alignjax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A finished run, the mesh, and the loader of its base."""

    run: Trained
    mesh: Mesh
    load_base: Callable[[], Params]  # loads the supervised policy, the base of adapters


def source(run: Trained, policies: Policies, mesh: Mesh) -> Source:
    """Makes the source of a finished run's networks."""
    digest = policies.identity["reference"]
    return Source(run, mesh, lambda: finished_run.load_base(run, mesh, digest))


def load(source: Source, choice: Choice) -> Params | Mixture:
    """Loads the networks to sample from.

    Adapters are merged into their base, which samples faster, unless that would decode a quantised
    base, or copy a base that the networks of a mixture share.
    """
    config = source.run.lora
    beside = choice.way == MIXTURE or (choice.way != AVERAGE and config and config.quantize)
    if not beside:
        return load_whole(source, choice)
    base = None if config is None else source.load_base()
    networks = []
    for network in choice.networks:
        params = load_trained(source, network)
        if config is not None and network.folder:
            params = lora.join(base, params, config)
        networks.append(params)
    return mixture.mix(networks, choice.weights) if choice.way == MIXTURE else networks[0]


def load_whole(source: Source, choice: Choice) -> Params:
    """Loads one network: merges adapters into their base, and averages several networks.

    Args:
      source: from `source`.
      choice: a single network, see `policies.require_single`.
    """
    config, networks = source.run.lora, []
    base = None if config is None else source.load_base()
    for network in choice.networks:
        params = load_trained(source, network)
        if config is not None and network.folder:
            params = lora.merge(base, params, config)
        networks.append(quantized.decode_params(params))
    return mixture.average(networks, choice.weights)


def load_trained(source: Source, network: Network) -> Params:
    """Loads a network, or its adapters.

    Raises:
      UserError: it has no checkpoint.
    """
    if not network.folder:
        return source.load_base()
    own, step = _placed(source, network), newest_step(source, network)
    params, _ = finished_run.restore(own, source.mesh, step, members=network.members)
    return jax.tree.map(lambda x: x[network.member], params) if network.members else params


def newest_step(source: Source, network: Network) -> int:
    """Finds the step of a network's newest checkpoint; 0 for the supervised policy.

    Raises:
      UserError: it has no checkpoint.
    """
    return finished_run.newest_step(_placed(source, network)) if network.folder else 0


def _placed(source: Source, network: Network) -> Trained:
    return dataclasses.replace(source.run, folder=source.run.root / network.folder)


def respond(
    sampling: Sampling,
    source: Source,
    choice: Choice,
    prompts: Sequence[Prompt],
    questions: Sequence[Question],
    *,
    max_prompt_tokens: int,
) -> list[Sample]:
    """Samples responses for a preference.

    Args:
      sampling: how to sample.
      source: from `source`.
      choice: from `policies.choose`.
      prompts: as read, before the chat template.
      questions: the same prompts, tokenised.
      max_prompt_tokens: limit of prompts to which scores are added.
    """
    extended = list(questions)
    if choice.scores:
        texts = [extend_prompt(prompt, ric.score_text(choice.scores)) for prompt in prompts]
        numbers = [question.number for question in questions]
        extended = generate.ask(texts, numbers, sampling.tokenizer, max_prompt_tokens)
    samples = generate.respond(sampling, load(source, choice), extended)
    count = sampling.settings.samples
    return [
        dataclasses.replace(sample, prompt=questions[i // count].prompt)
        for i, sample in enumerate(samples)
    ]
