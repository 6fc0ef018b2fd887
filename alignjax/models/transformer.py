"""The decoder: a scanned stack of layers, and four ways to run it.

``stream``    streams of tokens without padding: training and scoring.
``__call__``  padded rows, for other kernels: the prompt once, and all K responses.
``prefill``   the prompt only; caches its keys and values.
``decode``    one more token of each of the K responses, with the cache.

Parameters are a plain nested dict; ``sharding.py`` finds them by path. `layer` defines a layer.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from alignjax.errors import UserError
from alignjax.models import layout, tiles
from alignjax.models.attention import TILE, rope_frequencies
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.models.layer import Layer, RMSNorm, View, dtypes
from alignjax.models.stream import Stream
from alignjax.types import Array, Params

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Keys and values are small if several queries share them, and cost two products and a rotation.
    # A fused kernel's output is large, but without it all scores would be recomputed.
    "kv": jax.checkpoint_policies.save_only_these_names("key", "value", "attended"),
}


@flax.struct.dataclass(kw_only=True)
class Cache:
    """Keys and values of every layer while sampling; the prompt's once for all responses.

    Heads come before tokens, as the products of attention read them: otherwise the cache would be
    transposed at every token.
    """

    prompt_key: Array  # [L, B, G, P, D]
    prompt_value: Array
    key: Array  # [L, B, K, G, S, D], filled up to the current position; S is R, or R rounded up
    value: Array  # to whole tiles of `attention.TILE`


class Transformer(nn.Module):
    """The decoder without its output projection, which ``logps.py`` applies in chunks."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.width**-0.5)
        self.embed = nn.Embed(c.vocab_size, c.width, embedding_init=init, **dtypes(c))
        layer = Layer
        if c.remat != "none":
            layer = nn.remat(Layer, policy=_POLICIES[c.remat], prevent_cse=False)
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),
            length=c.layers,
            check_constancy_invariants=False,  # the check would trace a layer twice
        )(c)
        self.norm = RMSNorm(c.norm_eps, c.norm_plus_one, **dtypes(c))
        if not c.tied_embeddings:
            shape = (c.vocab_size, c.width)
            self.head = self.param("head", init, shape, jnp.dtype(c.param_dtype))

    def _angles(self, position: Array) -> dict[str, Array | None]:
        """Computes the rotary angles of a `View`: for all layers, and for those with a window."""
        c = self.config

        def angle(theta: float, scaling: RopeScaling | None) -> Array:
            frequency = rope_frequencies(c.head_dim, theta, scaling)
            return position[..., None].astype(jnp.float32) * frequency

        local = c.window_rope_theta
        return dict(
            angle=angle(c.rope_theta, c.rope_scaling),
            window_angle=None if local is None else angle(local, None),
        )

    def _through(
        self, tokens: Array, view: View, cache: tuple[Array, ...] | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Runs all layers on ``[B, S]`` tokens; returns ``[B, S, width]`` states, and the cache."""
        c = self.config
        x = layout.looked_up(self.embed(tokens))
        if c.scaled_embeddings:
            x = x * jnp.asarray(c.width**0.5, x.dtype)
        full = None
        if c.full_every:
            full = jnp.arange(c.layers) % c.full_every == c.full_every - 1
        return self.layers(x, view, cache, full)

    def stream(self, stream: Stream, which: str) -> Array:
        """Computes normalised states at some tokens of streams.

        Args:
          stream: the tokens.
          which: ``before``: the tokens before each response token, whose states predict it,
            ``[S, T, width]``; ``last``: the last token of each response, ``[B, K, width]``.
        """
        seen = stream.seen
        listed = jax.vmap(tiles.pairs)(seen)
        view = View(
            **self._angles(seen.position),
            stream=(seen, jax.tree.map(layout.of_rows, listed)),
            row=stream.row,
            number=stream.number,
        )
        x, _ = self._through(stream.token, view, None)
        x, at = layout.whole(x), getattr(stream, which)
        x = jnp.take_along_axis(x, at.reshape(len(x), -1)[..., None], axis=1)
        return self.norm(x.reshape(*at.shape, -1))

    def __call__(self, prompt: Array, prompt_length: Array, response: Array) -> Array:
        """Computes the states that predict the response tokens; the prompt runs once.

        Args:
          prompt: ``[B, P]`` int32, left-padded with any ids.
          prompt_length: ``[B]`` int32, at least 1.
          response: ``[B, K, R]`` int32, right-padded with ids of the vocabulary.

        Returns:
          ``[B, K, R, width]``: entry t is the normalised state *before* response token t, so its
          projection to the vocabulary gives that token's distribution.
        """
        b, k, r = response.shape
        p = prompt.shape[1]
        x = self._run(prompt, prompt_length, response)
        last = jnp.broadcast_to(x[:, None, p - 1 : p], (b, k, 1, x.shape[-1]))
        x = jnp.concatenate([last, x[:, p:].reshape(b, k, r, -1)[:, :, :-1]], axis=2)
        return self.norm(x)

    def last(
        self, prompt: Array, prompt_length: Array, response: Array, response_length: Array
    ) -> Array:
        """Computes the states at the last token of every response; the prompt runs once.

        Args:
          prompt, prompt_length, response: as in ``__call__``.
          response_length: ``[B, K]`` int32.

        Returns:
          ``[B, K, width]``, normalised; meaningless where the length is 0.
        """
        b, k, r = response.shape
        x = self._run(prompt, prompt_length, response)[:, prompt.shape[1] :].reshape(b, k, r, -1)
        index = jnp.maximum(response_length - 1, 0)[..., None, None]
        return self.norm(jnp.take_along_axis(x, index, axis=2)[:, :, 0])

    def _run(self, prompt: Array, prompt_length: Array, response: Array) -> Array:
        """Computes the states of all tokens, ``[B, P + K*R, width]``, not normalised."""
        b, k, r = response.shape
        p = prompt.shape[1]
        check_length(self.config, p + r)
        before = prompt_positions(prompt_length, p)
        after = prompt_length[:, None] + jnp.arange(r)
        position = jnp.concatenate([before, jnp.tile(after, (1, k))], axis=1)
        view = View(
            **self._angles(position),
            prompt_mask=before >= 0,
            prompt_tokens=p,
            responses=k,
            row=jnp.broadcast_to(jnp.arange(b)[:, None], position.shape),
            number=_numbers(before, k, r),
        )
        prompt = jnp.where(view.prompt_mask, prompt, 0)
        tokens = jnp.concatenate([prompt, response.reshape(b, k * r)], axis=1)
        x, _ = self._through(tokens, view, None)
        return layout.whole(x)

    def prefill(self, prompt: Array, prompt_length: Array, k: int, r: int) -> tuple[Array, Cache]:
        """Runs the prompt and makes room for K responses of R tokens.

        Returns:
          ``[B, width]`` state that predicts the first response token, and the cache.
        """
        b, p = prompt.shape
        check_length(self.config, p + r)
        position = prompt_positions(prompt_length, p)
        view = View(
            **self._angles(position), prompt_mask=position >= 0, prompt_tokens=p, responses=1
        )
        tokens = jnp.where(view.prompt_mask, prompt, 0)
        x, kept = self._through(tokens, view, None)
        prompt_key, prompt_value = (jnp.swapaxes(y, 2, 3) for y in kept)
        layers, _, groups, _, size = prompt_key.shape
        places = r if r <= TILE else -(-r // TILE) * TILE
        room = jnp.zeros((layers, b, k, groups, places, size), prompt_key.dtype)
        cache = Cache(prompt_key=prompt_key, prompt_value=prompt_value, key=room, value=room)
        return self.norm(x[:, -1]), cache

    def decode(
        self, token: Array, prompt_length: Array, position: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """Runs one more token of every response.

        Args:
          token: ``[B, K]`` int32, the response tokens at ``position``.
          prompt_length: ``[B]`` int32.
          position: int32 scalar, 0 for the first response token.
          cache: from `prefill` or the last `decode`.

        Returns:
          ``[B, K, width]`` states that predict the next token, and the cache.
        """
        p = cache.prompt_key.shape[3]
        view = View(
            **self._angles(jnp.broadcast_to(prompt_length[:, None] + position, token.shape)),
            prompt_mask=prompt_positions(prompt_length, p) >= 0,
            position=position,
            kept=(cache.key, cache.value),
            prompt_tokens=0,
            responses=token.shape[1],
        )
        of_layer = (cache.prompt_key, cache.prompt_value, jnp.arange(self.config.layers))
        x, new = self._through(token, view, of_layer)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(y, z, position, 4)
            for y, z in zip((cache.key, cache.value), new, strict=True)
        )
        return self.norm(x), dataclasses.replace(cache, key=key, value=value)


def check_length(config: ModelConfig, tokens: int) -> None:
    """Refuses sequences so long that dynamic scaling would change the frequencies of a batch.

    Raises:
      UserError: they are longer than the supported length.
    """
    scaling = config.rope_scaling
    if scaling and scaling.kind == "dynamic" and tokens > scaling.original_length:
        raise UserError(
            f"model.rope_scaling: dynamic scaling is supported up to {scaling.original_length} "
            "tokens of prompt and response (max_position_embeddings), where it changes nothing; "
            f"found {tokens}, where the longest sequence of a batch would change all others"
        )


def prompt_positions(prompt_length: Array, p: int) -> Array:
    """Returns positions of left-padded prompt tokens, ``[B, P]``; negative at padding."""
    return jnp.arange(p) - (p - prompt_length[:, None])


def _numbers(before: Array, k: int, r: int) -> Array:
    """Numbers the tokens of padded rows, ``[B, P + K*R]``, as `stream.pack` does."""
    after = ((1 + jnp.arange(k))[:, None] * 2**16 + jnp.arange(r)).reshape(-1)
    after = jnp.broadcast_to(after, (len(before), k * r))
    return jnp.concatenate([jnp.maximum(before, 0), after], axis=1)


def unembedding(params: Params, config: ModelConfig) -> Array:
    """Returns the ``[vocab, width]`` output projection of a parameter tree.

    With tied embeddings it is the embedding, or a copy that is sharded for this product, see
    `sharding.unshard_weights`.
    """
    if config.tied_embeddings and "head" not in params:
        return params["embed"]["embedding"]
    return params["head"]


def init_params(config: ModelConfig, key: Array) -> Params:
    """Initialises parameters as a nested dict."""
    token = jnp.zeros((1, 1), jnp.int32)
    length = jnp.ones((1,), jnp.int32)
    return Transformer(config).init(key, token, length, token[:, None])["params"]
