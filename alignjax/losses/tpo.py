"""Triple Preference Optimization: a preference pair plus a gold response, without a reference."""

import functools

import jax.numpy as jnp

from alignjax.losses import cpo, dpo
from alignjax.losses.plackett_luce import ranking_scores
from alignjax.types import Array, Batch, Logps, Loss, Metrics, take_responses, trains

PREFERENCE = functools.partial(dpo.loss, beta=0.01, implicit=cpo.implicit)


@trains(cpo.implicit)
def loss(
    logps: Logps,
    batch: Batch,
    *,
    nll_weight: float = 1.0,
    compare: Loss = PREFERENCE,
) -> tuple[Array, Metrics]:
    """Fits the best response of a list, and prefers the second best to the worst.

    The paper's L_preference + alpha L_reference, s = log pi_theta::

        loss = -log sigma(beta (s(y_w) - s(y_l))) - alpha s(y_ref) / |y_ref|

    ================================  =============================================
    paper                             code
    ================================  =============================================
    y_ref, y_w, y_l                   the best, the second best, the worst response
    L_preference                      ``compare``, on the pair y_w, y_l
    alpha                             ``nll_weight``
    beta                              ``beta`` of ``compare``, 0.01 as in TRL
    ================================  =============================================

    TRL's other forms have another ``compare``: TPO-L ``simpo.loss``, "hinge"
    ``partial(slic.loss_hinge, implicit=cpo.implicit)``, and "ipo"
    ``partial(ipo.loss, implicit=simpo.implicit)``.

    Args:
      logps: ``[B, K]`` nats, K >= 3, in any order; only ``compare`` may read ``reference``.
      batch: ``scores [B, K]``: the largest is the gold response's. If all others are equal,
        nothing is compared.
      nll_weight: alpha; >= 0.
      compare: a loss of pairs, with its hyperparameters bound.

    Returns:
      ``[B]`` losses in nats; the metrics of ``compare`` (0 if nothing is compared), and
      ``nll_per_token`` of the gold response.

    Raises:
      ValueError: K < 3; see also `plackett_luce.ranking_scores`.

    Differs from the paper: no; it also uses the best of a scored list as gold response.
    From the authors' code: not compared. TRL's experimental TPO is the same for rows with a column
    for the gold response, except that its NLL is a mean over the tokens of a batch.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-9.0, -4.0, -6.0]], scores=[[0, 1, 2]], length=[[3, 2, 3]])
    >>> compare = functools.partial(dpo.loss, beta=0.4, implicit=cpo.implicit)
    >>> print(f"{loss(*case, compare=compare)[0][0]:.4f}")  # softplus(-2) + 6 / 3
    2.1269

    Reference: Saeidi et al., Triple Preference Optimization: Achieving Better Alignment using a
    Single Step Optimization, arXiv 2405.16681.
    """
    scores = ranking_scores(batch)
    if scores.shape[1] < 3:
        raise ValueError(
            "tpo.loss: wanted at least 3 responses per prompt (gold, chosen and rejected by their "
            f"scores), found K={scores.shape[1]}"
        )
    order = jnp.argsort(-scores, axis=1)  # those that do not count come last
    count = (scores > -jnp.inf).sum(axis=1, keepdims=True)
    pair = jnp.concatenate([order[:, 1:2], _at(order, jnp.maximum(count - 1, 1))], axis=1)
    values = _at(scores, pair)
    differ = (values[:, 0] > values[:, 1]) & (count[:, 0] >= 3)
    losses, metrics = compare(_pair(logps, pair), take_responses(batch, pair))
    gold = order[:, :1]
    nll = -_at(logps.per_token, gold)[:, 0]
    compared = {name: jnp.where(differ, value, 0.0) for name, value in metrics.items()}
    total = jnp.where(differ, losses, 0.0) + nll_weight * nll
    return total, compared | {"nll_per_token": nll}


def _at(x: Array, index: Array) -> Array:
    return jnp.take_along_axis(x, index, axis=1)


def _pair(logps: Logps, index: Array) -> Logps:
    reference = None if logps.reference is None else _at(logps.reference, index)
    return Logps(
        policy=_at(logps.policy, index), reference=reference, length=_at(logps.length, index)
    )
