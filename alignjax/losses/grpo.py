"""Group Relative Policy Optimization: compares a prompt's samples, without a value network.

================================  ==========================================================
paper                             code
================================  ==========================================================
r_i, i = 1..G                     ``batch.scores``: of a reward model, or of a rule that checks
o_i, |o_i|                        the K = G samples of a prompt, ``logps.length``
A_i                               (r_i - mean r) / std r, or another ``scale``
pi_theta / pi_old, its clipping   1: a sample is used once, by the policy that drew it
beta, D_KL[pi_theta || pi_ref]    ``beta``, in the reward: r_i - beta log pi_theta / pi_ref
================================  ==========================================================

A group is a prompt and its samples, a row of a batch. `alignjax.training.on_policy` samples again
for every step, so the ratio of new to old policy is 1, and the gradient is that of GRPO with one
update per batch and any clipping range (also clip-higher), and that of GSPO, whose ratio is of the
whole sequence. `loss_clipped` is for several updates on a step's samples; its ratio is of whole
responses, because losses here do not get tokens.

::

    GRPO       partial(grpo.loss, scale="std", length="response")
    Dr. GRPO   partial(grpo.loss, scale="none", length="sum")
    DAPO       partial(grpo.loss, scale="std", length="group"), with a mean over a batch's tokens
    REINFORCE++  loss_batch; REINFORCE++-baseline by its ``baseline``
    PPO        loss_clipped, of whole responses and without a value network
    RLOO       apo.loss, or partial(grpo.loss, scale="loo", length="sum", beta=0.1): the same

Reference: Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models, arXiv 2402.03300. Dr. GRPO: Liu et al., arXiv 2503.20783. DAPO: Yu et al., arXiv 2503.14476.
RLOO: Ahmadian et al., arXiv 2402.14740. PPO: Schulman et al., arXiv 1707.06347.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from alignjax.losses import cpo
from alignjax.losses.plackett_luce import ranking_scores
from alignjax.types import Array, Batch, Logps, Metrics, compares_rows, corrects_for_older

RECIPE = "configs/demo/grpo.py"  # it learns from the policy's own samples
SCALES = ("std", "none", "loo")
LENGTHS = ("response", "sum", "group")
LARGEST = 20.0  # nats of a ratio, whose exponential stays finite
EPSILON = 1e-4  # added to the standard deviation, as in TRL


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.0,
    scale: str = "std",
    length: str = "response",
) -> tuple[Array, Metrics]:
    """Raises samples that score above their group's mean, and lowers those below it.

    Eq. 3 where pi_theta = pi_old, R_i = r_i - beta log pi_theta(o_i) / pi_ref(o_i)::

        loss = -(1/G) sum_i R_i
        its gradient: -(1/G) sum_i A_i grad log pi_theta(o_i) / l_i

        A_i = (R_i - mean R) / std R ("std"), R_i - mean R ("none"), R_i - mean_{j != i} R_j ("loo")
        l_i = |o_i| ("response"), 1 ("sum"), (1/G) sum_j |o_j| ("group")

    The samples must come from **the current** pi_theta, and none of them may be removed, as for
    `apo.loss`. Only "loo" with "sum" is the unbiased gradient of the expected reward; "none" with
    "sum" is (G - 1) / G times it. A group of equal scores has no gradient.

    Args:
      logps: ``[B, K]`` nats, K >= 2; the reference is read unless beta is 0.
      batch: ``scores [B, K]``. Absent samples and those without a finite score do not count; if
        only one is left there is no gradient.
      beta: reward per nat; >= 0.
      scale: ``std``, the group's standard deviation (of a sample, with G - 1); ``none``; ``loo``.
      length: divisor of a response's log-probability, as above.

    Returns:
      ``[B]`` losses, the group's negative mean R; ``scores``, the mean r; ``scores/std``; and
      ``kl``, the mean log-ratio, unless beta is 0.

    Raises:
      ValueError: scale or length has another value; see `plackett_luce.ranking_scores`; or beta is
        not 0 and there is no reference (``reference.mode``).

    Differs from the paper: its KL term is an estimate at each token, outside of the reward; here
    the log-ratio of the whole response is part of the reward, as in RLOO. With beta 0, as in DAPO
    and Dr. GRPO, there is no difference.
    From the authors' code: none is published. TRL's GRPOTrainer with one iteration per batch has
    this gradient: its ``scale_rewards`` is scale; its "grpo", "dr_grpo" and "dapo" are lengths,
    where "dr_grpo" divides by a constant, the largest allowed length.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -5.0]], length=[[2, 5]], scores=[[1.0, 0.0]])
    >>> value = lambda policy: loss(logps.replace(policy=policy), batch, scale="none")[0][0]
    >>> print(jax.grad(value)(logps.policy))  # -A / (2 |o|), A = 1/2 and -1/2
    [[-0.125  0.05 ]]
    """
    for name, found, known in (("scale", scale, SCALES), ("length", length, LENGTHS)):
        if found not in known:
            raise ValueError(f"grpo.loss: loss.{name}: wanted one of {known}, found {found!r}")
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    some = jnp.maximum(ranked.sum(axis=1, keepdims=True), 1)

    def mean(x: Array) -> Array:  # [B, 1] over the samples that count
        return jnp.where(ranked, x, 0.0).sum(axis=1, keepdims=True) / some

    value, metrics = _penalised(logps, scores, beta, mean)
    ahead = value - mean(value)
    spread = jnp.sqrt((mean(ahead**2) * some) / jnp.maximum(some - 1, 1))
    units = {"std": spread + EPSILON, "none": jnp.ones(()), "loo": 1 - 1 / jnp.maximum(some, 2)}
    tokens = jnp.maximum(logps.length, 1)
    per = {"response": tokens, "sum": jnp.ones(()), "group": mean(tokens)}
    advantage = jnp.where(ranked, ahead / units[scale] / per[length], 0.0)
    policy = cpo.implicit(logps)
    score = policy - jax.lax.stop_gradient(policy)  # 0 in value, log pi in gradient
    losses = -(mean(value) + mean(advantage * score))[:, 0]
    return losses, metrics | {"scores/std": spread[:, 0]}


def _penalised(
    logps: Logps, scores: Array, beta: float, mean: Callable[[Array], Array]
) -> tuple[Array, Metrics]:
    """Computes ``[B, K]`` rewards minus the KL term, and the metrics of both."""
    metrics = {"scores": mean(scores)[:, 0]}
    value = jnp.where(scores > -jnp.inf, scores, 0.0)
    if not (isinstance(beta, float | int) and beta == 0):
        log_ratio = jax.lax.stop_gradient(logps.log_ratio)
        metrics["kl"] = mean(log_ratio)[:, 0]
        value = value - beta * log_ratio
    return value, metrics


@compares_rows
def loss_batch(
    logps: Logps, batch: Batch, *, beta: float = 0.0, baseline: bool = False
) -> tuple[Array, Metrics]:
    """Raises samples that score above the whole batch's mean, in units of its standard deviation.

    REINFORCE++, where pi_theta = pi_old and a whole response is an action; mean and std are over
    all samples of all prompts of the step::

        loss = -(1/K) sum_i R_i,    R_i = r_i - beta log pi_theta(o_i) / pi_ref(o_i)
        its gradient: -(1/K) sum_i A_i grad log pi_theta(o_i)

        A_i = (d_i - mean d) / std d,    d_i = R_i, or R_i - its group's mean R ("baseline")

    Unlike in GRPO, a prompt whose scores differ little has a small gradient; and without
    ``baseline``, if all samples of a prompt are above the batch's mean, all of them are raised.

    Args:
      logps: ``[B, K]`` nats; the reference is read unless beta is 0.
      batch: ``scores [B, K]``, K >= 2. Absent samples and those without a finite score do not
        count.
      beta: reward per nat; >= 0.
      baseline: REINFORCE++-baseline, which first subtracts the mean of a sample's group.

    Returns:
      As `loss`, with ``scores/std`` of the batch.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or beta is not 0 and there is no reference.

    Differs from the paper: there each token has its own advantage, with the KL of the tokens after
    it, and ratios are clipped; for one update on a step's samples they are 1.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-2.0, -5.0], [-2.0, -5.0]], scores=[[3.0, 3.0], [1.0, 1.0]])
    >>> value = lambda policy: loss_batch(logps.replace(policy=policy), batch)[0].sum()
    >>> print(jax.grad(value)(logps.policy).round(2))  # A = 1 and -1
    [[-0.5 -0.5]
     [ 0.5  0.5]]

    Reference: Hu et al., REINFORCE++, arXiv 2501.03262.
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    some = jnp.maximum(ranked.sum(axis=1, keepdims=True), 1)
    counts = jnp.where(ranked & (batch.weight > 0)[:, None], 1.0, 0.0)

    def mean(x: Array) -> Array:  # [B, 1] over the samples of a prompt
        return jnp.where(ranked, x, 0.0).sum(axis=1, keepdims=True) / some

    def over_batch(x: Array) -> Array:
        return (counts * x).sum() / jnp.maximum(counts.sum(), 1.0)

    value, metrics = _penalised(logps, scores, beta, mean)
    ahead = value - mean(value) if baseline else value
    ahead = jnp.where(ranked, ahead - over_batch(ahead), 0.0)
    spread = jnp.sqrt(over_batch(ahead**2))
    policy = cpo.implicit(logps)
    score = policy - jax.lax.stop_gradient(policy)  # 0 in value, log pi in gradient
    losses = -(mean(value) + mean(ahead / (spread + EPSILON) * score))[:, 0]
    return losses, metrics | {"scores/std": jnp.broadcast_to(spread, losses.shape)}


