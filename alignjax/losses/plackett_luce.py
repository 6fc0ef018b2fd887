"""Plackett-Luce: lists of responses ranked by a score, completely or only for the best one.

================================  =============================================
paper                             code
================================  =============================================
r = beta log pi_theta / pi_ref    ``beta * implicit(logps)``
ranking y_1 > ... > y_n           decreasing ``batch.scores``
n                                 responses that count, at most K
beta                              ``beta``
================================  =============================================

Absent responses and those without a finite score do not count.

Reference: Zou et al., HPS: Hard Preference Sampling for Human Preference Alignment, arXiv
2502.14400, Eq. 4-6; code LVLab-SMU/HPS@606b7ce. First for implicit rewards: Rafailov et al., Direct
Preference Optimization, arXiv 2305.18290, appendix A.3.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, take_responses


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to whole rankings by Plackett-Luce maximum likelihood.

    HPS Eq. 4-5, responses in the order of decreasing score::

        loss = sum_{j<n} [ log sum_{k>=j} exp(r_k) - r_j ]

    Tied responses are not compared: each is chosen from itself and the responses with strictly
    lower scores. So the loss does not depend on the order of tied responses, equals the formula if
    there are no ties, and is 0 if all are tied.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log n! where policy equals reference and nothing is tied;
      `list_metrics`.

    Raises:
      ValueError: see `ranking_scores`; or there is no reference (``reference.mode``).

    Differs from the paper: it does not define ties.
    From the authors' code: that has no ranking loss.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-9.0, -4.0]], [[-6.0, -5.0]], scores=[[0.1, 0.8]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # two responses: DPO
    0.1269
    """
    reward = beta * implicit(logps)
    return _ranking(reward, batch), list_metrics(reward, logps.policy, batch)


def reward_loss(scores: Array, batch: Batch) -> tuple[Array, Metrics]:
    """Fits a reward model to whole rankings by Plackett-Luce maximum likelihood.

    As `loss`, with the model's scores f as rewards::

        loss = sum_{j<n} [ log sum_{k>=j} exp(f_k) - f_j ]

    Args:
      scores: ``[B, K]`` the model's rewards, K >= 2, in any order; gradients flow through them.
      batch: ``scores [B, K]``, the external ones, larger is better; ties as in `loss`.

    Returns:
      ``[B]`` losses in nats; the entries of `list_metrics` that are about rewards.

    Raises:
      ValueError: see `ranking_scores`.

    Differs from the paper: it ranks implicit rewards. The first use for reward models, with pairs,
    is Ouyang et al., arXiv 2203.02155.
    From the authors' code: that trains no reward model.

    >>> from alignjax.testing import loss_inputs
    >>> _, batch = loss_inputs([[0.0, 0.0, 0.0]], scores=[[3, 2, 1]])
    >>> print(f"{reward_loss(batch.scores * 0.0, batch)[0][0]:.4f}")  # log 3!
    1.7918
    """
    return _ranking(scores, batch), list_reward_metrics(scores, batch)


def _ranking(reward: Array, batch: Batch) -> Array:
    """Computes ``[B]`` -log p, p the probability of the scores' order by rewards ``[B, K]``."""
    # [B, j, k]: response j is chosen from itself and the responses k below it.
    choice = ordered_pairs(batch) | jnp.eye(reward.shape[1], dtype=bool)
    lead = reward[:, None, :] - reward[:, :, None]
    terms = jax.nn.logsumexp(lead, axis=-1, where=choice)
    return jnp.where(ranking_scores(batch) > -jnp.inf, terms, 0.0).sum(axis=1)


