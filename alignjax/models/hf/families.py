"""Tables of each family's config.json fields and tensor names, used for reading and writing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alignjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """The properties that all models of one ``model_type`` share.

    Attributes:
      architecture: the class of a policy that config.json names.
      classifier: the class of a reward model.
      fixed: fields of ModelConfig that every model of the family has with this value.
      optional: fields of config.json that only some families have, with what holds where one is
        left out.
      only: fields of config.json that would change the computation, with the one supported value.
    """

    architecture: str
    classifier: str
    fixed: Mapping[str, Any]
    optional: Mapping[str, Any]
    only: Mapping[str, Any]


_LLAMA_ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_FIXED = {
    "activation": "gelu_tanh",
    "norm_plus_one": True,
    "sandwich_norms": True,
    "scaled_embeddings": True,
}
_GEMMA_ONLY = {
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
}
_GEMMA_OPTIONAL = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "LlamaForSequenceClassification", {}, {}, _LLAMA_ONLY),
    "mistral": Family(
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        {},
        {"sliding_window": 4096},
        _LLAMA_ONLY,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        {"qkv_bias": True},
        _QWEN_WINDOW,
        {"hidden_act": "silu"},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        {"qk_norm": True},
        {**_QWEN_WINDOW, "head_dim": 128},
        _LLAMA_ONLY,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        _GEMMA_FIXED,
        {**_GEMMA_OPTIONAL, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _GEMMA_ONLY,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        {**_GEMMA_FIXED, "qk_norm": True},
        {
            **_GEMMA_OPTIONAL,
            "sliding_window_pattern": 6,
            "final_logit_softcapping": None,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
        # transformers reads the soft-cap on scores and does not apply it.
        {**_GEMMA_ONLY, "attn_logit_softcapping": None},
    ),
}

SIZES = {  # fields of config.json that every family has -> fields of ModelConfig
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
}
# Fields that say nothing about what the network computes from its tokens.
ASIDE = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "cache_implementation"),
    *("max_position_embeddings", "id2label", "label2id", "problem_type", "return_dict"),
    *("_attn_implementation", "attn_implementation", "output_attentions", "output_hidden_states"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "unsloth_version", "unsloth_fixed"),
}

LAYER_TENSORS = {  # path below ``layers`` -> name below ``model.layers.N``; kernels are transposed
    "attention_norm/scale": "input_layernorm.weight",
    **{f"{x}/kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"{x}/bias": f"self_attn.{x}_proj.bias" for x in "qkv"},
    **{f"{x}_norm/scale": f"self_attn.{x}_norm.weight" for x in "qk"},
    "mlp_norm/scale": "post_attention_layernorm.weight",
    **{f"{x}/kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
}
SANDWICH_TENSORS = {  # where a layer has norms after attention and feed-forward too
    **LAYER_TENSORS,
    "attention_out_norm/scale": "post_attention_layernorm.weight",
    "mlp_norm/scale": "pre_feedforward_layernorm.weight",
    "mlp_out_norm/scale": "post_feedforward_layernorm.weight",
}
OTHER_TENSORS = {
    "embed/embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
    "reward/kernel": "score.weight",
}


def tensor_name(path: str, config: ModelConfig) -> str:
    """The tensor of a parameter; for a stacked one with ``{}`` in place of the layer's number."""
    if not path.startswith("layers/"):
        return OTHER_TENSORS[path]
    names = SANDWICH_TENSORS if config.sandwich_norms else LAYER_TENSORS
    return "model.layers.{}." + names[path.removeprefix("layers/")]
