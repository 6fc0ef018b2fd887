"""The decoder: one scanned stack of layers, three ways to run it.

``score``   prompt and all K responses in one pass, the prompt once: training and scoring.
``prefill`` the prompt alone, keeping its keys and values.
``decode``  one more token of each of the K responses, against the kept keys and values.

Parameters live in a plain nested dict; ``sharding.py`` names them by path.
"""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from alignjax.models import kernels, layout, lora, quantized
from alignjax.models.attention import attend, rope_frequencies, rotate
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.types import Array, Params

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Small where queries share them, and they cost two products and a rotation. What a fused
    # kernel ends with is not small, but else its scores were computed once more.
    "kv": jax.checkpoint_policies.save_only_these_names("key", "value", "attended"),
}


@flax.struct.dataclass(kw_only=True)
class Cache:
    """Keys and values of every layer, kept while sampling; of the prompt once for all responses.

    The heads come before the tokens, as the products of attention read them: the other order would
    be turned round at every token.
    """

    prompt_key: Array  # [L, B, G, P, D]
    prompt_value: Array
    key: Array  # [L, B, K, G, R, D], filled up to the current position
    value: Array


@flax.struct.dataclass(kw_only=True)
class View:
    """What the tokens of one pass see: the same for every layer."""

    angle: Array  # [B, S, D/2] float32, rotary angle of each token
    window_angle: Array | None  # the same for layers with a window, where theirs differ
    prompt_mask: Array  # [B, P] bool, True at real prompt tokens
    position: Array | None = None  # int32 scalar: response token being decoded; None in a full pass
    prompt_tokens: int = flax.struct.field(pytree_node=False)  # P in a full pass, 0 while decoding
    responses: int = flax.struct.field(pytree_node=False)  # K


class RMSNorm(nn.Module):
    eps: float
    plus_one: bool
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        scale = scale.astype(jnp.float32) + (1.0 if self.plus_one else 0.0)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.dtype)


