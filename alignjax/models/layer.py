"""One layer of the decoder: attention and a gated feed-forward block, with residuals."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from alignjax.models import kernels, layout, lora, quantized, tiles
from alignjax.models.attention import Kept, attend, attend_token, rotate
from alignjax.models.config import ModelConfig
from alignjax.types import Array


@flax.struct.dataclass(kw_only=True)
class View:
    """The positions and masks of the tokens of one pass; the same for every layer."""

    angle: Array  # [B, S, D/2] float32, rotary angle of each token
    window_angle: Array | None  # the same for layers with a window; None: `angle`
    prompt_mask: Array | None = None  # [B, P] bool, True at real prompt tokens
    # Of a stream: which tokens see which, and the pairs of tiles that are not empty; each [S, ...].
    stream: tuple[tiles.Seen, tuple[Array, Array]] | None = None
    position: Array | None = None  # int32 scalar: response token being decoded; None in a full pass
    # Keys and values [L, B, K, G, S, D] of the responses while decoding, of all layers. A layer
    # reads its filled positions itself: the scan would copy all positions of its slice.
    kept: tuple[Array, Array] | None = None
    # P in a full pass, 0 while decoding
    prompt_tokens: int = flax.struct.field(pytree_node=False, default=0)
    responses: int = flax.struct.field(pytree_node=False, default=1)  # K
    row: Array | None = None  # [B, S] int32, which row of the batch a token belongs to
    number: Array | None = None  # [B, S] int32, number of a token in its row


class RMSNorm(nn.Module):
    """Divides by the root mean square in float32, and multiplies by a learned scale."""

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
    """One layer. ``x`` is ``[B, S, width]``: the prompt, then the responses one after the other."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, view: View, cache: tuple[Array, ...] | None, full: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Runs the layer.

        Args:
          x: states.
          view: positions and masks.
          cache: while decoding, the prompt's keys and values of this layer, ``[B, G, P, D]``, and
            the layer's number; None in a full pass.
          full: bool scalar, whether this layer has no window; None: all layers are alike.

        Returns:
          The new states, and keys and values for the cache, see `attend_tokens`.
        """
        c = self.config
        gather = layout.whole if cache is None else layout.rows
        scatter = layout.part if cache is None else layout.rows
        residual = 1.0 / (2 * c.layers)  # variance of a block's output, so that depth is harmless

        mixed, kept = self._attend(gather(self._norm("attention_norm")(x)), view, cache, full)
        added = scatter(self._dense("o", mixed, view, c.width, c.o_bias, scale=residual))
        x = x + (self._norm("attention_out_norm")(added) if c.sandwich_norms else added)

        h = gather(self._norm("mlp_norm")(x))
        gate = self._dense("gate", h, view, c.mlp_width, c.mlp_bias)
        gate = nn.silu(gate) if c.activation == "silu" else nn.gelu(gate, approximate=True)
        h = gate * self._dense("up", h, view, c.mlp_width, c.mlp_bias)
        added = scatter(self._dense("down", h, view, c.width, c.mlp_bias, scale=residual))
        return x + (self._norm("mlp_out_norm")(added) if c.sandwich_norms else added), kept

    def _attend(
        self, h: Array, view: View, cache: tuple[Array, ...] | None, full: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Computes queries, keys and values, rotates them and attends."""
        c = self.config

        def heads(name: str, count: int) -> Array:
            y = self._dense(name, h, view, count * c.head_dim, use_bias=c.qkv_bias)
            return y.reshape(*y.shape[:2], count, c.head_dim)

        q, k, v = heads("q", c.heads), heads("k", c.kv_heads), heads("v", c.kv_heads)
        if c.qk_norm:
            q, k = self._norm("q_norm")(q), self._norm("k_norm")(k)
        angle = view.angle
        if view.window_angle is not None:
            angle = view.window_angle if full is None else jnp.where(full, angle, view.window_angle)
        # remat="kv" keeps the arrays of these names.
        q, k = rotate(q, angle), checkpoint_name(rotate(k, angle), "key")
        v = checkpoint_name(v, "value")
        mixed, kept = attend_tokens(q, k, v, view, cache, c, full)
        return mixed.reshape(*h.shape[:2], c.heads * c.head_dim), kept

    def _dense(
        self,
        name: str,
        x: Array,
        view: View,
        features: int,
        use_bias: bool = False,
        scale: float = 1.0,
    ) -> Array:
        """Multiplies by a kernel, quantised or not, and adds its adapters if there are any."""
        c = self.config
        own: Any = self.variables.get("params", {}).get(name, {})
        weights = layout.LINES if name in ("o", "down") else layout.COLUMNS
        if isinstance(own.get("kernel"), Mapping):
            y = quantized.product(x.astype(c.dtype), layout.gather(own["kernel"], weights))
            y = y + own["bias"].astype(c.dtype) if use_bias else y
        else:
            y = nn.Dense(
                features,
                use_bias=use_bias,
                kernel_init=nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal"),
                dot_general=layout.dot(weights),
                name=name,
                **dtypes(c),
            )(x)
        return y + lora.low_rank(x, own, view.row, view.number) if "lora_a" in own else y

    def _norm(self, name: str) -> RMSNorm:
        c = self.config
        return RMSNorm(c.norm_eps, c.norm_plus_one, name=name, **dtypes(c))


def dtypes(config: ModelConfig) -> dict[str, Any]:
    """Returns the dtypes of a flax module's activations and parameters."""
    return dict(dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype))


