"""Simple Preference Optimization: the mean log-probability per token as reward, no reference."""

from alignjax.losses import dpo
from alignjax.types import Array, Batch, Implicit, Logps, Metrics


def implicit(logps: Logps) -> Array:
    """Returns ``[B, K]`` implicit rewards per unit of beta: log pi_theta per token; 0 if absent.

    In other losses it replaces the reference: ``partial(hps.loss, implicit=simpo.implicit)``.
    """
    return logps.per_token


def loss(
    logps: Logps,
    batch: Batch,
    *,
    beta: float = 2.0,
    gamma_beta_ratio: float = 0.25,
    label_smoothing: float = 0.0,
    implicit: Implicit = implicit,
) -> tuple[Array, Metrics]:
    """Makes the chosen response likelier per token than the rejected one, by a margin.

    Eq. 6, s the log-probability of a response and |y| its tokens, with label smoothing e::

        loss = -(1 - e) log sigma(m) - e log sigma(-m)
        m    = beta s_w / |y_w| - beta s_l / |y_l| - gamma

    ================================  ======================================
    paper                             code
    ================================  ======================================
    log pi_theta(y|x) / |y|           ``implicit(logps)``
    y_w, y_l                          response 0 (chosen), 1 (rejected)
    beta                              ``beta``
    gamma                             ``beta * gamma_beta_ratio``
    e                                 ``label_smoothing``
    ================================  ======================================

    Args:
      logps: ``[B, 2]`` nats, with ``length``; the reference is not read, so the config may have
        ``reference.mode="none"``.
      batch: not read: the chosen response has index 0.
      beta: reward per nat per token; > 0.
      gamma_beta_ratio: the margin in nats per token; >= 0.
      label_smoothing: probability that a label is wrong, in [0, 0.5); 0 is Eq. 6.
      implicit: reward per unit of beta.

    Returns:
      ``[B]`` losses in nats; `dpo.pair_metrics`, whose margins do not subtract gamma.

    Raises:
      ValueError: K is not 2 (set ``select`` in the config).

    Differs from the paper: no; it has gamma itself as a hyperparameter.
    From the authors' code: no; names and defaults are the same.

    >>> from alignjax.testing import loss_inputs
    >>> logps, batch = loss_inputs([[-4.0, -9.0]], length=[[4, 3]])
    >>> print(f"{loss(logps, batch, beta=2.0, gamma_beta_ratio=1.0)[0][0]:.4f}")
    0.1269

    Reference: Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward,
    arXiv 2405.14734; code princeton-nlp/SimPO@1b3e8f3, scripts/simpo_trainer.py.
    """
    dpo.check_pairs(logps, "simpo.loss")
    reward = beta * implicit(logps)
    margin = reward[:, 0] - reward[:, 1] - beta * gamma_beta_ratio
    return dpo.logistic(margin, label_smoothing), dpo.pair_metrics(reward, logps.policy)
