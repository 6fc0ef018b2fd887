"""Robust DPO: pairs whose labels are wrong at a known rate."""

import jax

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    flip_rate: float = 0.1,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Fits the implicit reward to the true labels of pairs, some of which were flipped.

    Section 3.1; l(m) = -log sigma(m) is the loss of DPO, m = beta (T_w - T_l)::

        loss = [(1 - e) l(m) - e l(-m)] / (1 - 2 e)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    y_w, y_l, as labelled             response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    epsilon                           ``flip_rate``
    ================================  ======================================

    If labels are flipped with probability e, its mean is the DPO loss of the true labels (Lemma
    3.1). `dpo.loss` with label_smoothing=e is another loss, with its minimum at a finite margin,
    log((1 - e) / e). This one has no minimum: at large margins it falls by e / (1 - 2 e) per unit
    of margin, so only the length of the run bounds the margins.

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      flip_rate: probability that a label is wrong, in [0, 0.5); 0 is `dpo.loss`.
      implicit: reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference, below 0 for large margins;
      `dpo.pair_metrics`.

    Raises:
      ValueError: flip_rate is a number outside [0, 0.5) (``loss.flip_rate``); K is not 2 (set
        ``select`` in the config), or there is no reference (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: none was found; TRL's loss_type "robust" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> losses, _ = loss(logps, batch, beta=0.5, flip_rate=0.25)
    >>> print(f"{losses[0]:.4f}")  # (0.75 x 0.1269 - 0.25 x 2.1269) / 0.5
    -0.8731

    Reference: Chowdhury et al., Provably Robust DPO: Aligning Language Models with Noisy Feedback,
    arXiv 2403.00409.
    """
    dpo.check_pairs(logps, "robust_dpo.loss")
    if isinstance(flip_rate, int | float) and not 0 <= flip_rate < 0.5:
        raise ValueError(
            f"robust_dpo.loss: loss.flip_rate: wanted a number in [0, 0.5), found {flip_rate}: if "
            "most labels are wrong, swap them in the data"
        )
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    as_labelled, flipped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    losses = ((1 - flip_rate) * as_labelled - flip_rate * flipped) / (1 - 2 * flip_rate)
    return losses, dpo.pair_metrics(reward, logps.policy)
