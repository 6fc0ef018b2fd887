"""Parts of recipes that train on fresh samples: the policy, its prompts, and scoring."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.config import Config, SamplingConfig
from alignjax.config.fields import is_marked, name_of, plain
from alignjax.data.batching import Batches
from alignjax.data.records import Record
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.models import reward_head
from alignjax.models.mixture import Mixture, mix
from alignjax.rewards import reward_models
from alignjax.rewards.reward_models import RewardModel
from alignjax.rewards.scorers import Scorer, mean_scores
from alignjax.runtime import distributed
from alignjax.sampling import decode
from alignjax.sampling.generate import Question
from alignjax.stages import adapters, learners
from alignjax.stages.data import Prepared
from alignjax.stages.run import Run
from alignjax.training import on_policy
from alignjax.training.job import Learner
from alignjax.training.on_policy import Prompts
from alignjax.types import Array, Batch, Params


def check_updates(config: Config, updates: int) -> None:
    """Refuses several updates per step with a loss that is only right for the current policy.

    Raises:
      UserError: the loss does not correct for samples of an older policy, or ``updates`` < 1.
    """
    if updates < 1:
        raise UserError(f"updates: wanted a positive number, found {updates}")
    loss = plain(config.trained_loss)
    if updates > 1 and not getattr(loss, "corrects_for_older", False):
        raise UserError(
            f"updates: {updates} updates per step need a loss that corrects for samples of an "
            f"older policy, such as grpo.loss_clipped; found {name_of(loss)}"
        )


def check_opponent(config: Config, sampling: SamplingConfig, opponent: float | None) -> None:
    """Checks the opponent, and that a loss that compares two policies has one.

    Raises:
      UserError: names the setting or the loss.
    """
    if opponent is None:
        if is_marked(config.trained_loss, "compares_halves"):
            raise UserError(
                f"opponent: {name_of(config.trained_loss)} compares the policy's samples with "
                "another policy's; wanted a number in [0, 1], 1 for the reference, found none"
            )
        return
    if config.reference.follow is not None:
        raise UserError(
            "opponent: wanted none with reference.follow, which moves the reference that the "
            f"opponent is a mixture with, found {opponent}"
        )
    if not 0 <= opponent <= 1:
        raise UserError(f"opponent: wanted a number in [0, 1], found {opponent}")
    if sampling.samples % 2:
        raise UserError(
            "candidates.samples: wanted an even number, half of them are the opponent's, found "
            f"{sampling.samples}"
        )


def make_policy(
    config: Config,
    mesh: Mesh,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    load_reference: Callable[[], Params],
    *,
    sampling: SamplingConfig,
    steps: int,
    max_empty_fraction: float,
    updates: int = 1,
    opponent: float | None = None,
) -> tuple[Learner, Prompts]:
    """Makes a policy that learns from its own samples; every step scores the reference.

    Args:
      config: has batch size, optimizer, buckets and adapters.
      mesh: the devices.
      questions: the prompts.
      tokenizer: the policy's.
      load_reference: loads the reference, from which the policy starts.
      sampling: how the policy responds.
      steps: of the policy, each on new samples.
      max_empty_fraction, updates: see `on_policy.Prompts`.
      opponent: weight of the reference in the mixture, by logits, that gives the second half of
        each prompt's samples; None: the policy gives all.

    Raises:
      UserError: ``sampling`` is a beam search, which is not random.
    """
    if sampling.num_beams > 1:
        raise UserError(
            "sampling.num_beams: wanted 1, because a policy learns from random samples, found "
            f"{sampling.num_beams}"
        )
    learner = learners.policy(
        config, mesh, steps * updates, load_reference=load_reference, live=True
    )
    batches = on_policy.deal_prompts(
        questions,
        buckets=config.data.buckets,
        multiple=config.data.pad_multiple,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        steps=steps,
    )
    return learner, make_prompts(
        config,
        questions,
        batches,
        tuple(tokenizer.ends),
        sampling=sampling,
        max_empty_fraction=max_empty_fraction,
        updates=updates,
        opponent=opponent,
    )


def make_prompts(
    config: Config,
    questions: Sequence[Question],
    batches: Batches,
    eos: tuple[int, ...],
    *,
    sampling: SamplingConfig,
    max_empty_fraction: float,
    updates: int = 1,
    opponent: float | None = None,
) -> Prompts:
    """Makes the prompts of each step and what responds to them; see `make_policy`."""
    if opponent is not None:
        sampling = dataclasses.replace(sampling, samples=sampling.samples // 2)
    return Prompts(
        questions=questions,
        batches=batches,
        sample=functools.partial(decode.sample, config=config.model, settings=sampling, eos=eos),
        eos=eos,
        max_empty_fraction=max_empty_fraction,
        updates=updates,
        network=lambda params, base: adapters.whole(config, base, params),
        opponent=None if opponent is None else functools.partial(_mixed, config, opponent),
    )


def _mixed(config: Config, weight: float, params: Params, base: Params | None) -> Params | Mixture:
    """Mixes the policy with the reference, whose weight is given; the reference alone at 1."""
    assert base is not None  # `make_policy` keeps the reference live
    policy, reference = adapters.whole(config, base, params), base
    if config.lora is not None:  # adapters of 0, so that both are trees of one shape
        reference = adapters.whole(config, base, jax.tree.map(jnp.zeros_like, params))
    return reference if weight == 1 else mix((policy, reference), (1 - weight, weight))


def steps_of(config: Config, questions: Sequence[Question]) -> int:
    """Counts the policy's steps: ``train.steps``, or ``train.epochs`` over the prompts."""
    train = config.train
    return train.steps or max(1, round(train.epochs * len(questions) / train.batch_size))


