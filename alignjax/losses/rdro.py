"""Direct density ratio optimization by the relative ratio: unpaired labels, consistent for p+.

================================  ==========================================================
paper                             code
================================  ==========================================================
p+, p-                            distributions of desirable and undesirable responses
p_ref = alpha p+ + (1-alpha) p-   the reference: it must fit *all* responses
T = log pi_theta / p_ref          ``logps.log_ratio``; r_theta = exp(T) models p+ / p_ref
D+, D- of N and M responses       ``batch.desirable`` where ``batch.present``
alpha                             ``alpha``; by default ``desirable_fraction``
N / (N + M)                       ``desirable_fraction``, of the training data, not of a batch
================================  ==========================================================

Reference: Relative Density Ratio Optimization, arXiv 2604.04410. Written from its equations; its
published code was not used.
"""

import numbers

import jax
import jax.numpy as jnp

from alignjax.types import Array, Batch, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    alpha: float | None = None,
    desirable_fraction: float | None = None,
    reduction: str = "class_mean",
) -> tuple[Array, Metrics]:
    """Fits pi_theta / p_ref to the bounded ratio p+ / p_ref, so that pi_theta tends to p+.

    Eq. 18, class-wise means over the data, with sp = softplus::

        loss = (1/N) sum_{D+} [(1 + alpha) sp(T) - T] + (1/M) sum_{D-} (1 - alpha) sp(T)

    A row's loss is the sum over its responses: the bracket times 1/f for desirable ones and
    (1 - alpha) sp(T) times 1/(1 - f) for the others, f the data's desirable fraction. Its mean over
    random batches is Eq. 18, even if some batches have only one class. Rows of several responses
    give Eq. 18 times the mean number of responses in a row: 1 for unpaired data, and for lists a
    constant, which does not change the optimum. The gradient with respect to T is in (-1, alpha)
    (desirable, 0 at T = log(1/alpha)) or (0, 1 - alpha), before the class weight.

    Args:
      logps: ``[B, K]`` nats, any K.
      batch: ``desirable [B, K]``; absent responses do not count.
      alpha: share of p+ in the reference, in (0, 1); None: ``desirable_fraction``.
      desirable_fraction: desirable share of the training responses, in (0, 1). The recipe binds it.
      reduction: ``class_mean``, Eq. 18; or ``batch_mean``, weight 1 for every response, the mean
        over a mixed batch that published runs minimise. Its pointwise minimiser is
        ``pi_theta / p_ref = f p+ / (f alpha p+ + (1 - f) (1 - alpha) p-)``, which is p+ only if
        f = 1/2; a policy, which must sum to 1, is still farther from p+ (docs/papers/rdro.md).

    Returns:
      ``[B]`` losses in nats; `label_metrics`. Where policy equals reference, the loss of a response
      is (1 + alpha) log 2 (desirable) or (1 - alpha) log 2, times its class weight.

    Raises:
      ValueError: the data have no labels (``data.source``), there is no reference
        (``reference.mode``), ``desirable_fraction`` is not given, or a value is out of range.

    Differs from the paper: no. Weights give the class-wise means, so that each batch is unbiased.
    From the authors' code: not compared. According to the paper its runs average over the mixed
    batch: ``reduction="batch_mean"``.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-4.0], [-9.0]], [[-5.0], [-6.0]], desirable=[[True], [False]])
    >>> print("{:.4f} {:.4f}".format(*loss(*case, desirable_fraction=0.5)[0]))
    1.9398 0.0486
    """
    labels = desirable(batch, "rdro.loss")
    alpha = mixture(alpha, desirable_fraction, "rdro.loss")
    ratio = logps.log_ratio
    # sp(-T) + alpha sp(T) equals (1 + alpha) sp(T) - T without a difference of large numbers.
    good = jax.nn.softplus(-ratio) + alpha * jax.nn.softplus(ratio)
    terms = jnp.where(labels, good, (1 - alpha) * jax.nn.softplus(ratio))
    weights = class_weights(batch, desirable_fraction, reduction, "rdro.loss")
    return (weights * terms).sum(axis=1), label_metrics(ratio, batch)


