"""MODPO: preference pairs of one objective, with the other objectives' rewards as a margin.

================================  ==========================================================
paper                             code
================================  ==========================================================
w, a preference                   ``preference``: M weights >= 0; their sum is scaled to 1
k, the objective of the pairs     ``main``; its weight w_k is above 0
r_{-k}, margin rewards            ``batch.scores [B, K, M]`` of the other objectives, frozen
T = log pi_theta / pi_sft         ``implicit(logps)``
y_w, y_l                          response 0 (better on objective k), 1
beta                              ``beta``
================================  ==========================================================

With pairs that are labelled by Bradley-Terry on r_k, the minimum is pi_theta proportional to
pi_sft exp(w . r / beta), whatever k is: what MORLHF seeks, without a reward of one's own for k and
without sampling.

Reference: Zhou et al., Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference
Optimization, arXiv 2310.03708; code ZHZisZZ/modpo@56c52a9.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from alignjax.losses import dpo
from alignjax.losses.bradley_terry import random_pair
from alignjax.losses.plackett_luce import keep_pair, prompt_keys
from alignjax.types import Array, Batch, Implicit, Logps, Metrics

RECIPE = "configs/demo/modpo.py"  # its loss alone is no method: see `losses.methods`


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    preference: tuple[float, ...] | None = None,
    main: int = 0,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the pairs of one objective by Bradley-Terry, with the other objectives as a margin.

    The paper's L_MODPO, m the rewards of the objectives but k::

        loss = -log sigma( [beta (T_w - T_l) - sum_{i != k} w_i (m_i(y_w) - m_i(y_l))] / w_k )

    Args:
      logps: ``[B, 2]`` nats.
      batch: ``scores [B, 2, M]``, M >= 2, in log-odds of the objective's own comparisons; those of
        ``main`` are not read, the order of the pair says them.
      beta: KL strength, reward per nat; > 0.
      preference: M weights >= 0. The recipe binds each of a config's.
      main: the objective that ordered the pairs, in [0, M).
      implicit: T, or another loss's reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` of the rewards of objective k that the policy
      implies, what sigma is taken of their difference, and ``rewards/collective``, the margin
      beta (T_w - T_l) of all objectives together. An absent response has reward 0.

    Raises:
      ValueError: K is not 2, or not M scores of M weights (``select``, ``data.source``); no
        preference, or one that is no weighting; w_k is 0, which the loss divides by (``main``);
        there is no reference (``reference.mode``).

    Differs from the paper: no. Weights are scaled to sum to 1 here, on a simplex there.
    From the authors' code: no; its hinge is slic's here. There each margin reward comes from a
    model that is run in the step, often beta T of a frozen DPO policy; here they are the batch's
    scores, computed once.

    >>> from alignjax.testing import loss_inputs
    >>> scores = [[[9.0, 1.0], [2.0, 3.0]]]  # ordered by the first, margins from the second
    >>> case = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], scores=scores)
    >>> print(f"{loss(*case, beta=0.5, preference=(0.5, 0.5))[0][0]:.4f}")  # sigma(4 + 2)
    0.0025
    """
    dpo.check_pairs(logps, "modpo.loss")
    scores = objective_scores(batch, "modpo.loss")
    weights = _weights(preference, main, scores.shape[2])
    collective = beta * implicit(logps)
    others = jnp.asarray([0.0 if i == main else w for i, w in enumerate(weights)], scores.dtype)
    reward = (collective - scores @ others) / weights[main]
    metrics = dpo.pair_metrics(reward, logps.policy)
    metrics["rewards/collective"] = collective[:, 0] - collective[:, 1]
    return -jax.nn.log_sigmoid(reward[:, 0] - reward[:, 1]), metrics


def select(key: Array, batch: Batch, *, main: int = 0, noisy: bool = False) -> Batch:
    """Draws a pair of every list, ordered by one of its objectives.

    As `bradley_terry.select_random` by the scores of ``main``; the draw depends on ``key`` and the
    row's ``prompt_id`` alone.

    Args:
      key: PRNG key of the step.
      batch: K >= 2 responses per prompt with ``scores [B, K, M]``.
      main: the objective that orders the pair, in [0, M).
      noisy: the larger score comes first with probability sigma(difference), as one who compares
        by Bradley-Terry would have it; the minimum of `loss` is then finite and the one that the
        theory is about. Otherwise always.

    Returns:
      The batch with K' = 2. A list whose responses tie on ``main`` has no pair and gets weight 0.

    Raises:
      ValueError: there are not M >= 2 scores per response, or not that many for ``main``.
    """
    scores = objective_scores(batch, "modpo.select")
    _check_main(main, scores.shape[2])
    ordering = scores[..., main]
    first, second, exists = random_pair(key, dataclasses.replace(batch, scores=ordering))
    pair = jnp.stack([first, second], axis=1)
    if noisy:
        lead = jnp.take_along_axis(ordering, pair, axis=1)
        # 0 and 1 would be the keys that the pair was drawn with.
        draw = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 2)))
        uniform = draw(prompt_keys(key, batch))
        swapped = uniform > jax.nn.sigmoid(lead[:, 0] - lead[:, 1])
        pair = jnp.where(swapped[:, None], pair[:, ::-1], pair)
    return keep_pair(batch, pair, exists)


def objective_scores(batch: Batch, objective: str) -> Array:
    """``[B, K, M]`` scores, without gradient, 0 for absent responses.

    Raises:
      ValueError: there are not M >= 2 scores per response.
    """
    if batch.scores is None or batch.scores.ndim != 3:
        found = "none" if batch.scores is None else "one"
        raise ValueError(
            f"{objective} needs scores on several objectives, [B, K, M], and these data have "
            f"{found} per response: use a source that gives them"
        )
    scores = jax.lax.stop_gradient(batch.scores)
    return jnp.where(batch.present[..., None], scores, 0.0)


def _check_main(main: int, objectives: int) -> None:
    if not 0 <= main < objectives:
        raise ValueError(f"main: wanted an objective in [0, {objectives}), found {main}")


def _weights(preference: tuple[float, ...] | None, main: int, objectives: int) -> list[float]:
    """The weights, scaled to sum to 1; that of ``main``, which the loss divides by, is not 0."""
    _check_main(main, objectives)
    weights = preference_weights(preference, objectives).tolist()
    if weights[main] == 0:
        raise ValueError(
            f"main: objective {main} has weight 0 in the preference {preference}, and modpo.loss "
            "divides by it: order the pairs by an objective of positive weight"
        )
    return weights


def preference_weights(preference: tuple[float, ...] | None, objectives: int) -> np.ndarray:
    """``[M]`` float64 weights of a preference, scaled to sum to 1.

    Raises:
      ValueError: there are not M weights, or they are negative, not finite or all 0.
    """
    weights = np.asarray(preference, np.float64)
    if weights.shape != (objectives,):
        raise ValueError(
            f"preference: wanted {objectives} weights, one per objective, found {preference}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(f"preference: wanted weights >= 0 that are not all 0, found {preference}")
    return weights / weights.sum()