@dataclasses.dataclass(frozen=True)
class Visible:
    """Which tokens the queries of a layer see: all earlier ones, or those in its window."""

    window: int | None
    full: Array | None  # bool scalar: this layer ignores the window; None: it does not
    prompt_mask: Array  # [B, P] bool

    def own(self, query: Array, key: Array) -> Array:
        """Masks keys for queries, at positions of one sequence: ``[T, S]`` bool."""
        distance = query[:, None] - key
        if self.window is None:
            return distance >= 0
        near = distance < self.window
        return (distance >= 0) & (near if self.full is None else near | self.full)

    def prompt(self, query: Array) -> Array:
        """Masks prompt tokens for queries of a response: ``[B, P]`` or ``[B, T, P]`` bool.

        Prompts are padded on the left, so prompt token j is ``P + t - j`` tokens before response
        token t in every row: a window needs no positions.
        """
        if self.window is None:
            return self.prompt_mask
        size = self.prompt_mask.shape[1]
        return self.prompt_mask[:, None] & self.own(size + query, jnp.arange(size))


def attend_tokens(
    q: Array,
    k: Array,
    v: Array,
    view: View,
    cache: tuple[Array, ...] | None,
    config: ModelConfig,
    full: Array | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Attends in one layer, over ``[B, S, heads, D]`` tokens in the layout of `View`.

    Returns:
      The mixed values, and keys and values for the cache: the prompt's after a full pass, the
      token's while decoding.
    """
    if view.stream is not None:
        return _attend_stream(q, k, v, view.stream, config, full), ()
    assert view.prompt_mask is not None
    visible = Visible(config.window, full, view.prompt_mask)
    scale = None if config.query_scalar is None else config.query_scalar**-0.5
    how: dict[str, Any] = dict(scale=scale, softcap=config.attention_softcap)
    if cache is not None:
        return _attend_token(how, visible, (q, k, v), view, cache)
    p = view.prompt_tokens
    kept = k[:, :p], v[:, :p]
    kernel = kernels.of_array(config, q)
    if kernel in kernels.FUSED:
        out = kernels.attend_fused(
            kernel, q, k, v, view.prompt_mask, view.responses, full=full, config=config
        )
        return out, kept
    return _attend_all(functools.partial(attend, **how), visible, (q, k, v), view, kept), kept


def _attend_stream(
    q: Array,
    k: Array,
    v: Array,
    stream: tuple[tiles.Seen, tuple[Array, Array]],
    config: ModelConfig,
    full: Array | None,
) -> Array:
    """Attends within streams ``[S, T, heads, D]``, each on its own device."""
    how: dict[str, Any] = dict(
        window=config.window,
        scale=None if config.query_scalar is None else config.query_scalar**-0.5,
        softcap=config.attention_softcap,
    )

    def local(q: Array, k: Array, v: Array, full: Array, *stream: Array) -> Array:
        def one(q: Array, k: Array, v: Array, *stream: Array) -> Array:
            part, prompt, position, listed, count = stream
            seen = tiles.Seen(part=part, prompt=prompt, position=position)
            return tiles.attend(q, k, v, seen, (listed, count), full, **how)

        if len(q) == 1:  # under vmap, all loops would run as long as the longest
            return one(*(x[0] for x in (q, k, v, *stream)))[None]
        return jax.vmap(one)(q, k, v, *stream)

    seen, listed = stream
    arrays = (seen.part, seen.prompt, seen.position, *listed)
    heads, rows = P(layout.ROWS, None, "tensor"), P(layout.ROWS)
    return layout.each_device(
        local,
        (q, k, v, jnp.asarray(full is not None and full), *arrays),
        (heads, heads, heads, P(), *[rows] * len(arrays)),
    )


def _of_responses(x: Array, view: View) -> Array:
    """Takes the responses: ``[B, P + K*R, heads, D]`` -> ``[B, K, R, heads, D]``."""
    p, n = view.prompt_tokens, view.responses
    return x[:, p:].reshape(x.shape[0], n, (x.shape[1] - p) // n, *x.shape[2:])


def _attend_all(
    mix: Any, visible: Visible, tokens: tuple[Array, ...], view: View, prompt: tuple[Array, Array]
) -> Array:
    """Attends over prompt and responses of a full pass: ``[B, S, heads, D]``."""
    q, _, _ = tokens
    b, s = q.shape[:2]
    p = view.prompt_tokens
    prompt_k, prompt_v = prompt
    causal = visible.own(jnp.arange(p), jnp.arange(p)) & visible.prompt_mask[:, None, None, :]
    out = mix(q[:, None, :p], prompt_k[:, None], prompt_v[:, None], causal)[:, 0]
    if s == p:
        return cast(Array, out)
    place = jnp.arange((s - p) // view.responses)
    tail = mix(
        *(_of_responses(x, view) for x in tokens),
        visible.own(place, place),
        shared_key=prompt_k,
        shared_value=prompt_v,
        shared_mask=visible.prompt(place),
    )
    return jnp.concatenate([out, tail.reshape(b, s - p, *tail.shape[3:])], axis=1)


def _attend_token(
    mix: dict[str, Any],
    visible: Visible,
    tokens: tuple[Array, ...],
    view: View,
    cache: tuple[Array, ...],
) -> tuple[Array, tuple[Array, ...]]:
    """Attends from one token of each response to the cache and to itself."""
    assert view.position is not None
    assert view.kept is not None
    prompt_key, prompt_value, layer = cache
    q, k, v = tokens  # [B, K, heads, D]
    now = view.position
    kept = Kept(prompt_key, prompt_value, *view.kept, layer=layer, filled=now)
    shared = visible.prompt(now[None])
    shared = shared if shared.ndim == 2 else shared[:, 0]
    out = attend_token(q, k, v, kept, shared, lambda place: visible.own(now[None], place)[0], **mix)
    # Return the token only: the scan would gather whole layers into a second cache.
    return out, (k[:, :, :, None], v[:, :, :, None])