def desirable(batch: Batch, loss_name: str) -> Array:
    """Returns ``[B, K]`` bool labels.

    Raises:
      ValueError: the data have none, or not one for every response.
    """
    if batch.desirable is None:
        raise ValueError(
            f"{loss_name}: wanted a label for every response, found none: use a source that has "
            "`desirable` (sources.unpaired, world.unpaired, or sources.trl on rows with `label`), "
            "or a pair loss such as dpo.loss"
        )
    labels, responses = batch.desirable.shape[1], batch.response_length.shape[1]
    if labels != responses:
        raise ValueError(
            f"{loss_name}: wanted a label for each of {responses} responses, found {labels}: "
            "`select` appends responses for another loss (kto.select: kto.loss)"
        )
    return batch.desirable


def class_weights(
    batch: Batch, desirable_fraction: float | None, reduction: str, loss_name: str
) -> Array:
    """Computes ``[B, K]`` weights that turn a mean over responses into a sum of class-wise means.

    Args:
      batch: ``desirable [B, K]``.
      desirable_fraction: f, of the whole training data.
      reduction: ``class_mean``: 1/f for desirable and 1/(1 - f) for undesirable responses;
        ``batch_mean``: 1. Absent responses get 0.
      loss_name: for messages.

    Raises:
      ValueError: there are no labels, the fraction is missing or wrong, or reduction is another.
    """
    labels = desirable(batch, loss_name)
    fraction = _fraction(desirable_fraction, loss_name)
    if reduction not in ("class_mean", "batch_mean"):
        raise ValueError(
            f"{loss_name}: reduction: wanted 'class_mean' or 'batch_mean', found {reduction!r}"
        )
    weights: Array = jnp.ones(labels.shape)
    if reduction == "class_mean":
        weights = jnp.where(labels, 1 / fraction, 1 / (1 - fraction))
    return jnp.where(batch.present, weights, 0.0)


def mixture(alpha: float | None, desirable_fraction: float | None, loss_name: str) -> float:
    """Returns the share of p+ in the reference: alpha if given, else the desirable fraction.

    Raises:
      ValueError: neither is given, or it is outside (0, 1).
    """
    if alpha is None:
        return _fraction(desirable_fraction, loss_name)
    return inside_unit(alpha, "alpha", loss_name)


def _fraction(desirable_fraction: float | None, loss_name: str) -> float:
    if desirable_fraction is None:
        raise ValueError(
            f"{loss_name}: wanted desirable_fraction, the desirable share of the training "
            "responses, found none: `alignjax run` binds it from the data; in a direct call pass "
            "desirable_fraction=N / (N + M)"
        )
    return inside_unit(desirable_fraction, "desirable_fraction", loss_name)


def inside_unit(value: float, name: str, loss_name: str) -> float:
    """Checks that a value lies in (0, 1) and returns it; a traced one is not checked.

    Raises:
      ValueError: it does not.
    """
    if isinstance(value, numbers.Real) and not 0 < value < 1:
        raise ValueError(f"{loss_name}: {name}: wanted a number in (0, 1), found {value}")
    return value


def label_metrics(log_ratio: Array, batch: Batch) -> Metrics:
    """Computes metrics of labelled responses per row, whose means over rows can be combined.

    Args:
      log_ratio: ``[B, K]`` nats.
      batch: ``desirable [B, K]``.

    Returns:
      Three entries ``[B]``: ``desirable``, the share of the row's responses that are desirable;
      ``log_ratio/desirable`` and ``log_ratio/undesirable``, the sum of T over the class divided by
      the number of all the row's responses. The mean T of desirable responses is then the mean of
      ``log_ratio/desirable`` divided by the mean of ``desirable``; for undesirable ones, divided by
      1 minus that.
    """
    count = jnp.maximum(batch.present.sum(axis=1), 1)
    good = batch.present & desirable(batch, "label_metrics")
    bad = batch.present & ~good
    return {
        "desirable": (good.sum(axis=1) / count).astype(log_ratio.dtype),
        "log_ratio/desirable": jnp.where(good, log_ratio, 0.0).sum(axis=1) / count,
        "log_ratio/undesirable": jnp.where(bad, log_ratio, 0.0).sum(axis=1) / count,
    }
