"""Supervised fine-tuning: fits the responses, without preferences and without a reference."""

import jax.numpy as jnp

from alignjax.types import Array, Batch, Logps, Metrics, take_responses


def loss(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Fits the distribution of the responses, by maximum likelihood.

    Equation (no number in the paper), the mean over a prompt's responses::

        loss = -(1/|Y|) sum_{y in Y} log pi_theta(y|x)

    ================================  ======================================
    paper                             code
    ================================  ======================================
    log pi_theta(y|x)                 ``logps.policy``
    Y                                 the K responses, absent ones left out
    ================================  ======================================

    All K responses have the same weight: for pairs this fits the mixture of chosen and rejected
    responses, the reference that some losses assume (`rdro`). `select` keeps the chosen one.

    Args:
      logps: ``[B, K]`` nats, any K; ``reference`` is not read.
      batch: ``response_length``, 0 for absent responses.

    Returns:
      ``[B]`` losses in nats per response (0 for a prompt without responses), and the metrics
      ``nll`` (the same number) and ``nll_per_token`` (nats per response token, EOS included).

    Differs from the paper: no.
    From the authors' code: none is published. Most trainers average over the tokens of a batch,
    so that long responses have more weight; here each prompt has weight 1.

    >>> from alignjax.testing import loss_inputs
    >>> losses, metrics = loss(*loss_inputs([[-6.0, -2.0]], length=[[3, 1]]))
    >>> print(losses, metrics["nll_per_token"])
    [4.] [2.]

    Reference: Ouyang et al., Training language models to follow instructions with human
    feedback, arXiv 2203.02155, step 1.
    """
    nll = -jnp.where(batch.present, logps.policy, 0.0).sum(axis=1)
    responses = jnp.maximum(batch.present.sum(axis=1), 1)  # 1 without responses: 0 / 1
    tokens = jnp.maximum(logps.length.sum(axis=1), 1)
    losses = nll / responses
    return losses, {"nll": losses, "nll_per_token": nll / tokens}


def loss_chosen(logps: Logps, batch: Batch) -> tuple[Array, Metrics]:
    """Fits the chosen response of a pair, as a term of other losses: see `mixed`, `rpo`.

    Equation (no number in the paper), the mean over the tokens of response 0::

        loss = -log pi_theta(y_w|x) / |y_w|

    ================================  ======================================
    paper                             code
    ================================  ======================================
    log pi_theta(y_w|x) / |y_w|       ``logps.per_token[:, 0]``
    ================================  ======================================

    Args:
      logps: ``[B, K]`` nats, any K; only index 0 is read, and no ``reference``.
      batch: not read.

    Returns:
      ``[B]`` losses in nats per token, 0 where the response is absent; ``nll_per_token``, the same.

    Differs from the paper: per token, as in pair trainers.
    From the authors' code: none is published. TRL's DPO loss_type "sft" averages over all chosen
    tokens of a batch; here each prompt has weight 1.

    >>> from alignjax.testing import loss_inputs
    >>> print(loss_chosen(*loss_inputs([[-6.0, -2.0]], length=[[3, 1]]))[0])
    [2.]

    Reference: as `loss`, arXiv 2203.02155.
    """
    del batch
    losses = -logps.per_token[:, 0]
    return losses, {"nll_per_token": losses}


def select(key: Array, batch: Batch) -> Batch:
    """Keeps the chosen response of a pair (index 0), which saves the others' forward pass.

    Args:
      key: not used, nothing is random.
      batch: K >= 1 responses per prompt.

    Returns:
      The batch with K' = 1.
    """
    del key
    return take_responses(batch, jnp.zeros((batch.weight.shape[0], 1), jnp.int32))
