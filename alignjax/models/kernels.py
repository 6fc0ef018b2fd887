"""Chooses the attention kernel of full passes, and runs the fused kernels of libraries.

    tiles   `tiles.attend`: the batch as a stream without padding, see `stream`; all devices
    xla     `attention.attend` on padded rows; all devices; a layer's scores are in memory
    splash  JAX's Pallas kernel for TPUs, which skips empty blocks of the mask
    cudnn   NVIDIA's kernel, through `jax.nn.dot_product_attention`

All but tiles run padded rows. A fused kernel gets a row as one sequence, ``[prompt; response 1;
...; response K]``, and a mask of which token sees which, so that the prompt occurs once. (Separate
calls for prompt and responses would have to be joined by their logsumexp, through which neither
library differentiates.) Decoding has one query at a time and always uses `attention.attend_token`.
"""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from alignjax.errors import UserError
from alignjax.models import layout
from alignjax.models.config import ModelConfig
from alignjax.types import Array

log = logging.getLogger("alignjax")

FUSED = ("splash", "cudnn")
_LANES = 128  # sequences are padded to a multiple of it: TPU vectors, cuDNN tiles
_BLOCKS = (512, 256, 128)  # tokens of a block's side, the fastest first


@dataclasses.dataclass(frozen=True)
class Row:
    """The layout of a padded row, which determines its mask apart from padding."""

    part: np.ndarray  # [S], 0 for tokens of the prompt, 1 to K for those of the responses
    place: np.ndarray  # [S], number of tokens before it in the prompt and its own response
    windows: tuple[int, ...]  # tokens that a token sees, itself included, for each kind of layer


def choose(config: ModelConfig, platform: str, tensor: int = 1) -> str:
    """Chooses a network's kernel, one of the above.

    ``auto`` is tiles; on TPUs it is splash if possible, else xla. It is never cuDNN's kernel.

    Args:
      config: the network.
      platform: tpu, gpu or cpu, as JAX names it.
      tensor: devices that the heads are split over.

    Raises:
      UserError: the config names a kernel that does not support the network or the platform.
    """
    if config.attention == "auto":
        if platform != "tpu":
            return "tiles"
        return "xla" if _missing("splash", config, platform, tensor) else "splash"
    missing = _missing(config.attention, config, platform, tensor)
    if missing:
        raise UserError(f"model.attention: {config.attention!r} wanted {missing}; or use 'xla'")
    return config.attention


def _missing(kernel: str, config: ModelConfig, platform: str, tensor: int) -> str:
    """Returns the first requirement of a kernel that is not met, or ""."""
    c = config
    requirements = []
    if kernel == "splash":
        requirements = [(platform == "tpu", f"a TPU, found {platform}")]
    elif kernel == "cudnn":
        requirements = [
            (platform == "gpu", f"a GPU, found {platform}"),
            (c.dtype == "bfloat16", f"model.dtype=bfloat16, found {c.dtype}"),
            (
                c.head_dim % 8 == 0 and c.head_dim <= 128,
                f"a model.head_dim that is a multiple of 8, 128 at most, found {c.head_dim}",
            ),
            (
                c.attention_softcap is None,
                f"model.attention_softcap=None, found {c.attention_softcap}",
            ),
        ]
    if kernel in FUSED:
        heads = f"model.kv_heads that mesh.tensor={tensor} divides, found {c.kv_heads}"
        requirements.append((c.kv_heads % tensor == 0, heads))
    return next((text for holds, text in requirements if not holds), "")


def of_array(config: ModelConfig, x: Array) -> str:
    """Calls `choose` for the devices of an array in the traced program.

    An array without a mesh of the library is on the default device.
    """
    mesh = layout.mesh_of(x)
    if mesh is None:
        return choose(config, jax.default_backend())
    device = mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    kernel = choose(config, platform, mesh.shape["tensor"])
    if (kernel, platform) != ("tiles", "cpu"):
        _log_once(kernel, platform)
    return kernel


@functools.cache  # programs are traced several times in a process
def _log_once(kernel: str, platform: str) -> None:
    log.info("attention: %s on %s", kernel, platform)


