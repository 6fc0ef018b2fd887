"""The shape of a decoder: one frozen dataclass that covers Llama 2/3 and Qwen 2/2.5/3.

Kept apart from the flax modules so that reading a config imports neither flax nor an accelerator.
"""

import dataclasses

from alignjax.errors import UserError

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's frequency scaling for contexts longer than those trained on."""

    factor: float = 8.0  # how much the slow frequencies are slowed down; >= 1
    low_freq_factor: float = 1.0  # wavelengths above original_length / this are scaled fully
    high_freq_factor: float = 4.0  # wavelengths below original_length / this are left alone
    original_length: int = 8192  # tokens, the context of the unscaled model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    vocab_size: int = 512  # rows of the embedding; at least the tokenizer's number of ids
    width: int = 128  # size of the residual stream
    layers: int = 2
    heads: int = 4  # query heads
    kv_heads: int = 2  # key/value heads; divides heads
    head_dim: int = 32  # size of one head; even
    mlp_width: int = 352  # inner size of the gated feed-forward block
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_scaling: RopeScaling | None = None  # Llama 3.1 and later
    norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen 2 and 2.5
    qk_norm: bool = False  # Qwen 3: RMSNorm on each query and key head
    tied_embeddings: bool = True  # the output head is the transposed embedding
    dtype: str = "float32"  # of activations and matmuls: float32 | bfloat16; reductions are float32
    param_dtype: str = "float32"  # of the stored parameters
    remat: str = "none"  # what the backward pass recomputes: none | dots (keep matmuls) | full
    logits_chunk: int = 16  # response positions projected to the vocabulary at a time

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, wanted: str) -> None:
            if not ok:
                found = getattr(self, field)
                raise UserError(f"model.{field}: wanted {wanted}, found {found!r}")

        for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width"):
            require(getattr(self, field) > 0, field, "a positive number")
        require(self.heads % self.kv_heads == 0, "kv_heads", f"a divisor of heads ({self.heads})")
        require(self.head_dim > 0 and self.head_dim % 2 == 0, "head_dim", "an even positive number")
        require(self.dtype in DTYPES, "dtype", " or ".join(DTYPES))
        require(self.param_dtype in DTYPES, "param_dtype", " or ".join(DTYPES))
        require(self.remat in REMAT, "remat", " or ".join(REMAT))
        require(self.logits_chunk > 0, "logits_chunk", "a positive number")
