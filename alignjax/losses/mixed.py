"""Mixed Preference Optimization: a weighted sum of losses."""

import functools
import operator
from collections.abc import Callable
from typing import Any

from alignjax.losses import bco, dpo, sft
from alignjax.types import Array, Batch, Logps, Loss, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    losses: tuple[Loss, ...] = (dpo.loss, bco.loss_pairs, sft.loss_chosen),
    weights: tuple[float, ...] = (0.8, 0.2, 1.0),
) -> tuple[Array, Metrics]:
    """Adds weighted losses; by default MPO's preference, quality and supervised terms.

    Eq. 3 of MPO, for any losses and weights::

        loss = sum_i w_i L_i

    ================================  ======================================
    paper                             code
    ================================  ======================================
    L_p, L_q, L_g                     ``losses``, hyperparameters bound
    w_p, w_q, w_g                     ``weights``
    ================================  ======================================

    Args:
      logps: ``[B, K]`` nats, with a K that all the losses accept.
      batch: what the losses read.
      losses: losses of this package or your own, such as ``partial(dpo.loss, beta=0.2)``.
      weights: one for each loss; MPO's are 0.8, 0.2 and 1.

    Returns:
      ``[B]`` losses; every metric with the name of its loss in front,
      ``dpo.loss/rewards/margins``. If a loss occurs again it has a number,
      ``dpo.loss_2/rewards/margins``.

    Raises:
      ValueError: there is not one weight for each loss, or there are no losses; or a loss refuses
        the batch.

    Differs from the paper: its quality loss has a reward shift delta; `bco.loss_pairs` has none.
    From the authors' code: it uses TRL's ``loss_type`` with several names and ``loss_weights``,
    which is the same.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]])
    >>> losses = (functools.partial(dpo.loss, beta=0.5), sft.loss_chosen)
    >>> values, metrics = loss(*case, losses=losses, weights=(1.0, 0.5))
    >>> print(f"{values[0]:.4f}", sorted(metrics)[-1])  # 0.1269 + 0.5 x 4 / 2
    1.1269 sft.loss_chosen/nll_per_token

    Reference: Wang et al., Enhancing the Reasoning Ability of Multimodal Large Language Models via
    Mixed Preference Optimization, arXiv 2411.10442.
    """
    if not losses or len(losses) != len(weights):
        raise ValueError(
            "mixed.loss: loss.weights: wanted one weight for each loss, and at least one loss, "
            f"found {len(weights)} weights and {len(losses)} losses"
        )
    results = [each(logps, batch) for each in losses]
    metrics: Metrics = {}
    for name, (_, of_one) in zip(names(losses), results, strict=True):
        metrics |= {f"{name}/{key}": value for key, value in of_one.items()}
    weighted = [weight * values for weight, (values, _) in zip(weights, results, strict=True)]
    return functools.reduce(operator.add, weighted), metrics


def names(losses: tuple[Callable[..., Any], ...]) -> list[str]:
    """Names each loss as ``file.function``, with a number if it occurs again."""
    out: list[str] = []
    plain = [x.func if isinstance(x, functools.partial) else x for x in losses]
    for i, loss in enumerate(plain):
        again = plain[:i].count(loss)
        number = f"_{again + 1}" if again else ""
        out.append(f"{loss.__module__.rpartition('.')[2]}.{loss.__name__}{number}")
    return out
