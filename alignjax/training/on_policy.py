"""A loop whose batch at a step is sampled from the policy as it is at that step.

Prompts, keys and whose turn it is are functions of the seed and of the number of the step; what is
sampled follows from them and from the parameters. So a run that is killed goes on bit for bit.

`fit` trains a policy on scores from elsewhere, `on_policy_game.play` both players of a game. Saves,
stops and lines are those of `loop.loop`. One program samples, one moves the policy, and in a game
one moves the reward model; each is compiled once per shape.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.data.batching import Batches, choose_shapes, deal_batches, shuffled
from alignjax.errors import UserError
from alignjax.runtime.sharding import own_rows, put_rows, row_sharding
from alignjax.sampling.generate import Question, prompts_only
from alignjax.training.compiled import compile_start, compile_step
from alignjax.training.job import Job, Learner, Turns
from alignjax.training.loop import loop
from alignjax.training.microbatches import weighted_sums
from alignjax.training.step import init_state, train_step
from alignjax.types import Array, Batch, Params, TrainState

# Folded into the run's key for samples: steps and their dropout stay below it, and adapters begin
# with the number above.
SAMPLES = np.uint32(2**32 - 2)
# (params, prompt, prompt_length, prompt_id, key) -> responses, lengths, nats
Sampler = Callable[[Params, Array, Array, Array, Array], tuple[Array, Array, Array]]
# -> [B, K], of all rows also where NumPy; rows of weight 0 count for nothing
Score = Callable[[Batch], Array | np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asking:
    """What the policy is asked, and how it responds."""

    asked: Sequence[Question]
    batches: Batches  # of the policy's steps; their rows are indices into ``asked``
    sample: Sampler  # `decode.sample` with its keywords bound
    eos: int
    max_empty_fraction: float  # stop when more of a step's responses are empty; in [0, 1)
    # (trained parameters, learner.ref_params) -> the network to sample from
    whole: Callable[[Params, Params | None], Params] = lambda params, base: params

    def prompts(self, index: int, mesh: Mesh) -> Batch:
        """The prompts of the policy's step ``index``, from 0: this process's rows, on the host."""
        rows, shape = self.batches.rows[index], self.batches.shapes[self.batches.shape[index]]
        return prompts_only(self.asked, rows[own_rows(mesh, len(rows))], shape.prompt)


def deal_prompts(
    asked: Sequence[Question],
    *,
    buckets: int,
    multiple: int,
    batch_size: int,
    seed: int,
    steps: int,
) -> Batches:
    """Deals the prompts to the policy's steps: all of them, shuffled, again and again.

    Args:
      asked: what the rows are indices into.
      buckets, multiple: shapes at most, and what their token counts are multiples of.
      batch_size: prompts per step.
      steps: of the policy.
    """
    lengths = np.array([len(q.ids) for q in asked], np.int64)
    nothing = np.ones((len(asked), 1), np.int64)
    shapes, assignment = choose_shapes(lengths, nothing, count=buckets, multiple=multiple)
    order = shuffled(len(asked), seed)
    return deal_batches(shapes, assignment, batch_size=batch_size, order=order, batches=steps)


def fit(
    job: Job,
    learner: Learner,
    asking: Asking,
    score: Score,
    key: Array,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
) -> tuple[TrainState, dict[str, int]]:
    """Trains a policy on its own samples, from the newest checkpoint if there is one.

    Args:
      job: as for `offline.fit`.
      learner: the policy.
      asking: what it is asked.
      score: of a batch with the step's samples, on the mesh.
      key, evaluate: as in `offline.fit`; samples have keys of their own.

    Returns:
      As `offline.fit`.

    Raises:
      UserError: more than ``asking.max_empty_fraction`` of a step's responses are empty; or as
        `offline.fit`.
    """
    traced: list[str] = []  # one name per program and shape
    total = len(asking.batches)
    init = functools.partial(init_state, optimizer=learner.update.optimizer, key=key)
    start, target = compile_start(init, learner.params_shape, mesh=job.mesh)
    sample = compile_sampling(job, learner, asking, key, traced)

    def policy(
        state: TrainState, ref_params: Params | None, batch: Batch, nats: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        traced.append("policy")
        state, scalars = train_step(state, ref_params, batch, learner.update)
        assert batch.scores is not None
        scores = {"scores": jnp.nan_to_num(batch.scores)}
        return state, {**sample_means(batch, asking, nats, scores), **scalars}

    step = compile_step(policy, target)

    def take(state: TrainState, prompts: Batch, done: int) -> tuple[TrainState, dict[str, Array]]:
        batch, nats = sample(state.params, prompts, done)
        batch = dataclasses.replace(batch, scores=_on_mesh(score(batch), job.mesh))
        return step(state, learner.ref_params, batch, nats)

    turns = Turns(
        total=total,
        target=target,
        start=lambda: start(learner.load_start()),
        batches=lambda begin: (asking.prompts(i, job.mesh) for i in range(begin, total)),
        take=take,
        traced=traced,
        line=lambda step: policy_line(learner, asking, step),
        watch=lambda step, values: refuse_empty(job, asking, step, values),
    )
    return loop(job, turns, None if evaluate is None else lambda state: evaluate(state.params))


def _on_mesh(scores: Array | np.ndarray, mesh: Mesh) -> Array:
    """Scores of all rows, where they come from the host: this process puts down its own."""
    if not isinstance(scores, np.ndarray):
        return scores
    placed: Array = put_rows(scores[own_rows(mesh, len(scores))].astype(np.float32), mesh)
    return placed


def compile_sampling(
    job: Job, learner: Learner, asking: Asking, key: Array, traced: list[str]
) -> Callable[[Params, Batch, int], tuple[Batch, Array]]:
    """Compiles the sampling of a step's responses, from the parameters as they then are.

    Returns:
      ``(trained parameters, prompts, steps done) -> (batch with responses, [B, K] nats of each)``.
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
        network = asking.whole(params, base)
        return asking.sample(network, prompt, prompt_length, prompt_id, at_step)

    program = jax.jit(sample, out_shardings=row_sharding(job.mesh))

    def respond(params: Params, batch: Batch, done: int) -> tuple[Batch, Array]:
        prompts = batch.prompt, batch.prompt_length, batch.prompt_id
        response, length, nats = program(params, learner.ref_params, *prompts, done)
        batch = dataclasses.replace(
            batch, response=response, response_length=length, scores=None, desirable=None
        )
        return batch, nats

    return respond


