"""Direct Preference Optimization: preference pairs, without a reward model."""

import jax

from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def implicit(logps: Logps) -> Array:
    """Computes ``[B, K]`` implicit rewards per unit of beta, nats: log pi_theta / pi_ref.

    Raises:
      ValueError: there is no reference (``reference.mode``).
    """
    return logps.log_ratio


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    implicit: Implicit = implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to pairs by Bradley-Terry maximum likelihood.

    Eq. 7, with the smoothing e of cDPO, Eq. 3::

        loss = -(1 - e) log sigma(beta (T_w - T_l)) - e log sigma(-beta (T_w - T_l))

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    e                                 ``label_smoothing``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5).
      implicit: T, or another loss's reward per unit of beta, such as simpo.implicit.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference; `pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: no; label_smoothing=0 is Eq. 7.
    From the authors' code: no; its "ipo" and "reference_free" are other losses here.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> losses, metrics = loss(logps, batch, beta=0.5)
    >>> print(f"{losses[0]:.4f} {metrics['rewards/margins'][0]:.1f}")
    0.1269 2.0

    Reference: Rafailov et al., Direct Preference Optimization: Your Language Model is Secretly a
    Reward Model, arXiv 2305.18290; code eric-mitchell/direct-preference-optimization@f8b8c0f.
    """
    check_pairs(logps, "dpo.loss")
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    return logistic(margin, label_smoothing), pair_metrics(reward, logps.policy)


def logistic(margin: Array, label_smoothing: float) -> Array:
    """Computes -(1 - e) log sigma(margin) - e log sigma(-margin), e the smoothing."""
    as_labelled, flipped = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
    return -(1 - label_smoothing) * as_labelled - label_smoothing * flipped


def check_pairs(logps: Logps, loss_name: str) -> None:
    """Refuses batches without pairs.

    Raises:
      ValueError: K is not 2.
    """
    k = logps.policy.shape[1]
    if k != 2:
        raise ValueError(
            f"{loss_name}: wanted 2 responses per prompt, found K={k}: set `select` in the config "
            "to one that keeps a pair (such as hps.select), or use a loss for lists (such as "
            "plackett_luce.loss) or for single responses (such as sft.loss)"
        )


def pair_metrics(reward: Array, policy: Array) -> Metrics:
    """Computes the metrics of a pair loss, under TRL's names.

    Args:
      reward: ``[B, 2]`` implicit rewards of the chosen and the rejected response.
      policy: ``[B, 2]`` their log-probabilities under the policy, nats.

    Returns:
      `reward_metrics`, ``logps/chosen`` and ``logps/rejected``, each ``[B]``.
    """
    logps = {"logps/chosen": policy[:, 0], "logps/rejected": policy[:, 1]}
    return reward_metrics(reward) | logps


def reward_metrics(reward: Array) -> Metrics:
    """Summarises the rewards ``[B, 2]`` of a chosen and a rejected response.

    Returns:
      Four entries ``[B]``. ``rewards/accuracies`` is 1 if the chosen response has the larger
      reward, otherwise 0: a tie is wrong.
    """
    margin = reward[:, 0] - reward[:, 1]
    return {
        "rewards/chosen": reward[:, 0],
        "rewards/rejected": reward[:, 1],
        "rewards/margins": margin,
        "rewards/accuracies": (margin > 0).astype(reward.dtype),
    }
