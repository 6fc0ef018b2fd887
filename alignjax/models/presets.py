"""Shapes of published models, for configs and for planning.

    model=dataclasses.replace(presets.llama31_8b(), path="Llama-3.1-8B", dtype="bfloat16")

With a ``path``, the folder's config.json must agree with the preset. The numbers of parameters are
the publishers'; the tests count them.
"""

from alignjax.models.config import ModelConfig, RopeScaling


def llama2_7b() -> ModelConfig:
    """6,738,415,616 parameters."""
    return ModelConfig(
        vocab_size=32000,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        head_dim=128,
        mlp_width=11008,
        norm_eps=1e-5,
        tied_embeddings=False,
    )


def _llama3(width: int, layers: int, heads: int, mlp_width: int, factor: float) -> ModelConfig:
    """Llama 3 and later; ``factor`` 0 for no scaling."""
    return ModelConfig(
        vocab_size=128256,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=64 if width == 2048 else 128,
        mlp_width=mlp_width,
        rope_theta=5e5,
        rope_scaling=RopeScaling(factor=factor) if factor else None,
        norm_eps=1e-5,
        tied_embeddings=factor == 32,
    )


def llama3_8b() -> ModelConfig:
    """8,030,261,248 parameters."""
    return _llama3(4096, 32, 32, 14336, 0)


def llama3_70b() -> ModelConfig:
    """70,553,706,496 parameters."""
    return _llama3(8192, 80, 64, 28672, 0)


def llama31_8b() -> ModelConfig:
    """8,030,261,248 parameters."""
    return _llama3(4096, 32, 32, 14336, 8)


def llama31_70b() -> ModelConfig:
    """70,553,706,496 parameters; Llama 3.3 has the same shape."""
    return _llama3(8192, 80, 64, 28672, 8)


def llama32_1b() -> ModelConfig:
    """1,235,814,400 parameters."""
    return _llama3(2048, 16, 32, 8192, 32)


def llama32_3b() -> ModelConfig:
    """3,212,749,824 parameters."""
    return _llama3(3072, 28, 24, 8192, 32)


def _mistral(vocab_size: int, rope_theta: float, window: int | None) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp_width=14336,
        rope_theta=rope_theta,
        window=window,
        norm_eps=1e-5,
        tied_embeddings=False,
    )


def mistral_7b() -> ModelConfig:
    """Version 0.3: 7,248,023,552 parameters, no window."""
    return _mistral(32768, 1e6, None)


def mistral_7b_v01() -> ModelConfig:
    """Version 0.1: 7,241,732,096 parameters, a window of 4,096 tokens."""
    return _mistral(32000, 1e4, 4096)


def _qwen25(
    width: int, layers: int, heads: int, kv_heads: int, mlp_width: int, tied: bool
) -> ModelConfig:
    return ModelConfig(
        vocab_size=151936 if tied else 152064,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        mlp_width=mlp_width,
        rope_theta=1e6,
        qkv_bias=True,
        tied_embeddings=tied,
    )


def qwen25_0p5b() -> ModelConfig:
    """494,032,768 parameters."""
    return _qwen25(896, 24, 14, 2, 4864, True)


def qwen25_1p5b() -> ModelConfig:
    """1,543,714,304 parameters."""
    return _qwen25(1536, 28, 12, 2, 8960, True)


def qwen25_3b() -> ModelConfig:
    """3,085,938,688 parameters."""
    return _qwen25(2048, 36, 16, 2, 11008, True)


def qwen25_7b() -> ModelConfig:
    """7,615,616,512 parameters."""
    return _qwen25(3584, 28, 28, 4, 18944, False)


def _qwen3(width: int, layers: int, heads: int, mlp_width: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=151936,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        mlp_width=mlp_width,
        rope_theta=1e6,
        qk_norm=True,
        tied_embeddings=tied,
    )


def qwen3_0p6b() -> ModelConfig:
    """596,049,920 parameters."""
    return _qwen3(1024, 28, 16, 3072, True)


def qwen3_4b() -> ModelConfig:
    """4,022,468,096 parameters."""
    return _qwen3(2560, 36, 32, 9728, True)


def qwen3_8b() -> ModelConfig:
    """8,190,735,360 parameters."""
    return _qwen3(4096, 36, 32, 12288, False)


def _gemma2(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    mlp_width: int,
    query_scalar: float,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=256000,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        window=4096,
        full_every=2,
        activation="gelu_tanh",
        query_scalar=query_scalar,
        attention_softcap=50.0,
        logit_softcap=30.0,
        norm_plus_one=True,
        sandwich_norms=True,
        scaled_embeddings=True,
    )


def gemma2_2b() -> ModelConfig:
    """2,614,341,888 parameters."""
    return _gemma2(2304, 26, 8, 4, 256, 9216, 256.0)


def gemma2_9b() -> ModelConfig:
    """9,241,705,984 parameters."""
    return _gemma2(3584, 42, 16, 8, 256, 14336, 256.0)


def gemma2_27b() -> ModelConfig:
    """27,227,128,320 parameters."""
    return _gemma2(4608, 46, 32, 16, 128, 36864, 144.0)


def _gemma3(width: int, layers: int, mlp_width: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=262144,
        width=width,
        layers=layers,
        heads=4,
        kv_heads=1,
        head_dim=256,
        mlp_width=mlp_width,
        rope_theta=1e6,
        window=512,
        full_every=6,
        window_rope_theta=1e4,
        qk_norm=True,
        activation="gelu_tanh",
        query_scalar=256.0,
        norm_plus_one=True,
        sandwich_norms=True,
        scaled_embeddings=True,
    )


def gemma3_270m() -> ModelConfig:
    """268,098,176 parameters."""
    return _gemma3(640, 18, 2048)


def gemma3_1b() -> ModelConfig:
    """999,885,952 parameters."""
    return _gemma3(1152, 26, 6912)
