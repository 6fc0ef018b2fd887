"""Bradley-Terry: pairs selected from a scored list, or all ordered pairs of a list at once.

================================  ==========================================================
paper                             code
================================  ==========================================================
r_theta(x, y)                     ``scores`` of a reward model, or ``beta * implicit(logps)``
y_w, y_l                          the response of the larger external score, the other one
D_x, K choose 2 comparisons       `plackett_luce.ordered_pairs`: different scores only
================================  ==========================================================

`select` and `select_random` keep one pair, for any pair loss; then two responses are scored instead
of n. `loss` and `reward_loss` compare all responses with each other.

Reference: Ouyang et al., Training language models to follow instructions with human feedback,
arXiv 2203.02155, section 3.5 (no code published). The pair of best and worst is the "BT" baseline
of Zou et al., HPS, arXiv 2502.14400.
"""

import dataclasses

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import (
    best_and_negatives,
    keep_pair,
    list_metrics,
    list_reward_metrics,
    mean_over_pairs,
    ordered_pairs,
    prompt_keys,
    ranking_scores,
)
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to all comparisons in a list.

    Eq. 1 over implicit rewards r, P the ordered pairs of the list::

        loss = -(1/|P|) sum_{(w, l) in P} log sigma(r_w - r_l)

    Responses of equal score are not compared. Two responses give `dpo.loss`.

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order; without scores index 0 is chosen.
      batch: ``scores [B, K]``, larger is better; or none, with K = 2.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference, 0 for a list of ties;
      `plackett_luce.list_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there are no scores and K is not 2; or
        there is no reference (``reference.mode``).

    Differs from the paper: it trains a reward model, see `reward_loss`.
    From the authors' code: none is published.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-9.0, -4.0]], [[-6.0, -5.0]], scores=[[0.1, 0.8]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")
    0.1269
    """
    reward = beta * implicit(logps)
    batch = with_scores(batch, "bradley_terry.loss")
    return _comparisons(reward, batch), list_metrics(reward, logps.policy, batch)


def reward_loss(
    scores: Array,
    batch: Batch,
    *,
    margin: float = 0.0,
    score_margin: float = 0.0,
    center_weight: float = 0.0,
) -> tuple[Array, Metrics]:
    """Fits a reward model to all comparisons in a list.

    Eq. 1, P the ordered pairs of the list and s their external scores, with a margin and a term
    that centres each pair's rewards at 0::

        loss = (1/|P|) sum_{(w, l) in P} -log sigma(r_w - r_l - m_wl) + c (r_w + r_l)^2
        m_wl = m + d (s_w - s_l)

    Responses of equal external score are not compared. An absent response, or one whose external
    score is not finite, is in no pair.

    Args:
      scores: ``[B, K]`` the model's rewards, K >= 2; gradients flow through them.
      batch: ``scores [B, K]``, the external ones, larger is better; without them K is 2, index 0
        chosen and index 1 rejected.
      margin: m, in log-odds; >= 0.
      score_margin: d, log-odds of margin per unit of score; >= 0. For Llama 2's margin (arXiv
        2307.09288, Eq. 2), the chosen response's score is how clearly it was preferred, the
        rejected one's is 0.
      center_weight: c, TRL's ``center_rewards_coefficient``; >= 0 (Eisenstein et al., arXiv
        2312.09244; TRL's documentation recommends their 0.01). With 0, rewards are determined only
        up to a constant.

    Returns:
      ``[B]`` losses in nats, log 2 where all rewards are 0 and m and d are 0, 0 for a list without
      a comparison; `plackett_luce.list_reward_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there are no scores and K is not 2.

    Differs from the paper: m = d = c = 0 is Eq. 1 for lists without ties; with ties the mean is
    over the remaining pairs.
    From the authors' code: none is published.

    >>> from alignjax.testing import loss_inputs
    >>> import jax.numpy as jnp
    >>> _, batch = loss_inputs([[0.0, 0.0]])  # no scores: response 0 was chosen
    >>> print(f"{reward_loss(jnp.array([[2.0, 0.0]]), batch)[0][0]:.4f}")
    0.1269
    """
    batch = with_scores(batch, "bradley_terry.reward_loss")
    pairs, external = ordered_pairs(batch), ranking_scores(batch)
    gap = jnp.where(pairs, external[:, :, None] - external[:, None, :], 0.0)
    losses = _comparisons(scores, batch, margin + score_margin * gap)
    both = jnp.where(pairs, scores[:, :, None] + scores[:, None, :], 0.0)
    losses += center_weight * mean_over_pairs(pairs, both**2)
    return losses, list_reward_metrics(scores, batch)


def select(key: Array, batch: Batch) -> Batch:
    """Keeps the best and the worst response of every list.

    Args:
      key: not used, nothing is random.
      batch: K >= 2 responses per prompt with ``scores [B, K]``.

    Returns:
      The batch with K' = 2: index 0 is the first response with the largest score, index 1 the first
      with the smallest. A list of ties gets weight 0.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    del key
    best, negatives = best_and_negatives(batch)
    worst = jnp.argmin(jnp.where(negatives, ranking_scores(batch), jnp.inf), axis=1)
    return keep_pair(batch, jnp.stack([best, worst], axis=1), negatives.any(axis=1))


