"""Hard Preference Sampling: the best response against one drawn hard negative.

================================  ==========================================================
paper                             code
================================  ==========================================================
r = beta log pi_theta / pi_ref    ``beta * implicit(logps)`` (log Z(x) cancels)
y_1                               the response of the largest score; index 0 after `select`
q_i ~ exp(gamma r_est,i), i >= 2  softmax of ``gamma * batch.scores / score_sd``, negatives only
N = n - 1                         number of negatives; ``batch.drawn_from`` after `select`
beta, gamma                       ``beta``, ``gamma``, see below
================================  ==========================================================

`select` draws y_s ~ q before the forward pass, so only two responses are scored instead of n. q,
the scores and the reference have no gradient. Responses tied with the best one are not negatives.
Any pair loss can follow `select`: these are the paper's X-HPS for X in DPO (`loss_published`), EXO,
IPO, SPPO and NCA.

The effect of gamma depends on the spread of the scores: with 7 negatives and gamma = 3, the hardest
one has probability 0.21 if the standard deviation of a list's scores is 0.13, and 0.60 if it is 1.
So gamma is divided by ``score_sd``, the standard deviation of scores within a list, pooled over the
training lists. A run binds it (`alignjax.stages.check.bind_score_sd`); it is stored with the
prepared rows. The paper and its code multiply the raw scores: ``score_sd=1.0``. Other losses get
the raw scores.

Reference: Zou et al., HPS: Hard Preference Sampling for Human Preference Alignment, arXiv
2502.14400; code LVLab-SMU/HPS@606b7ce, dpo_iteration/run_dpo.py.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.losses.plackett_luce import (
    best_and_negatives,
    keep_pair,
    list_metrics,
    prompt_keys,
    ranking_scores,
)
from alignjax.types import Array, Batch, Implicit, Logps, Metrics, RunSchedule


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = dpo.implicit
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to "the best beats a hard negative", one negative per prompt.

    Eq. 8 with its inner expectation estimated by the one drawn response y_s, without bias::

        loss = -log exp(r_1) / (exp(r_1) + N exp(r_s)) = softplus(log N + r_s - r_1)

    Args:
      logps: ``[B, 2]`` nats, in the order of `select`: best, drawn.
      batch: ``drawn_from [B]``, the number N of negatives that response 1 was drawn from.
      beta: KL strength, reward per nat; > 0.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log(1 + N) where policy equals reference; `dpo.pair_metrics` and
      ``negatives``, N.

    Raises:
      ValueError: K is not 2 or nothing was drawn (set ``select`` to `select`), or there is no
        reference (``reference.mode``).

    Differs from the paper: it states its practical loss as Eq. 10, which as printed lacks the
    factor N of Eq. 8 (q / p is N q, not q); this is Eq. 8, the form that its Theorem 1 analyses.
    From the authors' code: that is the printed Eq. 10, here `loss_published`.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], drawn_from=[15])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # log(1 + 15 exp(-2))
    1.1086
    """
    dpo.check_pairs(logps, "hps.loss")
    if batch.drawn_from is None:
        raise ValueError(
            "hps.loss: wanted `drawn_from`, the number of negatives that one was drawn from, found "
            "none: set `select` to hps.select in the config, or use dpo.loss for pairs"
        )
    reward = beta * implicit(logps)
    negatives = jnp.maximum(batch.drawn_from, 1).astype(reward.dtype)  # 0 only in rows of weight 0
    losses = jax.nn.softplus(jnp.log(negatives) + reward[:, 1] - reward[:, 0])
    return losses, dpo.pair_metrics(reward, logps.policy) | {"negatives": negatives}