def loss_top1(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to the best response of each list.

    HPS Eq. 6, y_1 the response of the largest score::

        loss = log sum_{i=1..n} exp(r_i) - r_1

    Responses tied with the best one are left out of the sum, because they are not worse.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log n where policy equals reference, 0 for a list without a response
      below the best; `list_metrics`.

    Raises:
      ValueError: see `ranking_scores`; or there is no reference (``reference.mode``).

    Differs from the paper: it does not define ties.
    From the authors' code: that has no list loss.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -7.0, -5.0]], [[-4.0, -7.0, -5.0]], scores=[[3, 2, 1]])
    >>> print(f"{loss_top1(logps, batch)[0][0]:.4f}")  # log 3
    1.0986
    """
    best, negatives = best_and_negatives(batch)
    reward = beta * implicit(logps)
    lead = reward - jnp.take_along_axis(reward, best[:, None], axis=1)
    is_best = jnp.arange(reward.shape[1]) == best[:, None]
    losses = jax.nn.logsumexp(lead, axis=1, where=negatives | is_best)
    return losses, list_metrics(reward, logps.policy, batch)


def ranking_scores(batch: Batch) -> Array:
    """Returns ``[B, K]`` scores, without gradient, -inf for responses that do not count.

    Raises:
      ValueError: there is not exactly one score per response, or K < 2.
      AssertionError: scores and responses differ in number.
    """
    if batch.scores is None:
        raise ValueError(
            "wanted `scores` to rank responses, found none: use a source that has them, or a pair "
            "loss such as dpo.loss"
        )
    if batch.scores.ndim != 2:
        raise ValueError(
            f"wanted one score per response, found {batch.scores.shape[2]} (scores [B, K, M]): "
            "combine the objectives into one score in the source"
        )
    if batch.scores.shape[1] < 2:
        raise ValueError(
            "wanted at least 2 responses per prompt to rank, found K=1: use lists or pairs, or a "
            "loss for single responses such as sft.loss"
        )
    chex.assert_equal_shape([batch.scores, batch.response_length])
    scores = jax.lax.stop_gradient(batch.scores)
    return jnp.where(batch.present & jnp.isfinite(scores), scores, -jnp.inf)


def best_and_negatives(batch: Batch) -> tuple[Array, Array]:
    """Finds the best response of every list, and its negatives: the responses with lower scores.

    Absent responses and those without a finite score are neither.

    Returns:
      ``[B]`` int32, the index of the largest score (the first one if tied; 0 for a prompt without
      responses), and ``[B, K]`` bool.

    Raises:
      ValueError: see `ranking_scores`.
    """
    scores = ranking_scores(batch)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    return best, (scores > -jnp.inf) & (scores < scores.max(axis=1, keepdims=True))


def ordered_pairs(batch: Batch) -> Array:
    """Finds ``[B, K, K]`` bool: whether response i has a strictly larger score than response j.

    Raises:
      ValueError: see `ranking_scores`.
    """
    scores = ranking_scores(batch)
    return (scores[:, None, :] > -jnp.inf) & (scores[:, None, :] < scores[:, :, None])


def log_shares(x: Array, ranked: Array) -> Array:
    """Computes ``[B, K]`` log-softmax of x over the responses that count, 0 for the others."""
    among = ranked | ~ranked.any(axis=1, keepdims=True)  # avoids a division by 0
    x = jnp.where(ranked, x, 0.0)
    return jnp.where(ranked, jax.nn.log_softmax(x, axis=1, where=among), 0.0)


def mean_over_pairs(pairs: Array, terms: Array) -> Array:
    """Computes ``[B]`` means of terms ``[B, K, K]`` over ordered pairs, 0 without pairs."""
    return jnp.where(pairs, terms, 0.0).sum(axis=(1, 2)) / jnp.maximum(pairs.sum(axis=(1, 2)), 1)


def prompt_keys(key: Array, batch: Batch) -> Array:
    """Makes a PRNG key for each row from its ``prompt_id``.

    So a draw does not depend on a row's place in the batch, the batch size or the number of
    devices.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.prompt_id)


def keep_pair(batch: Batch, pair: Array, exists: Array) -> Batch:
    """Keeps the responses ``pair [B, 2]``; a row without a pair has weight 0.

    Args:
      batch: K responses per prompt.
      pair: indices of the response to prefer and of the other one.
      exists: ``[B]`` bool, whether a row has such a pair.
    """
    kept = take_responses(batch, pair)
    return dataclasses.replace(kept, weight=jnp.where(exists, batch.weight, 0.0))


def list_metrics(reward: Array, policy: Array, batch: Batch) -> Metrics:
    """Computes `dpo.pair_metrics` of the best response and the mean of its negatives.

    Args:
      reward: ``[B, K]`` implicit rewards.
      policy: ``[B, K]`` log-probabilities under the policy, nats.
      batch: ``scores [B, K]``.

    Returns:
      `list_reward_metrics`, ``logps/chosen`` and ``logps/rejected``, each ``[B]``.
    """
    best, negatives = best_and_negatives(batch)
    pair = dpo.pair_metrics(*(_against_mean(x, best, negatives) for x in (reward, policy)))
    return pair | list_reward_metrics(reward, batch)


def list_reward_metrics(reward: Array, batch: Batch) -> Metrics:
    """Computes `dpo.reward_metrics` of the best response and the mean of its negatives.

    Returns:
      Four entries ``[B]``. ``rewards/accuracies`` is the share of the negatives whose reward is
      below the best response's; a tie is wrong.
    """
    best, negatives = best_and_negatives(batch)
    pair = _against_mean(reward, best, negatives)
    right = negatives & (reward < pair[:, :1])
    share = right.sum(axis=1) / jnp.maximum(negatives.sum(axis=1), 1)
    return dpo.reward_metrics(pair) | {"rewards/accuracies": share.astype(reward.dtype)}


def _against_mean(x: Array, best: Array, negatives: Array) -> Array:
    """Computes ``[B, 2]``: x of the best response and its mean over the negatives."""
    count = jnp.maximum(negatives.sum(axis=1), 1)
    mean = jnp.where(negatives, x, 0.0).sum(axis=1) / count
    return jnp.stack([jnp.take_along_axis(x, best[:, None], axis=1)[:, 0], mean], axis=1)