class Layer(nn.Module):
    """One block. ``x`` is ``[B, S, width]`` with the prompt first, then the responses in turn."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, view: View, cache: tuple[Array, ...] | None, full: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """``full`` is a bool scalar, whether this layer has no window; None: no layer differs."""
        c = self.config
        types = dict(dtype=jnp.dtype(c.dtype), param_dtype=jnp.dtype(c.param_dtype))

        given = self.variables.get("params", {})

        def dense(
            name: str, x: Array, features: int, use_bias: bool = False, scale: float = 1.0
        ) -> Array:
            init = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
            own = given.get(name, {})
            weights = layout.LINES if name in ("o", "down") else layout.COLUMNS
            if isinstance(own.get("kernel"), Mapping):
                y = quantized.product(x.astype(c.dtype), layout.gathered(own["kernel"], weights))
                y = y + own["bias"].astype(c.dtype) if use_bias else y
            else:
                y = nn.Dense(
                    features,
                    use_bias=use_bias,
                    kernel_init=init,
                    dot_general=layout.dot(weights),
                    name=name,
                    **types,
                )(x)
            return y + lora.low_rank(x, own) if "lora_a" in own else y

        def norm(name: str) -> RMSNorm:
            return RMSNorm(c.norm_eps, c.norm_plus_one, name=name, **types)

        full_pass = cache is None
        gather = layout.whole if full_pass else layout.rows
        scatter = layout.parted if full_pass else layout.rows
        residual = 1.0 / (2 * c.layers)  # variance of what a block adds, so that depth is harmless
        h = gather(norm("attention_norm")(x))

        def heads(name: str, count: int) -> Array:
            y = dense(name, h, count * c.head_dim, use_bias=c.qkv_bias)
            return y.reshape(*y.shape[:2], count, c.head_dim)

        q, k, v = heads("q", c.heads), heads("k", c.kv_heads), heads("v", c.kv_heads)
        if c.qk_norm:
            q, k = norm("q_norm")(q), norm("k_norm")(k)
        angle = view.angle
        if view.window_angle is not None:
            angle = view.window_angle if full is None else jnp.where(full, angle, view.window_angle)
        q, k = rotate(q, angle), checkpoint_name(rotate(k, angle), "key")
        v = checkpoint_name(v, "value")
        mixed, kept = _mix(q, k, v, view, cache, c, full)
        mixed = mixed.reshape(*x.shape[:2], c.heads * c.head_dim)
        added = scatter(dense("o", mixed, c.width, scale=residual))
        x = x + (norm("attention_out_norm")(added) if c.sandwich_norms else added)

        h = gather(norm("mlp_norm")(x))
        gate = dense("gate", h, c.mlp_width)
        gate = nn.silu(gate) if c.activation == "silu" else nn.gelu(gate, approximate=True)
        h = gate * dense("up", h, c.mlp_width)
        added = scatter(dense("down", h, c.width, scale=residual))
        return x + (norm("mlp_out_norm")(added) if c.sandwich_norms else added), kept


def _mix(
    q: Array,
    k: Array,
    v: Array,
    view: View,
    cache: tuple[Array, ...] | None,
    config: ModelConfig,
    full: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Attention of one layer over ``[B, S, heads, D]`` tokens laid out as `View` says.

    Prompts are padded on the left, so prompt token j is ``P + t - j`` tokens before response token
    t in every row: a window needs no positions.

    Returns:
      The mixed values and what a cache keeps: the prompt's keys and values after a full pass, the
      token's while decoding.
    """
    b, s = q.shape[:2]
    p, n = view.prompt_tokens, view.responses
    mix = functools.partial(
        attend,
        scale=None if config.query_scalar is None else config.query_scalar**-0.5,
        softcap=config.attention_softcap,
    )

    def seen(query: Array, key: Array) -> Array:
        """Whether queries at these places of a sequence see keys at those."""
        distance = query[:, None] - key
        if config.window is None:
            return distance >= 0
        near = distance < config.window
        return (distance >= 0) & (near if full is None else near | full)

    def prompt_seen(query: Array) -> Array:
        """The same for the prompt's tokens; queries count from the first response token."""
        mask = view.prompt_mask
        if config.window is None:
            return mask
        size = mask.shape[1]
        return mask[:, None] & seen(size + query, jnp.arange(size))

    def responses(x: Array) -> Array:  # [B, K*R, heads, D] -> [B, K, R, heads, D]
        return x[:, p:].reshape(b, n, (s - p) // n, *x.shape[2:])

    if cache is not None:  # decoding: one token per response
        assert view.position is not None
        new = tuple(jnp.swapaxes(responses(x), 2, 3) for x in (k, v))  # [B, K, G, 1, D]
        prompt_key, prompt_value = (jnp.swapaxes(x, 1, 2) for x in cache[:2])
        place = jnp.arange(cache[2].shape[3])
        here = (place == view.position)[:, None]
        own_key, own_value = (
            jnp.swapaxes(jnp.where(here, y, x), 2, 3) for x, y in zip(cache[2:], new, strict=True)
        )
        now = jnp.atleast_1d(view.position)
        out = mix(
            responses(q),
            own_key,
            own_value,
            seen(now, place),
            shared_key=prompt_key,
            shared_value=prompt_value,
            shared_mask=prompt_seen(now),
        )
        # Not the whole layer: the layers' would be gathered into a second cache at every token.
        return out, new

    prompt_k, prompt_v = k[:, :p], v[:, :p]
    kernel = kernels.of_array(config, q)
    if kernel != "xla":
        out = kernels.attend_fused(kernel, q, k, v, view.prompt_mask, n, full=full, config=config)
        return out, (prompt_k, prompt_v)
    causal = seen(jnp.arange(p), jnp.arange(p)) & view.prompt_mask[:, None, None, :]
    out = mix(q[:, None, :p], prompt_k[:, None], prompt_v[:, None], causal)[:, 0]
    if s > p:
        place = jnp.arange((s - p) // n)
        tail = mix(
            responses(q),
            responses(k),
            responses(v),
            seen(place, place),
            shared_key=prompt_k,
            shared_value=prompt_v,
            shared_mask=prompt_seen(place),
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
            in_axes=(nn.broadcast, 0, 0),
            length=c.layers,
        )(c)
        self.norm = RMSNorm(c.norm_eps, c.norm_plus_one, **types)
        if not c.tied_embeddings:
            self.head = self.param(
                "head",
                nn.initializers.normal(c.width**-0.5),
                (c.vocab_size, c.width),
                jnp.dtype(c.param_dtype),
            )

    def _angles(self, position: Array) -> dict[str, Array | None]:
        """The rotary angles of a `View`: of all layers, and of those with a window."""
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
        """All layers over ``[B, S]`` tokens: ``[B, S, width]`` states, and what layers keep."""
        c = self.config
        x = layout.looked_up(self.embed(tokens))
        if c.scaled_embeddings:
            x = x * jnp.asarray(c.width**0.5, x.dtype)
        full = None
        if c.full_every:
            full = jnp.arange(c.layers) % c.full_every == c.full_every - 1
        return self.layers(x, view, cache, full)

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
            **self._angles(position),
            prompt_mask=before >= 0,
            prompt_tokens=p,
            responses=k,
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
        position = prompt_positions(prompt_length, p)
        view = View(
            **self._angles(position), prompt_mask=position >= 0, prompt_tokens=p, responses=1
        )
        tokens = jnp.where(view.prompt_mask, prompt, 0)
        x, kept = self._through(tokens, view, None)
        prompt_key, prompt_value = (jnp.swapaxes(y, 2, 3) for y in kept)
        layers, _, groups, _, size = prompt_key.shape
        room = jnp.zeros((layers, b, k, groups, r, size), prompt_key.dtype)
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
        p = cache.prompt_key.shape[3]
        view = View(
            **self._angles(jnp.broadcast_to(prompt_length[:, None] + position, token.shape)),
            prompt_mask=prompt_positions(prompt_length, p) >= 0,
            position=position,
            prompt_tokens=0,
            responses=token.shape[1],
        )
        old = (cache.prompt_key, cache.prompt_value, cache.key, cache.value)
        x, new = self._through(token, view, old)
        key, value = (
            jax.lax.dynamic_update_slice_in_dim(y, z, position, 4)
            for y, z in zip((cache.key, cache.value), new, strict=True)
        )
        return self.norm(x), dataclasses.replace(cache, key=key, value=value)


def prompt_positions(prompt_length: Array, p: int) -> Array:
    """``[B, P]`` positions of left-padded prompt tokens; negative at padding."""
    return jnp.arange(p) - (p - prompt_length[:, None])


def unembedding(params: Params, config: ModelConfig) -> Array:
    """``[vocab, width]`` output projection of a parameter tree.

    Where the embedding is the head, there may be a copy for this: see `sharding.unshard_weights`.
    """
    if config.tied_embeddings and "head" not in params:
        return params["embed"]["embedding"]
    return params["head"]


def init_params(config: ModelConfig, key: Array) -> Params:
    """Fresh parameters, a plain nested dict."""
    token = jnp.zeros((1, 1), jnp.int32)
    length = jnp.ones((1,), jnp.int32)
    return Transformer(config).init(key, token, length, token[:, None])["params"]
