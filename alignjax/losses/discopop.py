"""DiscoPOP: a loss found by a language model, exponential for correctly ordered pairs."""

import jax
import jax.numpy as jnp

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 0.1,
    temperature: float = 0.05,
    implicit: Implicit = dpo.implicit,
) -> tuple[Array, Metrics]:
    """Mixes the logistic and the exponential loss of a pair by the size of its margin.

    The log-ratio modulated loss, Eq. 5, with m = beta (T_w - T_l)::

        loss = -(1 - g) log sigma(m) + g exp(-m),   g = sigma(m / tau)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    T = log pi_theta / pi_ref         ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    tau                               ``temperature``
    ================================  ======================================

    **It is not monotone.** With tau = 0.05 its slope is positive for margins from -0.118 to 0.072:
    where policy equals reference, a step makes the margin smaller. Pairs to the left of this hump
    do not get over it.

    Args:
      logps: ``[B, 2]`` nats.
      batch: not read: the chosen response has index 0.
      beta: KL strength, reward per nat; > 0.
      temperature: tau, in the unit of the margin; in (0, 1], otherwise the exponential term is
        unbounded for wrongly ordered pairs. The paper's is 0.05.
      implicit: T, or another reward per unit of beta, as in dpo.loss.

    Returns:
      ``[B]`` losses in nats, (1 + log 2) / 2 where policy equals reference; `dpo.pair_metrics`.

    Raises:
      ValueError: temperature is a number outside (0, 1] (``loss.temperature``); K is not 2 (set
        ``select`` in the config), or there is no reference (``reference.mode``).

    Differs from the paper: no.
    From the authors' code: not compared. TRL's loss_type "discopop" is the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs(policy=[[-4.0, -9.0]], reference=[[-5.0, -6.0]])
    >>> print(f"{loss(logps, batch, beta=0.5)[0][0]:.4f}")  # g = 1, exp(-2)
    0.1353

    Reference: Lu et al., Discovering Preference Optimization Algorithms with and for Large Language
    Models, arXiv 2406.08414; code SakanaAI/DiscoPOP.
    """
    dpo.check_pairs(logps, "discopop.loss")
    if isinstance(temperature, int | float) and not 0 < temperature <= 1:
        raise ValueError(
            f"discopop.loss: loss.temperature: wanted a number in (0, 1], found {temperature}: "
            "beyond 1 the loss of wrongly ordered pairs is unbounded"
        )
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1]
    towards_logistic = jax.nn.sigmoid(-margin / temperature)
    # g exp(-m) as one exponential, because g times exp(-m) can be 0 times infinity.
    exponential = jnp.exp(jax.nn.log_sigmoid(margin / temperature) - margin)
    losses = exponential - towards_logistic * jax.nn.log_sigmoid(margin)
    return losses, dpo.pair_metrics(reward, logps.policy)