def loss_full(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
    score_sd: float | None = None,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to "the best beats all negatives", weighted by their hardness q.

    Eq. 8 with the q of Eq. 9, over all n responses; gamma=0 is `plackett_luce.loss_top1`::

        loss = -log exp(r_1) / (exp(r_1) + N E_q[exp(r)])
             = softplus(log N + logsumexp_{i>=2}(log q_i + r_i) - r_1)

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better.
      beta: KL strength, reward per nat; > 0.
      gamma: hardness: > 0 gives more weight to negatives with high scores, < 0 less.
      score_sd: standard deviation of scores, > 0; a run binds that of its training lists. None: 1.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log(1 + N) where policy equals reference, 0 for a list without a
      negative; `plackett_luce.list_metrics`, ``negatives``, N, and `hardness_metrics`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: no; its practical loss is `loss`.
    From the authors' code: that never computes the expectation.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -7.0, -5.0]], [[-4.0, -7.0, -5.0]], scores=[[3, 2, 1]])
    >>> print(f"{loss_full(logps, batch)[0][0]:.4f}")  # log(1 + N)
    1.0986
    """
    reward = beta * implicit(logps)
    best, negatives = best_and_negatives(batch)
    log_q = _log_q(batch, negatives, gamma, score_sd)
    metrics = list_metrics(reward, logps.policy, batch) | hardness_metrics(log_q, batch)
    metrics["negatives"] = negatives.sum(axis=1).astype(reward.dtype)
    return _expected(reward, best, negatives, log_q), metrics


def loss_two_valid(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    gamma: float = 1.0,
    score_sd: float | None = None,
    second_weight: float = 1.0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to "the best beats all, and the second best the rest".

    Appendix E, with L(y; Y) the loss of Eq. 8 for y against the negatives Y::

        loss = L(y_1; {y_2, ..., y_n}) + lambda L(y_2; {y_3, ..., y_n})

    Args:
      logps: ``[B, K]`` nats, K >= 2, in any order.
      batch: ``scores [B, K]``, larger is better; y_1 and y_2 have the two largest.
      beta: KL strength, reward per nat; > 0.
      gamma, score_sd: hardness and its unit, as in `loss_full`, for both terms.
      second_weight: lambda, >= 0; 0 is `loss_full`.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log(1 + N) + lambda log N where policy equals reference and nothing
      is tied; the metrics of `loss_full`.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: it does not define lambda and ties. A response tied with y_1 or y_2 is
    not a negative of that one; y_2 may be tied with y_1.
    From the authors' code: that has no second valid response.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -7.0, -5.0]], [[-4.0, -7.0, -5.0]], scores=[[3, 2, 1]])
    >>> print(f"{loss_two_valid(logps, batch)[0][0]:.4f}")  # log 3 + log 2
    1.7918
    """
    first, metrics = loss_full(
        logps, batch, beta=beta, gamma=gamma, score_sd=score_sd, implicit=implicit
    )
    best, _ = best_and_negatives(batch)
    is_best = jnp.arange(logps.policy.shape[1]) == best[:, None]
    rest = dataclasses.replace(batch, scores=jnp.where(is_best, -jnp.inf, ranking_scores(batch)))
    second, negatives = best_and_negatives(rest)
    log_q = _log_q(rest, negatives, gamma, score_sd)
    terms = _expected(beta * implicit(logps), second, negatives, log_q)
    return first + second_weight * terms, metrics


def loss_published(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.25,
    label_smoothing: float = 0.1,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to the drawn pair, as the authors' code does.

    Eq. 10 as printed with one draw, and smoothing e: this is DPO on the pair of `select`::

        loss = -(1 - e) log sigma(r_1 - r_s) - e log sigma(r_s - r_1)

    Args:
      logps: ``[B, 2]`` nats, in the order of `select`: best, drawn.
      batch: not read.
      beta: KL strength; 0.25 is the code's value (the paper's is 0.1).
      label_smoothing: e in [0, 0.5); 0.1 is the code's value (the paper has none).
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` to `select`), or there is no reference.

    Differs from the paper: label_smoothing; and the log N of Eq. 8 is missing, as in Eq. 10.
    From the authors' code: no. Use `curriculum` for gamma: there gamma depends on a row's place in
    a data set that is shuffled afterwards, and the ``hard_i`` schedule reads gamma before it is
    assigned.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]])
    >>> print(f"{loss_published(logps, batch, beta=0.5, label_smoothing=0.0)[0][0]:.4f}")
    0.1269
    """
    return dpo.loss(logps, batch, beta=beta, label_smoothing=label_smoothing, implicit=implicit)


def select(key: Array, batch: Batch, *, gamma: float, score_sd: float | None = None) -> Batch:
    """Draws one rejected response per prompt, ``y_s ~ q`` of Eq. 9, before the forward pass.

    The draw depends only on ``key`` and the row's ``prompt_id``, not on its place in the batch, the
    batch size or the number of devices.

    Args:
      key: PRNG key of the step.
      batch: K >= 2 responses per prompt with ``scores [B, K]``.
      gamma: hardness, a number or a scalar array; large: the hardest negative.
      score_sd: standard deviation of scores, > 0; a run binds that of its training lists. None: 1.

    Returns:
      The batch with K' = 2, index 0 the best response and index 1 the drawn one,
      ``drawn_from`` = N and `hardness_metrics`. A prompt without a negative gets weight 0.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    best, negatives = best_and_negatives(batch)
    count = negatives.sum(axis=1)
    draw = jax.vmap(jax.random.categorical)
    log_q = _log_q(batch, negatives, gamma, score_sd)
    drawn = draw(prompt_keys(key, batch), log_q)
    pair = keep_pair(batch, jnp.stack([best, drawn], axis=1), count > 0)
    metrics = hardness_metrics(log_q, batch)
    return dataclasses.replace(pair, drawn_from=count.astype(jnp.int32), select_metrics=metrics)


def hardness_metrics(log_q: Array, batch: Batch) -> Metrics:
    """Measures how hard q is.

    Args:
      log_q: ``[B, K]``, Eq. 9.
      batch: the lists.

    Returns:
      ``negatives/effective [B]``: the exponential of q's entropy, N if q is uniform and 1 if one
      negative has all the probability; ``negatives/p_hardest [B]``: the probability of the
      negatives with the largest score. Both are 0 for a list without a negative.
    """
    _, negatives = best_and_negatives(batch)
    q = jnp.where(negatives, jnp.exp(log_q), 0.0)
    scores = jnp.where(negatives, ranking_scores(batch), -jnp.inf)
    hardest = negatives & (scores == scores.max(axis=1, keepdims=True))
    number = jnp.exp(jax.scipy.special.entr(q).sum(axis=1))
    return {
        "negatives/effective": jnp.where(negatives.any(axis=1), number, 0.0),
        "negatives/p_hardest": jnp.where(hardest, q, 0.0).sum(axis=1),
    }


def curriculum(*, start: float = -5.0, stop: float = 3.0, plateaus: int | None = 5) -> RunSchedule:
    """Makes a schedule for ``gamma``, from easy to hard negatives over a run of any length.

    Args:
      start: gamma at the first step.
      stop: gamma at the last step.
      plateaus: number of equal parts of the run with a constant gamma, from ``start`` to ``stop``
        in equal steps. The default is that of the authors' code: -5, -3, -1, 1, 3. The paper's text
        says "from -5 to 5": ``stop=5.0`` is -5, -2.5, 0, 2.5, 5. None: linear in the step.

    Raises:
      ValueError: there are fewer than 2 plateaus; or, when the run begins, it has no steps.

    >>> print(*[curriculum().over(10)(step) for step in (0, 2, 9)])
    -5.0 -3.0 3.0
    >>> print(*[curriculum(stop=5.0, plateaus=None).over(11)(step) for step in (0, 1, 10)])
    -5.0 -4.0 5.0
    """
    if plateaus is not None and plateaus < 2:
        raise ValueError(f"hps.curriculum: wanted plateaus >= 2 or None, found {plateaus}")
    return RunSchedule(functools.partial(_ramp, start=start, stop=stop, plateaus=plateaus))


def _ramp(
    steps: int, *, start: float, stop: float, plateaus: int | None
) -> Callable[[Array], Array]:
    """Makes gamma by the step, for a run of ``steps`` steps; after them it is constant."""
    if steps < 1:
        raise ValueError(f"hps.curriculum: wanted a run of at least 1 step, found {steps}")

    def gamma(step: Array) -> Array:
        step = jnp.minimum(step, steps - 1)
        if plateaus is None:
            return start + (stop - start) * step / max(steps - 1, 1)
        # In integers, so that plateaus end at exact steps.
        return start + (stop - start) * (step * plateaus // steps) / (plateaus - 1)

    return gamma


def _expected(reward: Array, best: Array, negatives: Array, log_q: Array) -> Array:
    """Computes ``[B]`` Eq. 8 with its expectation, for rewards ``[B, K]``; 0 without negatives."""
    count = negatives.sum(axis=1)
    lead = reward - jnp.take_along_axis(reward, best[:, None], axis=1)
    log_expectation = jax.nn.logsumexp(log_q + lead, axis=1)
    losses = jax.nn.softplus(jnp.log(jnp.maximum(count, 1.0)) + log_expectation)
    return jnp.where(count > 0, losses, 0.0)


def _log_q(batch: Batch, negatives: Array, gamma: float, score_sd: float | None) -> Array:
    """Computes Eq. 9, ``[B, K]`` log q, -inf for responses that are no negatives.

    A list without negatives gets a uniform q, to avoid a division by 0; callers ignore its result.
    """
    if score_sd is not None and score_sd <= 0:
        raise ValueError(f"hps: score_sd: wanted a standard deviation > 0, found {score_sd}")
    among = negatives | ~negatives.any(axis=1, keepdims=True)
    per_score = gamma if score_sd is None else gamma / score_sd
    hardness = per_score * jnp.where(negatives, ranking_scores(batch), 0.0)
    return jax.nn.log_softmax(hardness, axis=1, where=among)