@corrects_for_older
def loss_clipped(
    logps: Logps, batch: Batch, *, beta: float = 0.1, clip: float = 0.2
) -> tuple[Array, Metrics]:
    """Raises or lowers samples of a policy some updates ago: PPO with a response as one action.

    The clipped objective, over the G samples of a prompt::

        loss = -(1/G) sum_i min(rho_i A_i, clip(rho_i, 1 - clip, 1 + clip) A_i)

        rho_i = pi_theta(o_i) / pi_old(o_i)
        R_i = r_i - beta log pi_old(o_i) / pi_ref(o_i),    A_i = R_i - mean_{j != i} R_j

    Where pi_old is pi_theta the gradient is that of `apo.loss`.

    Args:
      logps: ``[B, K]`` nats, K >= 2, and the reference's.
      batch: ``scores [B, K]``; ``drawn_logps``, log pi_old. Absent samples and those without a
        finite score do not count; if only one is left there is no gradient.
      beta: reward per nat; > 0.
      clip: distance of a ratio from 1 beyond which a sample has no gradient; > 0.

    Returns:
      ``[B]`` losses; ``scores``, the mean r; ``kl``, the mean log-ratio of the old policy; and
      ``clipped``, the share of samples without gradient.

    Raises:
      ValueError: see `plackett_luce.ranking_scores`; or there is no reference.

    Differs from the paper: ratios, rewards and clipping are of whole responses, not of tokens, and
    the baseline is the mean of the other samples, not a value network. (TRL's PPO, with which
    MORLHF runs were published, has a value network on the policy with its own clipped loss.)
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(
    ...     [[-2.0, -5.0]], [[-2.0, -5.0]], scores=[[1.0, 0.0]], drawn_logps=[[-2.1, -4.0]]
    ... )
    >>> losses, metrics = loss_clipped(logps, batch)  # A = 1.11 and -1.11, rho = 1.105 and 0.368
    >>> print(f"{losses[0]:.4f} {metrics['clipped'][0]:.1f}")
    -0.1694 0.5
    """
    scores = ranking_scores(batch)
    ranked = scores > -jnp.inf
    n = ranked.sum(axis=1, keepdims=True)
    policy = cpo.implicit(logps)
    old = jax.lax.stop_gradient(policy) if batch.drawn_logps is None else batch.drawn_logps
    log_ratio = jnp.where(ranked, jax.lax.stop_gradient(logps.log_ratio - policy) + old, 0.0)
    value = jnp.where(ranked, scores, 0.0) - beta * log_ratio
    total = value.sum(axis=1, keepdims=True)
    advantage = jnp.where(ranked, n * value - total, 0.0) / jnp.maximum(n - 1, 1)
    rho = jnp.exp(jnp.clip(jnp.where(ranked, policy - old, 0.0), -LARGEST, LARGEST))
    free, held = rho * advantage, jnp.clip(rho, 1 - clip, 1 + clip) * advantage
    some = jnp.maximum(n[:, 0], 1)
    return -jnp.minimum(free, held).sum(axis=1) / some, {
        "scores": jnp.where(ranked, scores, 0.0).sum(axis=1) / some,
        "kl": log_ratio.sum(axis=1) / some,
        "clipped": (held < free).sum(axis=1) / some,
    }
