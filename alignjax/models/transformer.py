"""The decoder: one scanned stack of layers, three ways to run it.

``score``   prompt and all K responses in one pass, the prompt once: training and scoring.
``prefill`` the prompt alone, keeping its keys and values.
``decode``  one more token of each of the K responses, against the kept keys and values.

Parameters live in a plain nested dict; ``sharding.py`` names them by path.
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from alignjax.models.attention import attend, rope_frequencies, rotate
from alignjax.models.config import ModelConfig
from alignjax.types import Array, Params

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass(kw_only=True)
class Cache:
    """Keys and values of every layer, kept while sampling."""

    prompt_key: Array  # [L, B, P, G, D]
    prompt_value: Array
    key: Array  # [L, B, K, R, G, D], filled up to the current position
    value: Array


@flax.struct.dataclass(kw_only=True)
class View:
    """What the tokens of one pass see: the same for every layer."""

    angle: Array  # [B, S, D/2] float32, rotary angle of each token
    prompt_mask: Array  # [B, P] bool, True at real prompt tokens
    position: Array | None = None  # int32 scalar: response token being decoded; None in a full pass
    prompt_tokens: int = flax.struct.field(pytree_node=False)  # P in a full pass, 0 while decoding
    responses: int = flax.struct.field(pytree_node=False)  # K


class RMSNorm(nn.Module):
    eps: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * scale.astype(jnp.float32)).astype(self.dtype)


class Layer(nn.Module):
    """One block. ``x`` is ``[B, S, width]`` with the prompt first, then the responses in turn."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, view: View, cache: tuple[Array, ...] | None
    ) -> tuple[Array, tuple[Array, ...]]:
        c = self.config
        types = dict(dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype))

        def dense(name: str, features: int, use_bias: bool = False, scale: float = 1.0) -> nn.Dense:
            init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
            return nn.Dense(features, use_bias=use_bias, kernel_init=init, name=name, **types)

        residual = 1.0 / (2 * c.layers)  # variance of what a block adds, so that depth is harmless
        h = RMSNorm(c.norm_eps, name="attention_norm", **types)(x)

        def heads(name: str, count: int) -> Array:
            y = dense(name, count * c.head_dim, use_bias=c.qkv_bias)(h)
            return y.reshape(*y.shape[:2], count, c.head_dim)

        q, k, v = heads("q", c.heads), heads("k", c.kv_heads), heads("v", c.kv_heads)
        if c.qk_norm:
            q = RMSNorm(c.norm_eps, name="q_norm", **types)(q)
            k = RMSNorm(c.norm_eps, name="k_norm", **types)(k)
        q, k = rotate(q, view.angle), rotate(k, view.angle)
        mixed, kept = _mix(q, k, v, view, cache)
        mixed = mixed.reshape(*x.shape[:2], c.heads * c.head_dim)
        x = x + dense("o", c.width, scale=residual)(mixed)

        h = RMSNorm(c.norm_eps, name="mlp_norm", **types)(x)
        h = nn.silu(dense("gate", c.mlp_width)(h)) * dense("up", c.mlp_width)(h)
        return x + dense("down", c.width, scale=residual)(h), kept


