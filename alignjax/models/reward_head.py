"""A reward model: the decoder with a linear head where the vocabulary's projection was.

The head is bias-free (a constant cancels in every comparison of two responses) and reads the state
at the **last response token, EOS included**: the one token that has seen all of prompt and
response. The authors' code of APO reads the token before EOS instead. Both see the whole text; EOS
also says that the response ended rather than was cut. The prompt is run once for all K responses.

Its parameters are the decoder's without the vocabulary's projection, and ``reward/kernel``
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
      params: a reward model's, see `from_language_model`.
      batch: B prompts with K responses each.
      config: the decoder's shape.

    Returns:
      ``[B, K]`` float32, or ``[B, K, M]`` for M > 1 objectives; 0 for absent responses (length 0).
    """
    # As in logps.py: padding may hold any id, and is run as id 0.
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
    """Computes `response_scores` outside a training step: a program per batch shape and model."""
    one = functools.partial(response_scores, params, config=config)
    scores: Array = logps.in_parts(one, batch, config)
    return scores


def from_language_model(params: Params, *, objectives: int = 1) -> Params:
    """Makes a reward model out of a language model: its decoder, and a head of zeros.

    Before the first step every response scores 0.

    Args:
      params: the language model's parameters.
      objectives: M.
    """
    decoder = {name: x for name, x in params.items() if name != "head"}
    scale = params["norm"]["scale"]
    return {**decoder, "reward": {"kernel": jnp.zeros((len(scale), objectives), scale.dtype)}}


def init_params(config: ModelConfig, key: Array, *, objectives: int = 1) -> Params:
    """Initialises a reward model: a random decoder and a head of zeros."""
    return from_language_model(transformer.init_params(config, key), objectives=objectives)


def _without_vocabulary(config: ModelConfig) -> ModelConfig:
    """The decoder alone: with tied embeddings it has no projection of its own."""
    if config.tied_embeddings:
        return config
    return dataclasses.replace(config, tied_embeddings=True)
