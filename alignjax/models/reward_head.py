"""A reward model: the decoder with a linear head instead of the vocabulary's projection.

The head has no bias (a constant cancels when two responses are compared) and reads the state at the
**last response token, EOS included**. The authors' code of APO reads the token before EOS. Both see
the whole text; EOS also shows that the response ended and was not cut. The prompt runs once for all
K responses.

Its parameters are the decoder's, without the vocabulary's projection, and ``reward/kernel``
``[width, M]`` for M objectives.

Reference: Cheng et al., Adversarial Preference Optimization, arXiv 2311.08045; code
Linear95/APO. For reward models first in Stiennon et al., arXiv 2009.01325.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from alignjax.models import kernels, logps, stream, transformer
from alignjax.models.config import ModelConfig
from alignjax.models.transformer import Transformer
from alignjax.types import Array, Batch, Params, check_shapes


def response_scores(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Scores every response, larger is better.

    Args:
      params: of a reward model, see `from_language_model`.
      batch: B prompts with K responses each.
      config: the decoder's shape.

    Returns:
      ``[B, K]`` float32, or ``[B, K, M]`` for M > 1 objectives; 0 for absent responses (length 0).
    """
    # Padding may hold any id, and runs as id 0, as in logps.py.
    check_shapes(batch)
    decoder = Transformer(_without_vocabulary(config))
    variables = {"params": {name: x for name, x in params.items() if name != "reward"}}
    hidden: Any
    if kernels.of_array(config, batch.prompt) == "tiles":
        packed = stream.pack(batch)
        hidden = decoder.apply(variables, packed, "last", method=Transformer.stream)
    else:
        mask = jnp.arange(batch.response.shape[-1]) < batch.response_length[..., None]
        hidden = decoder.apply(
            variables,
            batch.prompt,
            batch.prompt_length,
            jnp.where(mask, batch.response, 0),
            batch.response_length,
            method=Transformer.last,
        )
    kernel = params["reward"]["kernel"]
    scores = jnp.einsum(
        "bkd,dm->bkm", hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    scores = jnp.where(batch.present[..., None], scores, 0.0)
    return scores[..., 0] if kernel.shape[1] == 1 else scores


@functools.partial(jax.jit, static_argnames="config")
def score_responses(params: Params, batch: Batch, *, config: ModelConfig) -> Array:
    """Computes `response_scores` outside a training step, as a program of its own."""
    function = functools.partial(response_scores, params, config=config)
    scores: Array = logps.in_parts(function, batch, config)
    return scores


def from_language_model(params: Params, *, objectives: int = 1) -> Params:
    """Makes a reward model from a language model: its decoder, and a head of zeros.

    Every response then scores 0.

    Args:
      params: the language model's parameters.
      objectives: M, outputs of the head.
    """
    decoder = {name: x for name, x in params.items() if name != "head"}
    scale = params["norm"]["scale"]
    return {**decoder, "reward": {"kernel": jnp.zeros((len(scale), objectives), scale.dtype)}}


def init_params(config: ModelConfig, key: Array, *, objectives: int = 1) -> Params:
    """Initialises a reward model: a random decoder and a head of zeros."""
    return from_language_model(transformer.init_params(config, key), objectives=objectives)


def _without_vocabulary(config: ModelConfig) -> ModelConfig:
    """Returns the config of the decoder only: tied embeddings have no projection of their own."""
    if config.tied_embeddings:
        return config
    return dataclasses.replace(config, tied_embeddings=True)
