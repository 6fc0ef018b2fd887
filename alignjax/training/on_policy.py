"""A loop whose batch at a step is sampled from the policy as it is at that step.

Prompts, keys and whose turn it is are functions of the seed and of the number of the step; what is
sampled follows from them and from the parameters. So a run that is killed goes on bit for bit.

`fit` trains a policy on scores from elsewhere, `on_policy_game.play` both players of a game. Saves,
stops and lines are those of `loop.loop`. One program samples, one moves the policy, and in a game
one moves the reward model; each is compiled once per shape.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignjax.data.batching import Batches, choose_shapes, deal_batches, shuffled
from alignjax.errors import UserError
from alignjax.runtime.sharding import abstract, own_rows, put_rows, row_sharding, shard_tree
from alignjax.sampling.generate import Question, prompts_only
from alignjax.training.loop import Job, Learner, loop
from alignjax.training.step import init_state, train_step, weighted_sums
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
      job: as for `loop.fit`.
      learner: the policy.
      asking: what it is asked.
      score: of a batch with the step's samples, on the mesh.
      key, evaluate: as in `loop.fit`; samples have keys of their own.

    Returns:
      As `loop.fit`.

    Raises:
      UserError: more than ``asking.max_empty_fraction`` of a step's responses are empty; or as
        `loop.fit`.
    """

    def start(params: Params) -> TrainState:
        return init_state(params, learner.update.optimizer, key)

    shapes = jax.eval_shape(start, learner.params_shape)
    layout = shard_tree(shapes, job.mesh)
    traced: list[str] = []  # one name per program and shape
    ask = asker(job, learner, asking, key, traced)
    total = len(asking.batches)

    def policy(
        state: TrainState, ref_params: Params | None, batch: Batch, nats: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        traced.append("policy")
        state, scalars = train_step(state, ref_params, batch, learner.update)
        assert batch.scores is not None
        return state, {
            **told(batch, asking, nats, {"scores": jnp.nan_to_num(batch.scores)}),
            **scalars,
        }

    policy_fn = jax.jit(policy, donate_argnums=0, out_shardings=(layout, None))

    def turn(state: TrainState, prompts: Batch, done: int) -> tuple[TrainState, dict[str, Array]]:
        batch, nats = ask(state.params, prompts, done)
        scores = score(batch)
        if isinstance(scores, np.ndarray):
            mine = scores[own_rows(job.mesh, len(scores))]
            scores = put_rows(mine.astype(np.float32), job.mesh)
        batch = dataclasses.replace(batch, scores=scores)
        return policy_fn(state, learner.ref_params, batch, nats)

    return loop(
        job,
        total=total,
        target=abstract(shapes, layout),
        start=lambda: jax.jit(start, out_shardings=layout, donate_argnums=0)(learner.load_start()),
        batches=lambda begin: (asking.prompts(i, job.mesh) for i in range(begin, total)),
        turn=turn,
        compiled=lambda: len(traced),
        tell=lambda step: policy_line(learner, asking, step),
        watch=lambda step, values: refuse_empty(job, asking, step, values),
        evaluate=None if evaluate is None else lambda state: evaluate(state.params),
    )


def asker(
    job: Job, learner: Learner, asking: Asking, key: Array, traced: list[str]
) -> Callable[[Params, Batch, int], tuple[Batch, Array]]:
    """Makes the sampling of a step's responses: the batch with them, ``[B, K]`` nats of each."""

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

    sample_fn = jax.jit(sample, out_shardings=row_sharding(job.mesh))

    def ask(params: Params, batch: Batch, done: int) -> tuple[Batch, Array]:
        asked = batch.prompt, batch.prompt_length, batch.prompt_id
        response, length, nats = sample_fn(params, learner.ref_params, *asked, done)
        drawn = dataclasses.replace(
            batch, response=response, response_length=length, scores=None, desirable=None
        )
        return drawn, nats

    return ask


def told(batch: Batch, asking: Asking, nats: Array, more: dict[str, Array]) -> dict[str, Array]:
    """Means over a step's samples. ``nats [B, K]``: their log-probabilities when drawn."""
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
    """What a line says of the policy after so many of its turns."""
    rows = int((asking.batches.rows[:turns] >= 0).sum())
    rate = float(learner.learning_rate(max(turns - 1, 0)))
    return {"learning_rate": rate, "epoch": rows / len(asking.asked)}


def refuse_empty(job: Job, asking: Asking, step: int, values: dict[str, float]) -> None:
    share = values["empty"]
    if share > asking.max_empty_fraction:
        raise UserError(
            f"{job.name}: {share:.0%} of the responses that the policy gave at step {step} are "
            f"empty, more than the {asking.max_empty_fraction:.0%} allowed; the last checkpoint "
            "holds the policy from before; raise beta or lower optim.learning_rate"
        )
