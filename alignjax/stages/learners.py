"""Makes the learner of a config: a policy or a reward model, or its adapters."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from alignjax.config import Config
from alignjax.config.fields import is_marked
from alignjax.models import kernels, reward_head
from alignjax.models.logps import logps_and_squares, response_logps, token_logps
from alignjax.models.transformer import init_params
from alignjax.stages import adapters
from alignjax.training import optim
from alignjax.training.job import Learner
from alignjax.training.microbatches import Rooms
from alignjax.training.step import (
    Apply,
    Forward,
    Update,
    reward_scores,
    score,
    score_squares,
    score_tails,
    with_adapters,
)
from alignjax.types import Array, Batch, Loss, Metrics, Params, RewardLoss


def policy(
    config: Config,
    mesh: Mesh,
    steps: int,
    *,
    load_reference: Callable[[], Params],
    base: Params | None = None,
    live: bool = False,
    load_start: Callable[[], Params] | None = None,
) -> Learner:
    """Makes the policy of a config, or its adapters if the config has ``lora``.

    Args:
      config: has loss, optimizer and model.
      mesh: the devices.
      steps: number of optimizer steps, for the learning rate and every `RunSchedule`.
      load_reference: loads the reference, from which the policy starts.
      base: the reference, if it is loaded; else it is loaded if it is ``live`` or the base of
        adapters.
      live: whether every step scores the reference. One that follows is part of the state.
      load_start: loads other initial parameters, or adapters if the config has ``lora``.
    """
    if base is None and (live or config.lora is not None):
        base = load_reference()
    apply, scored = _scoring(config)
    if config.lora is None:
        return Learner(
            update=_update(config, mesh, steps, apply, scored, config.trained_loss),
            learning_rate=optim.learning_rate(config.optim, steps),
            params_shape=jax.eval_shape(partial(init_params, config.model), jax.random.key(0)),
            load_start=load_start or load_reference,
            ref_params=base if live and config.reference.follow is None else None,
        )
    assert base is not None
    forward = partial(with_adapters, forward=scored, config=config.lora, live=live)
    return Learner(
        update=_update(config, mesh, steps, apply, forward, config.trained_loss),
        learning_rate=optim.learning_rate(config.optim, steps),
        params_shape=adapters.target(config.lora, config.model, mesh),
        load_start=load_start or adapters.fresh(config, mesh, base),
        ref_params=base,
    )


def _scoring(config: Config) -> tuple[Apply, Forward]:
    """How a step scores responses: whole, or with what the loss reads besides."""
    loss = config.trained_loss
    if is_marked(loss, "reads_tail"):
        return partial(token_logps, config=config.model), score_tails
    apply = partial(response_logps, config=config.model)
    if is_marked(loss, "reads_squares"):
        of_policy = partial(logps_and_squares, config=config.model)
        return apply, partial(score_squares, of_policy=of_policy)
    return apply, score


def reward_model(
    config: Config,
    mesh: Mesh,
    steps: int,
    *,
    load_start: Callable[[], Params] | None,
    base: Params | None = None,
    names: tuple[str, ...] = (),
) -> Learner:
    """Makes the reward model of a config, or its adapters and head if the config has ``lora``.

    Args:
      config: has ``reward_loss``, optimizer and model.
      mesh, steps: as in `policy`.
      load_start: loads the initial reward model; with ``lora`` adapters and a head, None for new
        ones.
      base: the language model on the mesh, the base of adapters.
      names: of the objectives, if there are several.
    """
    objectives = max(1, len(names))
    loss = config.trained_loss
    if objectives > 1:
        loss = partial(over_objectives, reward_loss=loss, names=names)
    apply = partial(reward_head.response_scores, config=config.model)
    if config.lora is None:
        assert load_start is not None
        init = partial(reward_head.init_params, config.model, objectives=objectives)
        return Learner(
            update=_update(config, mesh, steps, apply, reward_scores, loss),
            learning_rate=optim.learning_rate(config.optim, steps),
            params_shape=jax.eval_shape(init, jax.random.key(0)),
            load_start=load_start,
        )
    assert base is not None
    forward = partial(with_adapters, forward=reward_scores, config=config.lora, live=False)
    return Learner(
        update=_update(config, mesh, steps, apply, forward, loss),
        learning_rate=optim.learning_rate(config.optim, steps),
        params_shape=adapters.target(config.lora, config.model, mesh, objectives=objectives),
        load_start=load_start or adapters.fresh(config, mesh, base, objectives=objectives),
        ref_params=base,
    )


def _update(
    config: Config,
    mesh: Mesh,
    steps: int,
    apply: Apply,
    forward: Forward,
    loss: Loss | RewardLoss,
) -> Update:
    kernel = kernels.choose(config.model, mesh.devices.flat[0].platform, mesh.shape["tensor"])
    return Update(
        apply=apply,
        loss=loss,
        optimizer=optim.make(config.optim, steps),
        forward=forward,
        select=config.select,
        baseline=config.baseline,
        rooms=Rooms(
            given=config.train.microbatch_tokens,
            whole=is_marked(config.trained_loss, "compares_rows"),
            padded=kernel != "tiles",
        ),
        steps=steps,
        follow=config.reference.follow,
    )


def over_objectives(
    scores: Array, batch: Batch, *, reward_loss: RewardLoss, names: tuple[str, ...]
) -> tuple[Array, Metrics]:
    """Averages one reward loss over M objectives, each with its own output of the head.

    Args:
      scores: ``[B, K, M]``, the reward model's.
      batch: with ``scores`` ``[B, K, M]``.
      reward_loss: a loss of ``[B, K]`` scores.
      names: of the M objectives, appended to the names of the metrics.
    """
    assert batch.scores is not None
    losses = jnp.zeros(len(scores))
    metrics: Metrics = {}
    for m, name in enumerate(names):
        one = dataclasses.replace(batch, scores=batch.scores[..., m])
        loss, one_metrics = reward_loss(scores[..., m], one)
        losses += loss / len(names)
        metrics |= {f"{key}/{name}": value for key, value in one_metrics.items()}
    return losses, metrics
