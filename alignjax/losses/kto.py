"""Kahneman-Tversky Optimization: compares single labelled responses with the policy's own KL.

================================  ==========================================================
paper                             code
================================  ==========================================================
r = log pi_theta / pi_ref         ``logps.log_ratio``
z_0, the KL to the reference      ``max(0, batch.baseline)``: `select` and `baseline`
lambda_D, lambda_U                ``desirable_weight``, ``undesirable_weight``
beta                              ``beta``
================================  ==========================================================

A config sets all three: ``select=kto.select, baseline=kto.baseline, loss=kto.loss``. `select` adds
the response of another prompt to each row, `baseline` returns its log-ratio, and the step averages
it over the whole global batch.

Reference: Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, arXiv
2402.01306.
"""

import dataclasses

import jax
import jax.numpy as jnp

from alignjax.losses import rdro
from alignjax.types import Array, Batch, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Array, Metrics]:
    """Raises the value of desirable responses above the baseline, and lowers that of the others.

    Eq. 8, lambda_y - v, v the value; for a desirable or an undesirable response::

        loss = lambda_D (1 - sigma(beta (r - z_0)))   or   lambda_U (1 - sigma(beta (z_0 - r)))

    Args:
      logps: ``[B, K]`` nats, any K, or ``[B, K + 1]`` after `select`.
      batch: ``desirable [B, K]``; ``baseline [B]`` nats, the mean over the global batch; absent
        responses do not count, and a row's loss is the sum over its responses.
      beta: risk aversion per nat; > 0.
      desirable_weight: lambda_D. The paper recommends lambda_D N / (lambda_U M) in [1, 4/3] for N
        desirable and M undesirable responses; the data report prints both counts.
      undesirable_weight: lambda_U.

    Returns:
      ``[B]`` losses in [0, lambda], lambda/2 for each response where policy equals reference;
      `rdro.label_metrics`. The step logs z_0 before the maximum as ``baseline``.

    Raises:
      ValueError: the data have no labels, there is no baseline (set ``select`` and ``baseline`` to
        `select` and `baseline`), or there is no reference (``reference.mode``).

    Differs from the paper: z_0 is of the whole global batch, not of a micro-batch or a device.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0], [-9.0]], [[-5.0], [-6.0]], desirable=[[1], [0]], baseline=0.5)
    >>> print("{:.4f} {:.4f}".format(*loss(*case, beta=1.0)[0]))
    0.3775 0.0293
    """
    if batch.baseline is None:
        raise ValueError(
            "kto.loss: wanted the baseline of the global batch, found none: set `select` to "
            "kto.select and `baseline` to kto.baseline in the config"
        )
    labels, count = _labels(batch)
    present, ratio = batch.present[:, :count], logps.log_ratio[:, :count]
    z = jax.lax.stop_gradient(jnp.maximum(batch.baseline, 0.0))[:, None]
    advantage = beta * (ratio - z)
    cost = jnp.where(
        labels,
        desirable_weight * jax.nn.sigmoid(-advantage),
        undesirable_weight * jax.nn.sigmoid(advantage),
    )
    own = dataclasses.replace(batch, response_length=batch.response_length[:, :count])
    return jnp.where(present, cost, 0.0).sum(axis=1), rdro.label_metrics(ratio, own)


def implicit(logps: Logps, *, per_token: bool = False) -> Array:
    """Computes KTO's reward l(y) log pi_theta / pi_ref, for losses that take ``implicit``.

    The baseline z_0 cancels in comparisons, so it is left out.

    Args:
      logps: ``[B, K]`` nats.
      per_token: l(y) = 1/|y| instead of 1.

    Returns:
      ``[B, K]`` rewards per unit of beta, in nats, or nats per token.

    Raises:
      ValueError: there is no reference (``reference.mode``).
    """
    return logps.log_ratio / jnp.maximum(logps.length, 1) if per_token else logps.log_ratio


def select(key: Array, batch: Batch) -> Batch:
    """Appends to every row the response of another prompt, for `baseline`.

    It is the first present response of the next row that counts (``weight`` > 0), for the last row
    of the first one. If two neighbouring rows have the same prompt (a data set with several
    labelled responses to it, or the end of one epoch and the start of the next in a batch), the
    response is not mismatched. If only one row counts, the appended response is absent and z_0 is
    0.

    The appended response costs a forward and a backward pass, although its gradient is 0: with
    32 + 64 tokens and K = 1, a step of padded rows in one part (otherwise the baseline takes one
    more forward pass) does 1.73 times the floating-point operations of a step without it, and 2.28
    times those of a step with a cached reference, which cannot be used here
    (tests/losses/kto_test.py counts them). Scoring it separately without a gradient would compute
    the prompt twice and save only a tenth.

    Args:
      key: not used, nothing is random.
      batch: ``desirable [B, K]``.

    Returns:
      The batch with K + 1 responses, the labels still ``[B, K]``, and no ``ref_logps``.

    Raises:
      ValueError: the data have no labels.
    """
    del key
    rdro.desirable(batch, "kto.select")
    counts = batch.weight > 0
    total = counts.sum()
    order = jnp.argsort(~counts, stable=True)  # rows that count come first, in their order
    place = jnp.argsort(order)
    partner = order[jnp.where(place + 1 < total, place + 1, 0)]
    column = jnp.argmax(batch.present[partner], axis=1)
    other = batch.response[partner, column]
    length = jnp.where(counts & (total > 1), batch.response_length[partner, column], 0)
    return dataclasses.replace(
        batch,
        response=jnp.concatenate([batch.response, other[:, None]], axis=1),
        response_length=jnp.concatenate([batch.response_length, length[:, None]], axis=1),
        ref_logps=None,
    )


def baseline(logps: Logps, batch: Batch) -> Array:
    """Returns ``[B]`` log-ratios of the mismatched responses; their mean estimates the KL.

    Raises:
      ValueError: there are none (``select``), no reference or no labels.
    """
    _, count = _labels(batch)
    if logps.policy.shape[1] != count + 1:
        raise ValueError(
            "kto.baseline: wanted the response of another prompt in each row, found none: set "
            "`select` to kto.select in the config"
        )
    return logps.log_ratio[:, -1]


def _labels(batch: Batch) -> tuple[Array, int]:
    """Returns ``[B, K]`` labels and K, since `select` appends a response without a label."""
    if batch.desirable is None:
        return rdro.desirable(batch, "kto.loss"), 0
    return batch.desirable, batch.desirable.shape[1]
