"""Adversarial Preference Optimization (arXiv 2311.08045); `apo_zero`, `apo_down` are *Anchored* PO.

This is a game. The reward model learns to score golden responses above the policy's own samples,
regularised by human comparisons (`reward_loss`); the policy raises its reward, regularised by a
reference. `training.game` has the two steps. With r the reward model, y ~ pi_theta, and P the human
preferences::

    min_r max_theta  E_gold,theta[r(y) - r(y_gold)] + beta_2 KL[P || Q_r] - beta_1 KL[pi || pi_ref]

================================  ==========================================================
paper                             code
================================  ==========================================================
r_phi                             ``scores`` in `reward_loss`, ``batch.scores`` for the policy
D_APO: y_gold, y_s ~ pi_theta     rows with ``batch.adversarial``: score 1 and scores 0
D_P, human pairs                  the other rows
beta_2, or rm_kl_coeff            ``pair_weight``
apo_loss_coeff                    ``sample_weight``
beta_1                            ``beta``
T = log pi_theta / pi_ref         ``logps.log_ratio``
================================  ==========================================================

The policy can be trained on K samples, scored by the reward model, with any loss that reads
``batch.scores``. These are the paper's three, and `loss`, which maximises the value of the game::

    rejection sampling   select=apo.select_best        loss=sft.loss
    RRHF                                               loss=rrhf.loss
    DPO, best and worst  select=bradley_terry.select   loss=partial(dpo.loss, beta=0.1)
    policy gradient                                    loss=partial(apo.loss, beta=0.1)

The optimum of `loss` is pi_ref exp(r / beta_1), normalised. DPO has the same optimum if labels are
drawn from sigma(r_i - r_j); if the larger score always wins, as with the select above, it has none.

Reference: Cheng et al., Adversarial Preference Optimization: Enhancing Your Alignment via RM-LLM
Game, arXiv 2311.08045; code Linear95/APO@4282775, trainer.py (reward models only).
"""

import dataclasses

import jax
import jax.numpy as jnp

from alignjax.losses import bradley_terry
from alignjax.losses.plackett_luce import mean_over_pairs, ordered_pairs, ranking_scores
from alignjax.types import Array, Batch, Logps, Metrics, take_responses

RECIPE = "configs/demo/apo.py"  # its loss alone is no method: see `losses.methods`


def reward_loss(
    scores: Array, batch: Batch, *, pair_weight: float = 1.0, sample_weight: float = 0.1
) -> tuple[Array, Metrics]:
    """Fits a reward model to "golden above sampled" and to human comparisons.

    Eq. 15, P the ordered pairs (golden, sample) of a row, or of a human comparison::

        loss = w (1/|P|) sum_{(w, l) in P} -log sigma(r_w - r_l)
        w    = sample_weight where the row is adversarial, else pair_weight

    Each row has its own weight and the batch's mean is over rows, so any mixture of rows has the
    right expectation: over N_A adversarial and N_P other rows it is proportional to
    ``mean_A + beta_2 mean_P`` with ``beta_2 = (pair_weight N_P) / (sample_weight N_A)``.
    ``pair_weight=0`` is the paper's ablation "GAIL", ``sample_weight=0`` its ablation "AB".

    Args:
      scores: ``[B, K]`` the model's rewards, K >= 2; gradients flow through them.
      batch: ``adversarial [B]``; ``scores [B, K]``, 1 for a golden response and 0 for samples, and
        as in `bradley_terry.reward_loss` in the other rows. Samples that repeat, or that equal the
        golden response, are in the row as often as they were drawn. Responses of equal score are
        not compared. Without ``scores`` K is 2 and index 0 is the golden or chosen response.
      pair_weight: of a row with a human comparison; >= 0.
      sample_weight: of an adversarial row with any number of samples; >= 0.

    Returns:
      ``[B]`` losses in nats, 0 for a row without a comparison; `plackett_luce.list_reward_metrics`
      and ``adversarial``, 1 or 0, whose mean is the share of such rows.

    Raises:
      ValueError: see `bradley_terry.reward_loss`.

    Differs from the paper: it weighs two means over data sets, see above. We assume that its beta_2
    is the weight of the human comparisons.
    From the authors' code: rm_kl_coeff is pair_weight (1), apo_loss_coeff is sample_weight (0.1).
    It has a row of weight apo_loss_coeff / apo_sample_num for every sample, compared with the
    golden response; the K rows of a prompt add up to the one row here. Its mean is over the pairs
    of a micro-batch, which is the same for micro-batches of one row, as in its runs.

    >>> from alignjax.testing import loss_inputs
    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[2.0, 0.0], [2.0, 0.0]])
    >>> _, batch = loss_inputs(scores, adversarial=[False, True])  # 0.1269 each before weights
    >>> losses, _ = reward_loss(scores, batch, sample_weight=0.5)
    >>> print(f"{losses[0]:.4f} {losses[1]:.4f}")
    0.1269 0.0635
    """
    losses, metrics = bradley_terry.reward_loss(scores, batch)
    adversarial = _adversarial(batch)
    weight = jnp.where(adversarial, sample_weight, pair_weight)
    return weight * losses, metrics | {"adversarial": adversarial.astype(scores.dtype)}