def attend_fused(
    kernel: str,
    query: Array,
    key: Array,
    value: Array,
    prompt_mask: Array,
    responses: int,
    *,
    full: Array | None,
    config: ModelConfig,
) -> Array:
    """Runs a fused kernel in a full pass; each device computes its own rows and heads.

    Args:
      kernel: ``splash`` or ``cudnn``.
      query: ``[B, S, H, D]``, the prompt's P tokens and then those of K responses in turn.
      key, value: ``[B, S, G, D]``; G divides H.
      prompt_mask: ``[B, P]`` bool, True at real prompt tokens, which come last.
      responses: K, of equal padded lengths; 0 for a prompt without responses.
      full: bool scalar, whether this layer has no window; None: all layers are alike.
      config: the network.

    Returns:
      ``[B, S, H, D]``, finite everywhere, meaningless at padding.
    """
    s, p = query.shape[1], prompt_mask.shape[1]
    r = (s - p) // responses
    block = next(n for n in _BLOCKS if n == _LANES or -s % n <= s // 8)
    more = -s % block
    # The kernel requires whole blocks: pad the prompt at the left, which changes nothing.
    wide = ((0, 0), (more, 0), (0, 0), (0, 0))
    query, key, value = (jnp.pad(x, wide) for x in (query, key, value))
    padding = jnp.pad(~prompt_mask, ((0, 0), (more, 0)), constant_values=True)
    padding = jnp.pad(padding, ((0, 0), (0, s - p)))
    part = np.repeat(np.arange(1 + responses), [p + more] + [r] * responses)
    place = np.concatenate([np.arange(p + more), np.tile(np.arange(r) + p + more, responses)])
    # Kinds of layers, by their window; only one kind if the window covers the row.
    windows, which = [min(config.window or s, s)], jnp.int32(0)
    if full is not None and windows[0] < p + r:
        windows, which = [*windows, s], full.astype(jnp.int32)
    scale = (config.query_scalar or config.head_dim) ** -0.5
    row = Row(part, place, tuple(windows))
    if kernel == "splash":
        query = query * jnp.asarray(scale, query.dtype)
        local = functools.partial(_splash, row=row, block=block, softcap=config.attention_softcap)
    else:
        local = functools.partial(_cudnn, row=row, scale=scale)
    heads = P(layout.ROWS, None, "tensor")
    out = layout.each_device(
        local,
        (query, key, value, padding, which),
        (heads, heads, heads, P(layout.ROWS), P()),
    )
    return out[:, more:]


def sees(
    part: Any, place: Any, window: Any, rows: slice = slice(None), columns: slice = slice(None)
) -> Any:
    """Returns which tokens (columns) a token (row) sees, ``[S, S]`` bool; ignores padding.

    Args:
      part, place: as in a `Row`, NumPy or JAX arrays.
      window: tokens that a token sees, itself included.
      rows, columns: the part of the matrix to compute.
    """
    distance = place[rows, None] - place[columns]
    shared = (part[columns] == 0) | (part[rows, None] == part[columns])
    return shared & (distance >= 0) & (distance < window)


def _splash(
    query: Array,
    key: Array,
    value: Array,
    padding: Array,
    which: Array,
    *,
    row: Row,
    block: int,
    softcap: float | None,
) -> Array:
    """Runs splash attention on one device's rows and heads; the queries are already scaled.

    Padding is a segment of its own, so that a padding token sees at least one key.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

    sides = ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    blocks_of: dict[str, Any] = {f"block_{side}": block for side in sides}
    sizes = splash.BlockSizes(**blocks_of)
    segments = padding.astype(jnp.int32)

    def run(window: int, *arrays: Array) -> Array:
        mask = splash.MultiHeadMask([_splash_mask(row, window)] * query.shape[2])
        kernel = splash.make_splash_mha(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            attn_logits_soft_cap=softcap,
            residual_checkpoint_name="attended",  # kept with remat="kv"
        )
        table, _ = splash_attention_mask_info.process_mask(mask, (block, block))
        blocks = np.count_nonzero(np.asarray(table.block_mask))
        # `hlo_costs` cannot see into a kernel: it reads the amount of work from this name.
        with jax.named_scope(f"splash_{blocks}_{block}"):
            return jax.vmap(kernel)(*arrays, splash.SegmentIds(segments, segments))

    arrays = tuple(jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    kinds = [functools.partial(run, window) for window in row.windows]
    out = jax.lax.switch(which, kinds, *arrays) if len(kinds) > 1 else kinds[0](*arrays)
    return jnp.swapaxes(out, 1, 2)


def _splash_mask(row: Row, window: int) -> Any:
    """Makes a row's mask, which computes the blocks that the kernel reads: rows may be long."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    class Mask(splash.Mask):
        shape = (len(row.part), len(row.part))

        def __getitem__(self, at: tuple[slice, slice]) -> np.ndarray:
            queries, keys = row.part[at[0]], row.part[at[1]]
            # Most blocks are of two responses, which do not see each other.
            if keys.min() > queries.max() or 0 < keys.min() <= keys.max() < queries.min():
                return np.zeros((len(queries), len(keys)), bool)
            seen: np.ndarray = sees(row.part, row.place, window, *at)
            return seen

    return Mask()


def _cudnn(
    query: Array,
    key: Array,
    value: Array,
    padding: Array,
    which: Array,
    *,
    row: Row,
    scale: float,
) -> Array:
    """Runs cuDNN's attention on one device's rows and heads.

    The kernel supports neither segments nor shared prompts, so it gets the mask, ``[B, 1, S, S]``.
    One mask for all heads is small compared with the scores of each head.
    """
    window = jnp.asarray(row.windows)[which]
    mask = sees(jnp.asarray(row.part), jnp.asarray(row.place), window)
    mask = mask & (padding[:, :, None] == padding[:, None])
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask[:, None], scale=scale, is_causal=True, implementation="cudnn"
    )
