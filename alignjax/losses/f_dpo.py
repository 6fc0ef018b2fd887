"""f-DPO: DPO with a divergence from the reference other than the reverse KL.

================================  ==========================================================
paper                             code
================================  ==========================================================
u = pi_theta / pi_ref             ``exp(of(logps))``
f'(u)                             `forward_kl`, `jensen_shannon`, `alpha`: an ``implicit``
alpha                             ``alpha``
beta                              ``beta`` of the loss
================================  ==========================================================

A policy that maximises the reward minus beta times a divergence has the implicit reward beta f'(u)
up to a constant, so the divergence changes only the implicit reward. Any loss that takes
``implicit`` can use these functions: ``partial(exo.loss, implicit=f_dpo.forward_kl)``. Where policy
equals reference each is 0 and has slope 1 in the log-ratio, `jensen_shannon` 1/2.

Reference: Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
Divergence Constraints, arXiv 2309.16240; code alecwangcq/f-divergence-dpo.
"""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics

# Nats beyond which exponentials continue as a straight line; their square is finite in float32.
STRAIGHT = 40.0


def forward_kl(logps: Logps, *, of: Implicit = dpo.implicit) -> Array:
    """Computes ``[B, K]`` 1 - 1/u, for the forward KL divergence KL[pi_ref || pi_theta].

    Args:
      logps: ``[B, K]`` nats.
      of: log u, or another reward instead, such as cpo.implicit.
    """
    return 1.0 - exp(-of(logps))


def jensen_shannon(logps: Logps, *, of: Implicit = dpo.implicit) -> Array:
    """Computes ``[B, K]`` log(2 u / (1 + u)), for the Jensen-Shannon divergence; at most log 2.

    Args: as in `forward_kl`.
    """
    ratio = of(logps)
    return jnp.log(2.0) + jax.nn.log_sigmoid(ratio)


def alpha(logps: Logps, *, alpha: float = 0.5, of: Implicit = dpo.implicit) -> Array:
    """Computes ``[B, K]`` (1 - u^-alpha) / alpha: reverse KL as alpha goes to 0, forward KL at 1.

    Args:
      logps, of: as in `forward_kl`.
      alpha: not 0. TRL's ``f_alpha_divergence_coef`` is 1 - alpha.
    """
    return (1.0 - exp(-alpha * of(logps))) / alpha


def loss(
    logps: Logps, batch: Batch, *, beta: float = 0.1, implicit: Implicit = jensen_shannon
) -> tuple[Array, Metrics]:
    """Fits pairs by Bradley-Terry maximum likelihood, under another divergence.

    Eq. 11, u_w and u_l the ratios pi_theta / pi_ref of the pair::

        loss = -log sigma(beta f'(u_w) - beta f'(u_l))

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: strength of the divergence, reward per unit of f'; > 0.
      implicit: f', one of the functions here.

    Returns:
      ``[B]`` losses in nats, log 2 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config), or there is no reference
        (``reference.mode``).

    Differs from the paper: a constant is added to f', which cancels in pairs; exponentials continue
    as a straight line beyond 40 nats, so that gradients stay finite.
    From the authors' code: not compared. TRL's ``f_divergence_type`` is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # half of log sigma(1) - log sigma(-3)
    0.2269
    """
    return dpo.loss(logps, batch, beta=beta, implicit=implicit)


def exp(x: Array) -> Array:
    """Computes ``exp(x)``; beyond `STRAIGHT` its tangent there."""
    return jnp.exp(jnp.minimum(x, STRAIGHT)) * (1.0 + jnp.maximum(x - STRAIGHT, 0.0))
