"""Policies that are tables of logits, fitted with the shipped losses: everything is enumerable.

A few prompts with a few dozen responses each. A data set is how often it holds each possible row,
so a million rows cost what a thousand cost; the loss is minimised over all of them at once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignjax.testing import loss_inputs
from alignjax.types import Array, Baseline, Batch, Logps, Loss

PROMPTS, RESPONSES = SHAPE = (4, 24)  # X, n


@dataclasses.dataclass(frozen=True)
class Preferences:
    """Who prefers what. Pairs are drawn from q, and one of the two is preferred."""

    q: np.ndarray  # [X, n] what is compared
    beats: np.ndarray  # [X, n, n] probability that i is preferred to j

    @property
    def pairs(self) -> np.ndarray:
        """``[X, n, n]`` the probability of (preferred, rejected); each prompt sums to 1."""
        return 2 * self.q[:, :, None] * self.q[:, None, :] * self.beats

    @property
    def preferred(self) -> np.ndarray:
        """``[X, n]`` p+."""
        return self.pairs.sum(axis=2)

    @property
    def rejected(self) -> np.ndarray:
        """``[X, n]`` p-: p+ and p- mix to q in equal parts."""
        return self.pairs.sum(axis=1)


def preferences(*, temperature: float, cycle: float, seed: int = 0) -> Preferences:
    """Bradley-Terry on random scores where ``cycle`` is 0; with it, no such model exists.

    The log-odds that i is preferred to j are (s_i - s_j) / temperature + cycle c(k_i - k_j), with c
    = 1, -1, 0 for differences 1, 2, 0 modulo 3 of a response's kind k, as in the embedded world.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(PROMPTS, RESPONSES))
    score = rng.normal(size=(PROMPTS, RESPONSES))
    kind = np.arange(RESPONSES) % 3
    logits += np.array([1.0, 0.0, -1.0])[kind]  # unequal shares: equal ones would cancel the cycle
    turn = (kind[:, None] - kind + 1) % 3 - 1
    odds = (score[:, :, None] - score[:, None, :]) / temperature + cycle * turn
    q = np.exp(logits)
    return Preferences(q / q.sum(axis=1, keepdims=True), 1 / (1 + np.exp(-odds)))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Every row that a data set can hold, once; how often it holds each is a weight."""

    index: np.ndarray  # [B, K] responses, as places in the flattened [X, n]
    batch: Batch


def _rows(index: np.ndarray, desirable: np.ndarray | None = None) -> Rows:
    return Rows(index, loss_inputs(np.zeros(index.shape), desirable=desirable)[1])


def labelled_rows(shape: tuple[int, int] = SHAPE) -> Rows:
    """Each response once as a desirable row and once as an undesirable one, K = 1."""
    places = np.arange(shape[0] * shape[1])
    return _rows(np.tile(places, 2)[:, None], np.repeat([True, False], len(places))[:, None])


def mismatched_rows(shape: tuple[int, int] = SHAPE) -> Rows:
    """`labelled_rows`, beside each the same response to the next prompt, as `kto.select` does."""
    rows = labelled_rows(shape)
    other = (rows.index + shape[1]) % (shape[0] * shape[1])
    index = np.concatenate([rows.index, other], axis=1)
    return _rows(index, np.asarray(rows.batch.desirable))


def pair_rows() -> Rows:
    """Every (preferred, rejected), K = 2."""
    x, i, j = np.indices((PROMPTS, RESPONSES, RESPONSES)).reshape(3, -1)
    return _rows(np.stack([x * RESPONSES + i, x * RESPONSES + j], axis=1))


def labelled_weights(preferred: np.ndarray, rejected: np.ndarray, fraction: float) -> np.ndarray:
    """``[B]`` of the whole population, for `labelled_rows`: ``fraction`` of the rows are p+'s."""
    return np.concatenate([fraction * preferred.ravel(), (1 - fraction) * rejected.ravel()])


def sample(pairs: np.ndarray, size: int, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """``size`` labelled responses, as half as many pairs, for each seed.

    Returns:
      Counts over `labelled_rows` and over `pair_rows`, ``[S, B]``, of the same draws.
    """
    flat = (pairs / pairs.sum()).ravel()
    counts = np.stack(
        [np.random.default_rng((seed, size)).multinomial(size // 2, flat) for seed in range(seeds)]
    )
    table = counts.reshape(seeds, *pairs.shape)
    labelled = np.stack([table.sum(axis=3), table.sum(axis=2)], axis=1)
    return labelled.reshape(seeds, -1).astype(float), counts.astype(float)


def minimise(
    loss: Loss,
    rows: Rows,
    weight: Any,
    log_ref: np.ndarray,
    baseline: Baseline | None = None,
    *,
    steps: int = 2000,
    rate: float = 0.1,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Policies after full-batch Adam on the weighted mean of a shipped loss, from the reference on.

    Args:
      loss: an objective with its hyperparameters bound.
      rows: what the weights count.
      weight: ``[S, B]`` rows of S data sets; each is minimised by itself.
      log_ref: ``[X, n]`` nats, or ``[S, X, n]``, one reference for each data set.
      baseline: as `Config.baseline`.
      steps: of Adam; its rate falls from ``rate`` to 0 along a cosine.

    Returns:
      ``[S, X, n]`` log-probabilities, and traces: ``[S, steps]`` loss and gradient norm (logits),
      ``[S, steps, K]`` mean log-ratio.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.99)

    def one(weight: Array, log_ref: Array) -> tuple[Array, dict[str, Array]]:
        share = weight / weight.sum()
        reference = log_ref.ravel()[rows.index]

        def scored(logits: Array) -> Logps:
            policy = jax.nn.log_softmax(logits, axis=-1).ravel()[rows.index]
            length = rows.batch.response_length
            return Logps(policy=policy, reference=reference, length=length)

        def objective(logits: Array, batch: Batch) -> Array:
            return jnp.sum(share * loss(scored(logits), batch)[0])

        def step(carry: Any, count: Array) -> tuple[Any, dict[str, Array]]:
            logits, state, total = carry
            logps, batch = scored(logits), rows.batch
            if baseline is not None:
                now = jax.lax.stop_gradient(jnp.sum(share * baseline(logps, batch)))
                total = total + now
                every = jnp.ones(len(share))
                batch = batch.replace(
                    baseline=now * every, running_baseline=total / (count + 1) * every
                )
            value, gradient = jax.value_and_grad(objective)(logits, batch)
            updates, state = optimizer.update(gradient, state)
            trace = {"loss": value, "grad_norm": optax.tree.norm(gradient)}
            trace |= {"log_ratio": share @ logps.log_ratio}
            return (optax.apply_updates(logits, updates), state, total), trace

        carry = (log_ref, optimizer.init(log_ref), jnp.zeros(()))
        (logits, _, _), traces = jax.lax.scan(step, carry, jnp.arange(steps))
        return jax.nn.log_softmax(logits, axis=-1), traces

    references = np.broadcast_to(log_ref, (len(weight), *log_ref.shape[-2:]))
    found, traces = jax.jit(jax.vmap(one))(jnp.asarray(weight), jnp.asarray(references))
    return np.asarray(found), {name: np.asarray(x) for name, x in traces.items()}


def total_variation(log_policy: np.ndarray, preferred: np.ndarray) -> np.ndarray:
    """``[...]`` between policies ``[..., X, n]`` and p+, the mean over prompts."""
    return 0.5 * np.abs(np.exp(log_policy) - preferred).sum(axis=-1).mean(axis=-1)