def reward_loss_diff(
    scores: Array, batch: Batch, *, pair_weight: float = 1.0, sample_weight: float = 0.1
) -> tuple[Array, Metrics]:
    """Fits the difference of rewards itself, like a Wasserstein critic: the ablation "WGAN".

    Eq. 14 in adversarial rows, `reward_loss` in the others::

        loss = sample_weight (1/|P|) sum_{(w, l) in P} (r_l - r_w)

    **Unbounded below by itself.** The human comparisons bound it only if each is sometimes answered
    the other way, and if their weight is large enough: for one comparison, won with probability q,
    and a golden response that is more frequent than the sampled one by d, it is bounded if
    ``pair_weight (1 - q) > sample_weight d`` (each times its number of rows).

    Args:
      scores, batch, pair_weight, sample_weight: as in `reward_loss`.

    Returns:
      ``[B]`` losses in nats, which can be negative in adversarial rows; metrics as in
      `reward_loss`.

    Raises:
      ValueError: see `bradley_terry.reward_loss`.

    Differs from the paper: as `reward_loss`.
    From the authors' code: apo_loss_type "diff"; as `reward_loss`.

    >>> from alignjax.testing import loss_inputs
    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[2.0, 0.0]])
    >>> _, batch = loss_inputs(scores, adversarial=[True])
    >>> print(f"{reward_loss_diff(scores, batch, sample_weight=0.5)[0][0]:.4f}")
    -1.0000
    """
    ranked, metrics = reward_loss(scores, batch, pair_weight=pair_weight)
    pairs = ordered_pairs(bradley_terry.with_scores(batch, "apo.reward_loss_diff"))
    mean = mean_over_pairs(pairs, scores[:, None, :] - scores[:, :, None])
    return jnp.where(_adversarial(batch), sample_weight * mean, ranked), metrics


def loss(logps: Logps, batch: Batch, *, beta: float = 0.1) -> tuple[Array, Metrics]:
    """Raises the expected reward minus beta times KL[pi_theta || pi_ref], by policy gradient.

    The policy's side of the game (no number in the paper), over K samples y_k ~ pi_theta::

        loss = -(1/K) sum_k R_k,    R_k = r_k - beta T_k
        its gradient: -(1/K) sum_k (R_k - mean_{j != k} R_j) grad log pi_theta(y_k|x)

    This is REINFORCE with the mean of the other samples as baseline, an unbiased estimate of the
    gradient of ``E[r] - beta KL``: the baseline is independent of y_k, and the gradient of T_k
    itself, which is left out, is 0 on average.

    The samples must come from **the current** pi_theta, and none of them may be removed, not even
    repeated ones: samples of an older policy, or missing ones, bias the estimate, and the loss does
    not correct for them.

    Args:
      logps: ``[B, K]`` nats, K >= 2.
      batch: ``scores [B, K]``, the reward model's r. Absent responses and those without a finite
        score do not count; if only one is left there is no gradient.
      beta: beta_1, reward per nat; > 0.

    Returns:
      ``[B]`` losses in nats, an unbiased estimate of the game's negative value for the policy;
      ``scores``, the mean r, and ``kl``, the mean T, an estimate of the KL.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference
        (``reference.mode``).

    Differs from the paper: there the policy is trained by rejection sampling, RRHF or DPO.
    From the authors' code: it trains no policy. The estimator is from Kool et al. 2019, Buy 4
    REINFORCE Samples, Get a Baseline for Free, and for language models from Ahmadian et al., Back
    to Basics, arXiv 2402.14740.

    >>> from alignjax.testing import loss_inputs
    >>> import jax
    >>> logps, batch = loss_inputs([[-2.0, -5.0]], [[-3.0, -5.0]], scores=[[1.0, 0.0]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # -(0.5 + 0) / 2
    -0.2500
    >>> value = lambda policy: loss(logps.replace(policy=policy), batch, beta=0.5)[0][0]
    >>> print(jax.grad(value)(logps.policy))
    [[-0.25  0.25]]
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    n = ranked.sum(axis=1)
    some = jnp.maximum(n, 1)
    scores = jnp.where(ranked, scores, 0.0)
    log_ratio = jax.lax.stop_gradient(jnp.where(ranked, logps.log_ratio, 0.0))
    value = scores - beta * log_ratio
    total = value.sum(axis=1)
    # n R_k - sum R = (n - 1) (R_k - mean of the others); 0 for a response without others.
    ahead = jnp.where(ranked, n[:, None] * value - total[:, None], 0.0)
    advantage = ahead / jnp.maximum(n - 1, 1)[:, None]
    policy = jnp.where(ranked, logps.policy, 0.0)
    # 0 in value, log pi in gradient.
    score = policy - jax.lax.stop_gradient(policy)
    losses = -(total + (advantage * score).sum(axis=1)) / some
    return losses, {"scores": scores.sum(axis=1) / some, "kl": log_ratio.sum(axis=1) / some}


def select_best(key: Array, batch: Batch) -> Batch:
    """Keeps the sample with the largest score, for rejection sampling with `sft.loss`.

    Args:
      key: not used, nothing is random.
      batch: K >= 2 responses per prompt with ``scores [B, K]``.

    Returns:
      The batch with K' = 1; of tied samples it has the first. A row whose responses are all absent
      or without a finite score gets weight 0.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`.
    """
    del key
    scores = ranking_scores(batch)
    best = take_responses(batch, jnp.argmax(scores, axis=1, keepdims=True))
    some = (scores > -jnp.inf).any(axis=1)
    return dataclasses.replace(best, weight=jnp.where(some, batch.weight, 0.0))


def _adversarial(batch: Batch) -> Array:
    """Returns ``[B]`` bool, whether rows are adversarial; False if the field is not set."""
    if batch.adversarial is None:
        return jnp.zeros(batch.weight.shape, bool)
    return batch.adversarial