def sample_means(
    batch: Batch, asking: Asking, nats: Array, more: dict[str, Array]
) -> dict[str, Array]:
    """Averages over a step's samples.

    Args:
      batch: with the samples.
      asking: how they were sampled.
      nats: ``[B, K]`` log-probabilities of the samples when they were drawn.
      more: ``[B, K]`` values to average beside them.
    """
    length = batch.response_length
    last = jnp.take_along_axis(batch.response, jnp.maximum(length - 1, 0)[..., None], axis=2)
    values = {
        "entropy": -nats,  # its mean estimates it, in nats per response
        "response_tokens": length,
        "empty": (length == 1) & (last[..., 0] == asking.eos),
        "unfinished": last[..., 0] != asking.eos,
        **more,
    }
    means = {name: x.astype(jnp.float32).mean(axis=1) for name, x in values.items()}
    _, sums = weighted_sums(batch.weight, means, batch.weight)
    return {name: x / jnp.maximum(batch.weight.sum(), 1e-9) for name, x in sums.items()}


def policy_line(learner: Learner, asking: Asking, turns: int) -> dict[str, float]:
    """The policy's numbers in a line of the metrics, after so many of its turns."""
    rows = int((asking.batches.rows[:turns] >= 0).sum())
    rate = float(learner.learning_rate(max(turns - 1, 0)))
    return {"learning_rate": rate, "epoch": rows / len(asking.asked)}


def refuse_empty(job: Job, asking: Asking, step: int, values: dict[str, float]) -> None:
    """Ends the run when the policy has come to say nothing, before such a step is saved."""
    share = values["empty"]
    if share > asking.max_empty_fraction:
        raise UserError(
            f"{job.name}: {share:.0%} of the responses that the policy gave at step {step} are "
            f"empty, more than the {asking.max_empty_fraction:.0%} allowed; the last checkpoint "
            "holds the policy from before; raise beta or lower optim.learning_rate"
        )