def select_random(key: Array, batch: Batch) -> Batch:
    """Draws one ordered pair of every list, uniformly.

    The draw depends only on ``key`` and the row's ``prompt_id``.

    Args:
      key: PRNG key of the step.
      batch: K >= 2 responses per prompt with ``scores [B, K]``.

    Returns:
      The batch with K' = 2, the response with the larger score first. A list of ties has no ordered
      pair and gets weight 0.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    better, worse, exists = random_pair(key, batch)
    return keep_pair(batch, jnp.stack([better, worse], axis=1), exists)


def random_pair(key: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """Draws one of the ordered pairs of every list; see `select_random`.

    Returns:
      ``[B]`` index of the better response, ``[B]`` of the worse one, and ``[B]`` bool, whether
      there is a pair.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    pairs = ordered_pairs(batch)
    keys = jax.vmap(jax.random.split)(prompt_keys(key, batch))
    draw = jax.vmap(jax.random.categorical)
    # First the better one, by the number of responses that it beats, then one of those. This is
    # uniform over pairs, and a list padded to another K draws the same pair.
    better = draw(keys[:, 0], jnp.log(pairs.sum(axis=2)))
    beaten = jnp.take_along_axis(pairs, better[:, None, None], axis=1)[:, 0]
    worse = draw(keys[:, 1], jnp.where(beaten, 0.0, -jnp.inf))
    return better, worse, pairs.any(axis=(1, 2))


def with_scores(batch: Batch, loss_name: str) -> Batch:
    """Adds scores to pairs without them: 1 for the chosen response and 0 for the rejected one.

    Raises:
      ValueError: there are no scores and K is not 2.
    """
    if batch.scores is not None:
        return batch
    b, k = batch.response_length.shape
    if k != 2:
        raise ValueError(
            f"{loss_name}: wanted `scores` to order K={k} responses, found none: use a source that "
            "has them, or pairs"
        )
    return dataclasses.replace(batch, scores=jnp.tile(jnp.array([1.0, 0.0]), (b, 1)))


def _comparisons(reward: Array, batch: Batch, margin: Array | float = 0.0) -> Array:
    """Computes ``[B]`` means of -log sigma(r_w - r_l - m) over ordered pairs, 0 without pairs."""
    pairs = ordered_pairs(batch)
    # Also masked before the logarithm: the gradient through infinite rewards would be NaN.
    ahead = jnp.where(pairs, reward[:, :, None] - reward[:, None, :] - margin, 0.0)
    return mean_over_pairs(pairs, -jax.nn.log_sigmoid(ahead))
