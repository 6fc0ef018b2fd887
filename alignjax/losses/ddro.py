"""Direct Density Ratio Optimization: p-/p+ from unpaired labels, as stated in the RDRO paper.

================================  ==========================================================
paper                             code
================================  ==========================================================
p+, p-, p_ref, alpha, N, M        as in `alignjax.losses.rdro`
rho = pi_theta / p_ref            ``exp(logps.log_ratio)``
g_theta, a model of p- / p+       ``exp`` of `log_g`
S(t) = log sigma(t)               ``loss_log_sigmoid``
================================  ==========================================================

g is positive only for rho < 1/alpha. Here it is clamped from below at ``CLAMP``, this project's
choice: beyond, the loss of a response is constant, and even an undesirable one has **no gradient**.
The paper adds beta KL(p_theta || p_ref) to the value and not to the gradient, so it is not computed
here.

Reference: Higuchi and Suzuki, Direct Density Ratio Optimization, arXiv 2505.07558, in the
equations 3-11 and appendix E of arXiv 2604.04410.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import rdro
from alignjax.types import Array, Batch, Logps, Metrics

CLAMP = 1e-6  # smallest g


def loss(
    logps: Logps,
    batch: Batch,
    *,
    alpha: float | None = None,
    desirable_fraction: float | None = None,
    reduction: str = "class_mean",
) -> tuple[Array, Metrics]:
    """Fits the ratio p-/p+ that the policy implies by a Bregman divergence; minimiser p+.

    L_DRE (RDRO Eq. 3-9), class-wise means over the data::

        loss = (1/N) sum_{D+} log(1 + g) + (1/M) sum_{D-} log(1 + 1/g)

        g = (1/rho - alpha) / (1 - alpha)

    Unbounded where the supports differ: as rho tends to 1/alpha, log(1 + 1/g) grows to -log of the
    clamp and its gradient to about alpha / ((1 - alpha) clamp).

    Args:
      logps: ``[B, K]`` nats, any K.
      batch: ``desirable [B, K]``; absent responses do not count.
      alpha: share of p+ in the reference, in (0, 1); None: ``desirable_fraction``.
      desirable_fraction: desirable share of the training responses, in (0, 1). The recipe binds it.
      reduction: ``class_mean``, the equation, by the weights of `rdro.loss`; or ``batch_mean``,
        weight 1 for every response, which fits g to (1 - f) p- / (f p+) instead, f the
        desirable fraction.

    Returns:
      ``[B]`` losses in nats, summed over a row's responses: log 2 times the class weight for each
      where policy equals reference; `rdro.label_metrics` and ``clamped``, the share at the clamp.

    Raises:
      ValueError: as `rdro.loss`.

    Differs from the paper: g is clamped; the KL term, which has no gradient there, is left out.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-5.5], [-9.0]], [[-5.0], [-6.0]], desirable=[[True], [False]])
    >>> print("{:.4f} {:.4f}".format(*loss(*case, desirable_fraction=0.5)[0]))
    2.3863 0.0504
    """
    return _weighted(logps, batch, alpha, desirable_fraction, reduction, transform=False)


def loss_log_sigmoid(
    logps: Logps,
    batch: Batch,
    *,
    alpha: float | None = None,
    desirable_fraction: float | None = None,
    reduction: str = "class_mean",
) -> tuple[Array, Metrics]:
    """Fits the same ratio with each term passed through S(t) = log sigma(t), as in practice.

    The loss of the published runs (RDRO Eq. 10-11)::

        loss = (1/N) sum_{D+} S(log(1 + g)) + (1/M) sum_{D-} S(log(1 + 1/g))

    It is bounded and **not consistent**: for g* = p-/p+ in (1/2, 2) the pointwise minimiser is
    g = (2 g* - 1) / (2 - g*), below it 0 and above it infinite, so it is right only at g* = 1.

    Args:
      logps: ``[B, K]`` nats, any K.
      batch: ``desirable [B, K]``; absent responses do not count.
      alpha: share of p+ in the reference, in (0, 1); None: ``desirable_fraction``.
      desirable_fraction: desirable share of the training responses, in (0, 1). The recipe binds it.
      reduction: as in `loss`.

    Returns:
      ``[B]`` losses in nats, negative: log(2/3) times the class weight for each response where
      policy equals reference; the metrics of `loss`.

    Raises:
      ValueError: as `rdro.loss`.

    Differs from the paper: g is clamped; the KL term, which has no gradient there, is left out.
    From the authors' code: not compared.

    >>> from alignjax.testing import loss_inputs
    >>> case = loss_inputs([[-5.0], [-6.0]], [[-5.0], [-6.0]], desirable=[[True], [False]])
    >>> print(f"{loss_log_sigmoid(*case, desirable_fraction=0.5)[0][0]:.4f}")  # 2 log(2/3)
    -0.8109
    """
    return _weighted(logps, batch, alpha, desirable_fraction, reduction, transform=True)


def _weighted(
    logps: Logps,
    batch: Batch,
    alpha: float | None,
    desirable_fraction: float | None,
    reduction: str,
    *,
    transform: bool,
) -> tuple[Array, Metrics]:
    name = "ddro.loss_log_sigmoid" if transform else "ddro.loss"
    labels = rdro.desirable(batch, name)
    weights = rdro.class_weights(batch, desirable_fraction, reduction, name)
    ratio = logps.log_ratio
    alpha = rdro.mixture(alpha, desirable_fraction, name)
    model = log_g(ratio, alpha)
    terms = jax.nn.softplus(jnp.where(labels, model, -model))
    if transform:
        terms = jax.nn.log_sigmoid(terms)
    at_clamp = batch.present & (model <= log_g(jnp.inf, alpha))
    clamped = at_clamp.sum(axis=1) / jnp.maximum(batch.present.sum(axis=1), 1)
    metrics = rdro.label_metrics(ratio, batch) | {"clamped": clamped.astype(ratio.dtype)}
    return (weights * terms).sum(axis=1), metrics


def log_g(log_ratio: Array | float, alpha: float) -> Array:
    """Computes ``log((1/rho - alpha) / (1 - alpha))``, at least ``log(CLAMP)``.

    It is computed from u = log(alpha rho) < 0, so that no exp(-T) overflows; u is clamped, far from
    its rounding errors.
    """
    edge = -jnp.log1p((1 - alpha) / alpha * CLAMP)  # g = CLAMP
    u = jnp.minimum(log_ratio + jnp.log(alpha), edge)
    return jnp.log(-jnp.expm1(u)) - u + jnp.log(alpha) - jnp.log1p(-alpha)
