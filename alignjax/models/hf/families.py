"""Tables of each family's config.json fields and tensor names, used for reading and writing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from alignjax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """The properties that all models of one ``model_type`` share.

    Attributes:
      architecture: transformers' class of a policy, as config.json names it.
      classifier: transformers' class of a reward model.
      fixed: fields of ModelConfig that have the same value in every model of the family.
      optional: fields of config.json that only some families read, with their defaults.
      only: fields of config.json that would change the computation, with their supported values.
      biases: fields of config.json that switch biases on -> the ModelConfig fields they set.
      unread: fields of config.json that other families read and this one ignores.
    """

    architecture: str
    classifier: str
    fixed: Mapping[str, Any]
    optional: Mapping[str, Any]
    only: Mapping[str, tuple[Any, ...]]
    biases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    unread: frozenset[str] = frozenset()


_SILU = {"hidden_act": ("silu", "swish")}  # two names of one function
_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "o_bias")}
_NO_WINDOW = frozenset({"sliding_window", "max_window_layers", "use_sliding_window"})
_QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA_FIXED = {
    "activation": "gelu_tanh",
    "norm_plus_one": True,
    "sandwich_norms": True,
    "scaled_embeddings": True,
}
_GEMMA_ONLY = {
    "use_bidirectional_attention": (False,),
    "hidden_activation": ("gelu_pytorch_tanh",),
}
_GEMMA_UNREAD = frozenset({"hidden_act", "sliding_window_size"})
_GEMMA_OPTIONAL = {
    "tie_word_embeddings": True,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 2,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        {},
        {},
        _SILU,
        {**_ATTENTION_BIAS, "mlp_bias": ("mlp_bias",)},
        _NO_WINDOW,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        {},
        {"sliding_window": 4096},
        _SILU,
        unread=_NO_WINDOW - {"sliding_window"},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        {"qkv_bias": True},
        _QWEN_WINDOW,
        _SILU,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        {"qk_norm": True},
        {**_QWEN_WINDOW, "head_dim": 128},
        _SILU,
        _ATTENTION_BIAS,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        _GEMMA_FIXED,
        {**_GEMMA_OPTIONAL, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        _GEMMA_ONLY,
        _ATTENTION_BIAS,
        _GEMMA_UNREAD,
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
        {**_GEMMA_ONLY, "attn_logit_softcapping": (None,)},
        _ATTENTION_BIAS,
        _GEMMA_UNREAD,
    ),
}

SIZES = {  # fields of config.json that every family has -> fields of ModelConfig
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
}
# Fields that do not affect the computation, and that transformers 4 and 5 write for every model.
ASIDE = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "cache_implementation"),
    *("max_position_embeddings", "id2label", "label2id", "problem_type", "return_dict"),
    *("_attn_implementation", "attn_implementation", "output_attentions", "output_hidden_states"),
    *("chunk_size_feed_forward", "is_encoder_decoder"),
}
# Fields that do not affect the computation, of some versions or other programs; they are logged.
NOTES = {
    *("num_labels", "tokenizer_class", "prefix", "finetuning_task", "task_specific_params"),
    *("_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash"),
    *("_experts_implementation", "_experts_implementation_internal", "experts_implementation"),
    *("_flash_attn_2_enabled", "_from_model_config", "_num_labels", "_output_attentions"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "xla_device", "gradient_checkpointing"),
    *("is_decoder", "use_return_dict", "use_flash_attn", "use_flash_attention", "base_model"),
    *("is_llama_config", "max_sequence_length", "model_max_length", "neftune_noise_alpha"),
    # Sampling options, which older versions kept in config.json.
    *("assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "do_sample"),
    *("begin_suppress_tokens", "diversity_penalty", "early_stopping", "epsilon_cutoff"),
    *("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "eta_cutoff", "min_p"),
    "exponential_decay_length_penalty",
    *("length_penalty", "max_length", "max_new_tokens", "min_length", "no_repeat_ngram_size"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams"),
    *("num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty"),
    *("return_dict_in_generate", "suppress_tokens", "target_lookbehind", "temperature", "top_k"),
    *("top_p", "typical_p", "suppress_blank", "output_logits", "renormalize_logits"),
}
NOTE_PREFIXES = ("transformers.", "transformers_", "unsloth_", "onnx")
NOTE_SUFFIXES = ("name_or_path", "_token", "_token_id", "_version")
# Fields that change the computation, unless they have one of these values.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": ({},),
    "per_layer_config": ({},),
}

LAYER_TENSORS = {  # path below ``layers`` -> name below ``model.layers.N``; kernels are transposed
    "attention_norm/scale": "input_layernorm.weight",
    **{f"{x}/kernel": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"{x}/bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"{x}_norm/scale": f"self_attn.{x}_norm.weight" for x in "qk"},
    "mlp_norm/scale": "post_attention_layernorm.weight",
    **{f"{x}/kernel": f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"{x}/bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
}
SANDWICH_TENSORS = {  # of layers with norms after attention and feed-forward too
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
    """Returns the name of a parameter's tensor; ``{}`` stands for a layer's number."""
    if not path.startswith("layers/"):
        return OTHER_TENSORS[path]
    names = SANDWICH_TENSORS if config.sandwich_norms else LAYER_TENSORS
    return "model.layers.{}." + names[path.removeprefix("layers/")]
