"""Defines the shape of a decoder: one frozen dataclass for Llama, Mistral, Qwen and Gemma.

Separate from the flax modules, so that reading a config imports neither flax nor JAX's backends.
"""

import dataclasses
from typing import Any

from alignjax.errors import UserError, did_you_mean

DTYPES = ("float32", "bfloat16")
SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
REMAT = ("none", "dots", "kv", "full")
ATTENTION = ("auto", "tiles", "xla", "splash", "cudnn")
ROPE_SCALINGS = ("llama3", "linear", "dynamic")
ACTIVATIONS = ("silu", "gelu_tanh")
QUANTIZED = ("", "int8", "nf4")
LARGEST_SIZE = 2**24  # largest size of an axis, and most layers
LARGEST = 3.4e38  # just below the largest float32
AT_MOST = f"at most {LARGEST:g}"
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")  # a layer's projections


def _free(default: Any) -> Any:
    """A field that changes only how results are computed; see `config.fields.identity`.

    The path is one of them, because the digest of the parameters identifies the model.
    """
    field: Any = dataclasses.field(default=default, metadata={"identity": False})
    return field


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Frequency scaling for contexts longer than those trained on.

    Only llama3 reads ``low_freq_factor`` and ``high_freq_factor``; linear ignores
    ``original_length``.
    """

    # llama3: slow frequencies only | linear: all of them alike | dynamic: none within
    # original_length, and nothing longer is run
    kind: str = "llama3"
    factor: float = 8.0  # how much frequencies are slowed down; >= 1
    low_freq_factor: float = 1.0  # wavelengths above original_length / this are scaled fully
    high_freq_factor: float = 4.0  # wavelengths below original_length / this are left alone
    original_length: int = 8192  # tokens, the context of the unscaled model

    def __post_init__(self) -> None:
        if self.kind not in ROPE_SCALINGS:
            wanted = " or ".join(ROPE_SCALINGS)
            raise UserError(f"model.rope_scaling.kind: wanted {wanted}, found {self.kind!r}")
        for field in ("factor", "low_freq_factor", "high_freq_factor", "original_length"):
            value = getattr(self, field)
            if not 0 < value <= (2**31 - 1 if field == "original_length" else LARGEST):
                raise UserError(
                    f"model.rope_scaling.{field}: wanted a positive number, {AT_MOST}, found "
                    f"{value!r}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: RMSNorm, rotary positions, grouped queries, gated MLP."""

    # folder or GGUF file of a model to start from; it says all down to scaled_embeddings
    path: str = _free("")
    vocab_size: int = 512  # rows of the embedding; at least the tokenizer's number of ids
    width: int = 128  # size of the residual stream
    layers: int = 2
    heads: int = 4  # query heads
    kv_heads: int = 2  # key/value heads; divides heads
    head_dim: int = 32  # size of one head; even
    mlp_width: int = 352  # inner size of the gated feed-forward block
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_scaling: RopeScaling | None = None  # Llama 3.1 and later, Gemma 3
    window: int | None = None  # tokens a query sees, itself included (Mistral, Gemma); None: all
    full_every: int = 0  # every n-th layer sees all tokens in spite of window (Gemma); 0: none does
    window_rope_theta: float | None = None  # rope_theta of layers with a window, unscaled (Gemma 3)
    norm_eps: float = 1e-6
    qkv_bias: bool = False  # Qwen 2 and 2.5
    o_bias: bool = False  # attention's output projection has one too (some Llamas)
    mlp_bias: bool = False  # all three projections of the feed-forward block (some Llamas)
    qk_norm: bool = False  # Qwen 3, Gemma 3: RMSNorm on each query and key head
    tied_embeddings: bool = True  # the output head is the transposed embedding
    activation: str = "silu"  # of the feed-forward gate: silu | gelu_tanh (Gemma)
    query_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attention_softcap: float | None = None  # c * tanh(score / c) on attention scores (Gemma 2)
    logit_softcap: float | None = None  # the same on logits (Gemma 2)
    norm_plus_one: bool = False  # norms multiply by 1 + scale (Gemma)
    sandwich_norms: bool = False  # a norm after attention and feed-forward as well (Gemma 2 and 3)
    scaled_embeddings: bool = False  # embeddings times the root of width (Gemma)
    dtype: str = "float32"  # of activations and matmuls: float32 | bfloat16; reductions are float32
    param_dtype: str = "float32"  # of the stored parameters
    # what is recomputed: none | dots (not products) | kv (not k, v, nor what splash ends with) |
    # full
    remat: str = _free("none")
    # auto | tiles (no padding) | xla | splash (TPUs) | cudnn (GPUs); auto: see `kernels`
    attention: str = _free("auto")
    logits_chunk: int = _free(16)  # response positions projected to the vocabulary at a time

    def __post_init__(self) -> None:
        def require(ok: bool, field: str, wanted: str) -> None:
            if not ok:
                found = getattr(self, field)
                raise UserError(f"model.{field}: wanted {wanted}, found {found!r}")

        for field in ("dtype", "param_dtype"):
            value = getattr(self, field)
            object.__setattr__(self, field, SHORT_DTYPES.get(value, value))
        for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "mlp_width"):
            few = 0 < getattr(self, field) <= LARGEST_SIZE
            require(few, field, f"a positive number, at most {LARGEST_SIZE:,}")
        require(self.heads % self.kv_heads == 0, "kv_heads", f"a divisor of heads ({self.heads})")
        even = 0 < self.head_dim <= LARGEST_SIZE and self.head_dim % 2 == 0
        require(even, "head_dim", f"an even positive number, at most {LARGEST_SIZE:,}")
        for field in ("rope_theta", "norm_eps"):
            require(0 < getattr(self, field) <= LARGEST, field, f"a positive number, {AT_MOST}")
        optional = ("window", "window_rope_theta", "query_scalar")
        for field in (*optional, "attention_softcap", "logit_softcap"):
            value = getattr(self, field)
            holds = value is None or 0 < value <= LARGEST
            require(holds, field, f"a positive number, {AT_MOST}, or None")
        near = self.window is None or self.window < 2**31
        require(near, "window", "a positive number below 2^31, or None")
        most = f"a number in [0, {LARGEST_SIZE:,}]"
        require(0 <= self.full_every <= LARGEST_SIZE, "full_every", most)
        require(self.window is not None or not self.full_every, "full_every", "0 without a window")
        local = self.window_rope_theta is None or self.window is not None
        require(local, "window_rope_theta", "None without a window")
        require(self.activation in ACTIVATIONS, "activation", " or ".join(ACTIVATIONS))
        require(self.dtype in DTYPES, "dtype", " or ".join(DTYPES))
        require(self.param_dtype in DTYPES, "param_dtype", " or ".join(DTYPES))
        require(self.remat in REMAT, "remat", " or ".join(REMAT))
        require(self.attention in ATTENTION, "attention", " or ".join(ATTENTION))
        few = 0 < self.logits_chunk <= LARGEST_SIZE
        require(few, "logits_chunk", f"a positive number, at most {LARGEST_SIZE:,}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters: what is trained in the place of the network's own parameters; see `lora`."""

    rank: int = 16  # r, columns of A and rows of B
    alpha: float = 32.0  # (x A) B is multiplied by alpha / rank
    targets: tuple[str, ...] = TARGETS  # projections that get adapters: q k v o gate up down
    dropout: float = 0.0  # share of the adapters' inputs that a step sets to 0; in [0, 1)
    quantize: str = ""  # the frozen projections' kernels: int8 | nf4 (4 bits); empty: as they are

    def __post_init__(self) -> None:
        for name in self.targets:
            if name not in TARGETS:
                near = did_you_mean(name, TARGETS) or did_you_mean(name.split("_")[0], TARGETS)
                raise UserError(
                    f"lora.targets: wanted some of {', '.join(TARGETS)}, found {name!r}{near}"
                )
        checks = (
            (0 < self.rank <= LARGEST_SIZE, "rank", f"a number in [1, {LARGEST_SIZE:,}]"),
            (0 < self.alpha <= LARGEST, "alpha", f"a positive number, {AT_MOST}"),
            (0 <= self.dropout < 1, "dropout", "a number in [0, 1)"),
            (self.quantize in QUANTIZED, "quantize", "int8, nf4 or nothing"),
            (bool(self.targets), "targets", f"some of {', '.join(TARGETS)}"),
            (len(set(self.targets)) == len(self.targets), "targets", "each name once"),
        )
        for ok, field, wanted in checks:
            if not ok:
                raise UserError(f"lora.{field}: wanted {wanted}, found {getattr(self, field)!r}")


def model_from(run: dict[str, Any], file: str) -> ModelConfig:
    """Reads the ModelConfig in a run's config.json.

    Args:
      run: the file's content.
      file: its name, for messages.

    Raises:
      UserError: the file is of another version.
    """
    fields = dict(run["model"])
    fields.pop("attention", None)  # the kernel depends on the machine, not on the network
    if fields.get("rope_scaling"):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    try:
        return ModelConfig(**fields)
    except TypeError as error:
        raise UserError(f"{file}: model: of another version ({error})") from None


def check_adapters(lora: LoraConfig, model: ModelConfig) -> None:
    """Checks that adapters are smaller than their projections, and that 4-bit codes fill bytes.

    Raises:
      UserError: the rank is larger than a target's smaller dimension, or a size is odd.
    """
    for field in ("width", "mlp_width"):
        if lora.quantize == "nf4" and getattr(model, field) % 2:
            raise UserError(
                f"lora.quantize: nf4 wanted an even model.{field}, found {getattr(model, field)}"
            )
    inner = {"q": model.heads * model.head_dim, "k": model.kv_heads * model.head_dim}
    inner |= {"v": inner["k"], "o": inner["q"]}
    for name in lora.targets:
        limit = min(model.width, inner.get(name, model.mlp_width))
        if lora.rank > limit:
            raise UserError(
                f"lora.rank: wanted {limit} at most, the smaller dimension of {name}, found "
                f"{lora.rank}"
            )
