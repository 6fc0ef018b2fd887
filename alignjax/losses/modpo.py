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

If the pairs are labelled by Bradley-Terry on r_k, the minimum for every k is pi_theta proportional
to pi_sft exp(w . r / beta). This is the optimum of MORLHF, but needs no reward model for k and no
sampling.

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

    The paper's L_MODPO, m the rewards of the objectives other than k::

        loss = -log sigma( [beta (T_w - T_l) - sum_{i != k} w_i (m_i(y_w) - m_i(y_l))] / w_k )

    Args:
      logps: ``[B, 2]`` nats.
      batch: ``scores [B, 2, M]``, M >= 2, in log-odds of the objective's own comparisons; those of
        ``main`` are not read, only the order of the pair.
      beta: KL strength, reward per nat; > 0.
      preference: M weights >= 0. The recipe binds each preference of a config.
      main: the objective that ordered the pairs, in [0, M).
      implicit: T, or another loss's reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics` of the policy's implicit rewards on objective k,
      whose difference is the argument of sigma, and ``rewards/collective``, the margin
      beta (T_w - T_l) of all objectives together. An absent response has reward 0.

    Raises:
      ValueError: K is not 2, or scores and weights differ in number (``select``,
        ``data.source``); the preference is missing or invalid; w_k, by which the loss divides, is 0
        (``main``); there is no reference (``reference.mode``).

    Differs from the paper: no. Weights are scaled to sum to 1.
    From the authors' code: no; its hinge loss is in slic. There each margin reward comes from a
    model that runs in the step, often beta T of a frozen DPO policy; here rewards are scores in the
    batch, computed once.

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

    Like `bradley_terry.select_random` with the scores of ``main``; the draw depends only on ``key``
    and the row's ``prompt_id``.

    Args:
      key: PRNG key of the step.
      batch: K >= 2 responses per prompt with ``scores [B, K, M]``.
      main: the objective that orders the pair, in [0, M).
      noisy: True: the larger score comes first with probability sigma(difference), a Bradley-Terry
        label; then the minimum of `loss` is finite and the one of the theory. False: it always
        comes first.

    Returns:
      The batch with K' = 2. A list whose responses tie on ``main`` has no pair and gets weight 0.

    Raises:
      ValueError: there are not M >= 2 scores per response, or ``main`` is not below M.
    """
    scores = objective_scores(batch, "modpo.select")
    _check_main(main, scores.shape[2])
    ordering = scores[..., main]
    first, second, exists = random_pair(key, dataclasses.replace(batch, scores=ordering))
    pair = jnp.stack([first, second], axis=1)
    if noisy:
        lead = jnp.take_along_axis(ordering, pair, axis=1)
        # Not 0 or 1: the pair was drawn with these keys.
        draw = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 2)))
        uniform = draw(prompt_keys(key, batch))
        swapped = uniform > jax.nn.sigmoid(lead[:, 0] - lead[:, 1])
        pair = jnp.where(swapped[:, None], pair[:, ::-1], pair)
    return keep_pair(batch, pair, exists)


def objective_scores(batch: Batch, objective: str) -> Array:
    """Returns ``[B, K, M]`` scores, without gradient, 0 for absent responses.

    Raises:
      ValueError: there are not M >= 2 scores per response.
    """
    if batch.scores is None or batch.scores.ndim != 3:
        found = "none" if batch.scores is None else "one"
        raise ValueError(
            f"{objective}: wanted scores on several objectives, [B, K, M], found {found} per "
            "response: use a source that has them"
        )
    scores = jax.lax.stop_gradient(batch.scores)
    return jnp.where(batch.present[..., None], scores, 0.0)


def _check_main(main: int, objectives: int) -> None:
    if not 0 <= main < objectives:
        raise ValueError(f"main: wanted an objective in [0, {objectives}), found {main}")


def _weights(preference: tuple[float, ...] | None, main: int, objectives: int) -> list[float]:
    """Scales the weights to sum to 1; refuses weight 0 for ``main``."""
    _check_main(main, objectives)
    weights = preference_weights(preference, objectives).tolist()
    if weights[main] == 0:
        raise ValueError(
            f"main: wanted an objective with a positive weight, by which modpo.loss divides, found "
            f"objective {main} of the preference {preference}"
        )
    return weights


def preference_weights(preference: tuple[float, ...] | None, objectives: int) -> np.ndarray:
    """Makes ``[M]`` float64 weights of a preference, scaled to sum to 1.

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