def by_reward_models(
    rewards: Sequence[RewardModel], tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[Batch], Array]:
    """Loads reward models onto the mesh, to score sampled ids without decoding them.

    Args:
      rewards: reward models with the policy's tokenizer.
      tokenizer: the policy's.
      mesh: the devices.

    Returns:
      A function from a batch to ``[B, K, M]`` scores: the first model's, then the second's.

    Raises:
      UserError: a reward model has another tokenizer.
    """
    functions = [_by_reward_model(reward, tokenizer, mesh) for reward in rewards]

    def score(batch: Batch) -> Array:
        scores = [function(batch) for function in functions]
        return jnp.concatenate([x.reshape(*x.shape[:2], -1) for x in scores], axis=-1)

    return score


def _by_reward_model(
    reward: RewardModel, tokenizer: Tokenizer, mesh: Mesh
) -> Callable[[Batch], Array]:
    if reward.tokenizer.digest != tokenizer.digest:
        raise UserError(
            f"{reward.path}: wanted a reward model with the policy's tokenizer "
            f"{tokenizer.digest[:12]}, found {reward.tokenizer.digest[:12]}: sampled ids are "
            "scored without decoding; train one with the policy's tokenizer (tokenizer.path)"
        )
    params = reward_models.load_params(reward, mesh)
    return functools.partial(_score_ids, params, config=reward.model)


def _score_ids(params: Params, batch: Batch, *, config: object) -> Array:
    return reward_head.score_responses(params, batch, config=config)


def score_by(
    scorers: Sequence[Scorer], run: Run, originals: Mapping[str, Record]
) -> Callable[[Batch], Array | np.ndarray]:
    """Makes the function that scores a step's samples, ``[B, K]``: the mean of several scorers.

    Reward models score the sampled ids on the devices, which hold all models at once. If one
    scorer reads text, all do, and a reward model among them is loaded at every step.

    Args:
      scorers: the scorers.
      run: has the data and devices.
      originals: the training records by id, for prompts and answers as text.
    """
    if all(scorer.only_reward_models for scorer in scorers):
        tables = [by_reward_models(x.reward_models, run.data.tokenizer, run.mesh) for x in scorers]
        return lambda batch: jnp.mean(jnp.stack([x(batch).mean(axis=-1) for x in tables]), axis=0)

    def score(records: list[Record]) -> list[np.ndarray]:
        return mean_scores(scorers, records)

    return functools.partial(score_texts, run.data, originals, score)


def score_texts(
    data: Prepared,
    originals: Mapping[str, Record],
    score: Callable[[list[Record]], list[np.ndarray]],
    batch: Batch,
) -> np.ndarray:
    """Scores a batch's samples as text.

    Args:
      data: has the training rows of the batch's prompts.
      originals: the data's records by id; a prompt without a record is scored as the network
        reads it.
      score: returns ``[K]`` for each record.
      batch: prompts and samples.

    Returns:
      ``[B, K]``, 0 in fillers.
    """
    records = []
    for number, responses in texts(batch, data.tokenizer):
        example = data.train.dataset[number]
        original = originals.get(example.id)
        records.append(
            Record(
                id=example.id,
                prompt=example.prompt if original is None else original.prompt,
                responses=tuple(responses),
                answers=example.responses if original is None else original.responses,
            )
        )
    table = np.zeros(batch.response_length.shape)
    real = np.flatnonzero(distributed.fetch(batch.weight) > 0)
    for row, scores in zip(real, score(records), strict=True):
        table[row] = scores
    return table


def texts(batch: Batch, tokenizer: Tokenizer) -> list[tuple[int, list[str]]]:
    """Decodes the samples of all rows but fillers: the prompt's number and its K responses."""
    rows, numbers, ids, lengths = distributed.fetch(
        (batch.weight, batch.prompt_id, batch.response, batch.response_length)
    )
    return [
        (
            int(numbers[i]),
            [tokenizer.decode(y[:n].tolist()) for y, n in zip(ids[i], lengths[i], strict=True)],
        )
        for i in np.flatnonzero(rows > 0)
    ]
