"""Trains a policy on its own samples, drawn from the current parameters at each step.

Prompts, keys and turns depend only on the seed and the number of the step, and samples on these and
the parameters. So a resumed run gives the same bits.

`fit` trains a policy on given scores, `on_policy_game.play` trains both players of a game; both run
in `loop.loop`. One program samples, one updates the policy, and in a game one updates the reward
model; each is compiled once per shape.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.data.batching import Batches, choose_shapes, deal_batches, shuffled
from alignjax.errors import UserError
from alignjax.models.mixture import Mixture
from alignjax.runtime.sharding import own_rows, put_rows, row_sharding
from alignjax.sampling.generate import Question, prompts_only
from alignjax.training.compiled import compile_start, compile_step
from alignjax.training.job import Job, Learner, Turns
from alignjax.training.loop import loop
from alignjax.training.microbatches import weighted_sums
from alignjax.training.step import init_state, train_step
from alignjax.types import Array, Batch, Params, TrainState

# Folded into the run's key for samples. The numbers of steps and their dropout are smaller, that of
# initial adapters is larger.
SAMPLES = np.uint32(2**32 - 2)
# (params, prompt, prompt_length, prompt_id, key) -> responses, lengths, nats
Sampler = Callable[[Params | Mixture, Array, Array, Array, Array], tuple[Array, Array, Array]]
# -> [B, K]; a NumPy array has the rows of all processes
Score = Callable[[Batch], Array | np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompts:
    """The prompts of each step of a policy, and how it responds to them."""

    questions: Sequence[Question]
    batches: Batches  # of the policy's steps; their rows are indices into ``questions``
    sample: Sampler  # `decode.sample` with its keywords bound
    eos: tuple[int, ...]
    max_empty_fraction: float  # stop when more of a step's responses are empty; in [0, 1)
    updates: int = 1  # optimizer updates on each step's samples
    # (trained parameters, learner.ref_params) -> the network to sample from
    network: Callable[[Params, Params | None], Params] = lambda params, base: params
    # the same for another policy, which gives the second half of each prompt's responses
    opponent: Callable[[Params, Params | None], Params | Mixture] | None = None

    def batch(self, index: int, mesh: Mesh) -> Batch:
        """Makes the batch of this process's prompts of the policy's step ``index``, from 0."""
        rows, shape = self.batches.rows[index], self.batches.shapes[self.batches.shape[index]]
        return prompts_only(self.questions, rows[own_rows(mesh, len(rows))], shape.prompt)


def deal_prompts(
    questions: Sequence[Question],
    *,
    buckets: int,
    multiple: int,
    batch_size: int,
    seed: int,
    steps: int,
) -> Batches:
    """Schedules the prompts of the policy's steps: all of them, reshuffled every epoch.

    Args:
      questions: the prompts; rows are indices into them.
      buckets: number of shapes at most.
      multiple: token counts of a shape are multiples of it.
      batch_size: prompts per step.
      steps: number of the policy's steps.
    """
    lengths = np.array([len(q.ids) for q in questions], np.int64)
    no_responses = np.ones((len(questions), 1), np.int64)
    shapes, assignment = choose_shapes(lengths, no_responses, count=buckets, multiple=multiple)
    order = shuffled(len(questions), seed)
    return deal_batches(shapes, assignment, batch_size=batch_size, order=order, batches=steps)


def fit(
    job: Job,
    learner: Learner,
    prompts: Prompts,
    score: Score,
    key: Array,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> tuple[TrainState, dict[str, int]]:
    """Trains a policy on its own samples, from the newest checkpoint if there is one.

    Args:
      job: as for `offline.fit`.
      learner: the policy.
      prompts: of its steps.
      score: scores the samples of a step.
      key, evaluate: as in `offline.fit`; samples have keys of their own.

    Returns:
      As `offline.fit`.

    Raises:
      UserError: more than ``prompts.max_empty_fraction`` of a step's responses are empty; or as
        `offline.fit`.
    """
    traced: list[str] = []  # one name per program and shape
    total = len(prompts.batches)
    update = learner.update
    follows = update.follow is not None
    init = functools.partial(init_state, optimizer=update.optimizer, key=key, follows=follows)
    start, target = compile_start(init, learner.params_shape, mesh=job.mesh)
    sample = compile_sampling(job, learner, prompts, key, traced)

    def policy(
        state: TrainState, ref_params: Params | None, batch: Batch, nats: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        traced.append("policy")
        if prompts.updates > 1:
            batch = dataclasses.replace(batch, drawn_logps=nats)
        state, scalars = _update(state, ref_params, batch, learner, prompts.updates)
        assert batch.scores is not None
        scores = {"scores": jnp.nan_to_num(batch.scores)}
        return state, {**sample_means(batch, prompts, nats, scores), **scalars}

    step = compile_step(policy, target)

    def take(state: TrainState, batch: Batch, done: int) -> tuple[TrainState, dict[str, Array]]:
        batch, nats = sample(state.params, batch, done)
        batch = dataclasses.replace(batch, scores=_on_mesh(score(batch), job.mesh))
        return step(state, learner.ref_params, batch, nats)

    turns = Turns(
        total=total,
        target=target,
        start=lambda: start(learner.load_start()),
        batches=lambda begin: (prompts.batch(i, job.mesh) for i in range(begin, total)),
        take=take,
        traced=traced,
        line=lambda _, step: policy_line(learner, prompts, step),
        watch=lambda step, values: refuse_empty(job, prompts, step, values),
    )
    return loop(job, turns, None if evaluate is None else lambda state: evaluate(state.params))


def _update(
    state: TrainState, ref_params: Params | None, batch: Batch, learner: Learner, updates: int
) -> tuple[TrainState, dict[str, Array]]:
    """Takes ``updates`` optimizer steps on a batch; the scalars are means over them."""
    if updates == 1:
        return train_step(state, ref_params, batch, learner.update)

    def once(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, ref_params, batch, learner.update)

    state, scalars = jax.lax.scan(once, state, length=updates)
    whole: dict[str, Callable[[Array], Array]] = {"num_tokens": jnp.sum, "skipped": jnp.max}
    return state, {name: whole.get(name, jnp.mean)(x) for name, x in scalars.items()}


def _on_mesh(scores: Array | np.ndarray, mesh: Mesh) -> Array:
    """Puts scores of all rows from the host onto the mesh, each process its own rows."""
    if not isinstance(scores, np.ndarray):
        return scores
    placed: Array = put_rows(scores[own_rows(mesh, len(scores))].astype(np.float32), mesh)
    return placed


def compile_sampling(
    job: Job, learner: Learner, prompts: Prompts, key: Array, traced: list[str]
) -> Callable[[Params, Batch, int], tuple[Batch, Array]]:
    """Compiles the sampling of a step's responses.

    Returns:
      ``(parameters, prompts, steps done) -> (batch with responses, their [B, K] nats)``.
    """
    program = sampling_program(prompts, key, job.mesh, traced)

    def respond(params: Params, batch: Batch, done: int) -> tuple[Batch, Array]:
        inputs = batch.prompt, batch.prompt_length, batch.prompt_id
        response, length, nats = program(params, learner.ref_params, *inputs, done)
        batch = dataclasses.replace(
            batch, response=response, response_length=length, scores=None, desirable=None
        )
        return batch, nats

    return respond


def sampling_program(prompts: Prompts, key: Array, mesh: Mesh, traced: list[str]) -> Any:
    """Compiles ``(parameters, base, prompts, their lengths and ids, steps done) -> responses``.

    Args:
      prompts: how they are sampled; the responses of an opponent come after the policy's.
      key: of the run.
      mesh: where.
      traced: grows by a name whenever the program is traced.
    """

    def sample(
        params: Params,
        base: Params | None,
        prompt: Array,
        prompt_length: Array,
        prompt_id: Array,
        done: Array,
    ) -> tuple[Array, Array, Array]:
        traced.append("sample")
        at_step = jax.random.fold_in(jax.random.fold_in(key, SAMPLES), done)
        inputs = prompt, prompt_length, prompt_id
        own = prompts.sample(prompts.network(params, base), *inputs, at_step)
        if prompts.opponent is None:
            return own
        other_key = jax.random.fold_in(at_step, 1)
        other = prompts.sample(prompts.opponent(params, base), *inputs, other_key)
        response, length, nats = (jnp.concatenate(x, axis=1) for x in zip(own, other, strict=True))
        return response, length, nats

    return jax.jit(sample, out_shardings=row_sharding(mesh))


def sample_means(
    batch: Batch, prompts: Prompts, nats: Array, more: dict[str, Array]
) -> dict[str, Array]:
    """Computes means over the policy's samples of a step.

    Args:
      batch: with the samples.
      prompts: how they were sampled.
      nats: ``[B, K]`` log-probabilities of the samples when they were drawn.
      more: further ``[B, K]`` values to average, by name.
    """
    own = nats.shape[1] if prompts.opponent is None else nats.shape[1] // 2
    length = batch.response_length
    last = jnp.take_along_axis(batch.response, jnp.maximum(length - 1, 0)[..., None], axis=2)
    ended = jnp.isin(last[..., 0], jnp.array(prompts.eos, jnp.int32))
    values = {
        "entropy": -nats,  # the mean estimates the entropy, nats per response
        "response_tokens": length,
        "empty": (length == 1) & ended,
        "unfinished": ~ended,
        **more,
    }
    means = {name: x[:, :own].astype(jnp.float32).mean(axis=1) for name, x in values.items()}
    _, sums = weighted_sums(batch.weight, means, batch.weight)
    return {name: x / jnp.maximum(batch.weight.sum(), 1e-9) for name, x in sums.items()}


def policy_line(learner: Learner, prompts: Prompts, turns: int) -> dict[str, float]:
    """Computes the policy's learning rate and epoch after ``turns`` of its turns, for metrics."""
    rows = int((prompts.batches.rows[:turns] >= 0).sum())
    rate = float(learner.learning_rate(max(turns * prompts.updates - 1, 0)))
    return {"learning_rate": rate, "epoch": rows / len(prompts.questions)}


def refuse_empty(job: Job, prompts: Prompts, step: int, values: dict[str, float]) -> None:
    """Stops the run if too many responses are empty, before the step is saved."""
    share = values["empty"]
    if share > prompts.max_empty_fraction:
        raise UserError(
            f"{job.name}: step {step}: wanted at most {prompts.max_empty_fraction:.0%} empty "
            f"responses of the policy, found {share:.0%}; the last checkpoint has an earlier "
            "policy; raise beta or lower optim.learning_rate"
        )