def _mix(
    q: Array, k: Array, v: Array, view: View, cache: tuple[Array, ...] | None
) -> tuple[Array, tuple[Array, ...]]:
    """Attention of one layer over ``[B, S, heads, D]`` tokens laid out as `View` says.

    Returns:
      The mixed values and what a cache keeps: the prompt's keys and values after a full pass, the
      updated cache while decoding.
    """
    b, s = q.shape[:2]
    p, n = view.prompt_tokens, view.responses

    def responses(x: Array) -> Array:  # [B, K*R, heads, D] -> [B, K, R, heads, D]
        return x[:, p:].reshape(b, n, (s - p) // n, *x.shape[2:])

    if cache is not None:  # decoding: one token per response
        assert view.position is not None
        prompt_key, prompt_value, own_key, own_value = cache
        own_key = jax.lax.dynamic_update_slice_in_dim(own_key, responses(k), view.position, 2)
        own_value = jax.lax.dynamic_update_slice_in_dim(own_value, responses(v), view.position, 2)
        mask = jnp.arange(own_key.shape[2])[None, :] <= view.position
        out = attend(
            responses(q),
            own_key,
            own_value,
            mask,
            shared_key=prompt_key,
            shared_value=prompt_value,
            shared_mask=view.prompt_mask,
        )
        return out, (prompt_key, prompt_value, own_key, own_value)

    prompt_k, prompt_v = k[:, :p], v[:, :p]
    causal = jnp.tril(jnp.ones((p, p), bool)) & view.prompt_mask[:, None, None, :]
    out = attend(q[:, None, :p], prompt_k[:, None], prompt_v[:, None], causal)[:, 0]
    if s > p:
        r = (s - p) // n
        tail = attend(
            responses(q),
            responses(k),
            responses(v),
            jnp.tril(jnp.ones((r, r), bool)),
            shared_key=prompt_k,
            shared_value=prompt_v,
            shared_mask=view.prompt_mask,
        )
        out = jnp.concatenate([out, tail.reshape(b, s - p, *tail.shape[3:])], axis=1)
    return out, (prompt_k, prompt_v)


class Transformer(nn.Module):
    """The decoder without its output projection, which ``logps.py`` applies in chunks."""

    config: ModelConfig

    def setup(self) -> None:
        c = self.config
        types = dict(dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype))
        self.embed = nn.Embed(
            c.vocab_size, c.width, embedding_init=nn.initializers.normal(c.width**-0.5), **types
        )
        layer = Layer
        if c.remat != "none":
            layer = nn.remat(Layer, policy=_POLICIES[c.remat], prevent_cse=False)
        self.layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.layers,
        )(c)
        self.norm = RMSNorm(c.norm_eps, **types)
        if not c.tied_embeddings:
            self.head = self.param(
                "head",
                nn.initializers.normal(c.width**-0.5),
                (c.vocab_size, c.width),
                jnp.dtype(c.param_dtype),
            )

    def _angle(self, position: Array) -> Array:
        c = self.config
        frequency = rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        return position[..., None].astype(jnp.float32) * frequency

    def __call__(self, prompt: Array, prompt_length: Array, response: Array) -> Array:
        """Hidden states that predict the response tokens; the prompt is run once.

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
        """States at the last token of every response, all of it read; the prompt is run once.

        Args:
          prompt, prompt_length, response: as for a call.
          response_length: ``[B, K]`` int32.

        Returns:
          ``[B, K, width]``, normalised; meaningless where the length is 0.
        """
        b, k, r = response.shape
        x = self._run(prompt, prompt_length, response)[:, prompt.shape[1] :].reshape(b, k, r, -1)
        index = jnp.maximum(response_length - 1, 0)[..., None, None]
        return self.norm(jnp.take_along_axis(x, index, axis=2)[:, :, 0])

    def _run(self, prompt: Array, prompt_length: Array, response: Array) -> Array:
        """``[B, P + K*R, width]`` states at every token, not normalised."""
        b, k, r = response.shape
        p = prompt.shape[1]
        before = prompt_positions(prompt_length, p)
        after = prompt_length[:, None] + jnp.arange(r)
        position = jnp.concatenate([before, jnp.tile(after, (1, k))], axis=1)
        view = View(
            angle=self._angle(position),
            prompt_mask=before >= 0,
            prompt_tokens=p,
            responses=k,
        )
        prompt = jnp.where(view.prompt_mask, prompt, 0)
        tokens = jnp.concatenate([prompt, response.reshape(b, k * r)], axis=1)
        x, _ = self.layers(self.embed(tokens), view, None)
        return x

    def prefill(self, prompt: Array, prompt_length: Array, k: int, r: int) -> tuple[Array, Cache]:
        """Runs the prompt and makes room for K responses of R tokens.

        Returns:
          ``[B, width]`` state that predicts the first response token, and the cache.
        """
        b, p = prompt.shape
        position = prompt_positions(prompt_length, p)
        view = View(
            angle=self._angle(position), prompt_mask=position >= 0, prompt_tokens=p, responses=1
        )
        tokens = jnp.where(view.prompt_mask, prompt, 0)
        x, (prompt_key, prompt_value) = self.layers(self.embed(tokens), view, None)
        room = jnp.zeros((prompt_key.shape[0], b, k, r, *prompt_key.shape[3:]), prompt_key.dtype)
        cache = Cache(prompt_key=prompt_key, prompt_value=prompt_value, key=room, value=room)
        return self.norm(x[:, -1]), cache

    def decode(
        self, token: Array, prompt_length: Array, position: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """One more token of every response.

        Args:
          token: ``[B, K]`` int32, response token number ``position``.
          prompt_length: ``[B]`` int32.
          position: int32 scalar, counted from the first response token.
          cache: as `prefill` or the last `decode` returned it.

        Returns:
          ``[B, K, width]`` states that predict the next token, and the cache.
        """
        p = cache.prompt_key.shape[2]
        angle = self._angle(jnp.broadcast_to(prompt_length[:, None] + position, token.shape))
        view = View(
            angle=angle,
            prompt_mask=prompt_positions(prompt_length, p) >= 0,
            position=position,
            prompt_tokens=0,
            responses=token.shape[1],
        )
        old = (cache.prompt_key, cache.prompt_value, cache.key, cache.value)
        x, (_, _, key, value) = self.layers(self.embed(token), view, old)
        return self.norm(x), dataclasses.replace(cache, key=key, value=value)


def prompt_positions(prompt_length: Array, p: int) -> Array:
    """``[B, P]`` positions of left-padded prompt tokens; negative at padding."""
    return jnp.arange(p) - (p - prompt_length[:, None])


def unembedding(params: Params, config: ModelConfig) -> Array:
    """``[vocab, width]`` output projection of a parameter tree."""
    return params["embed"]["embedding"] if config.tied_embeddings else params["head"]


def init_params(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters, a plain nested dict."""
    token = jnp.zeros((1, 1), jnp.int32)
    length = jnp.ones((1,), jnp.int32)
    return Transformer(config).init(key, token, length, token[:, None])["params"]
