"""Converts GGUF files to transformers' config.json and tensor names, and back.

Supports the families in `families`, with any quantisation that the package ``gguf`` decodes.
llama.cpp permutes the rows of Llama's queries and keys, and adds 1 to Gemma's norms; reading undoes
both.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from alignjax import gguf_files
from alignjax.errors import UserError
from alignjax.models.config import RopeScaling
from alignjax.models.hf.families import FAMILIES
from alignjax.models.hf.tensorfile import Tensor

Json = dict[str, Any]

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
_FIELDS = {  # below the architecture's name -> config.json
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_ASIDE = {"rope.dimension_count", "attention.value_length", "attention.causal", "expert_count"}
_ROPE = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
_NOTES = ("rope.scaling.finetuned", "rope.scaling.attn_factor", "tensor_data_layout")
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SANDWICH = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTSIDE = {  # of tensors outside the layers
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
FREQUENCIES = "rope_freqs.weight"  # divisors of Llama 3's rotary frequencies


def config(path: str) -> Json:
    """Makes a config.json from a file's metadata.

    Raises:
      UserError: the architecture or a field is not supported.
    """
    fields, tensors = gguf_files.read(path)
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: general.architecture: {kind!r:.80} is not supported; {known} are")
    own = {k.removeprefix(f"{kind}."): v for k, v in fields.items() if k.startswith(f"{kind}.")}
    family = FAMILIES[ARCHITECTURES[kind]]
    names = {tensor.name: tensor for tensor in tensors}
    content: Json = {
        "model_type": ARCHITECTURES[kind],
        "architectures": [family.architecture],
        "tie_word_embeddings": "output.weight" not in names,
        **{key: allowed[0] for key, allowed in family.only.items()},
        **{theirs: own[ours] for ours, theirs in _FIELDS.items() if ours in own},
    }
    if "token_embd.weight" in names:
        content["vocab_size"] = int(names["token_embd.weight"].shape[1])
    content |= _head(path, kind, own, content)
    content |= _rope(path, kind, own, names)
    for key, tensor in (("attention_bias", "attn_q.bias"), ("mlp_bias", "ffn_gate.bias")):
        if key in family.biases:
            content[key] = f"blk.0.{tensor}" in names
    for key in ("bos", "eos", "padding"):
        if (index := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            content[f"{key.removesuffix('ding')}_token_id"] = int(index)
    for key, value in own.items():
        if key not in _FIELDS and key not in _ASIDE and key not in (*_ROPE, *_NOTES):
            raise UserError(f"{path}: {kind}.{key}: this field is not supported (found {value!r})")
    return content


def _head(path: str, kind: str, own: Json, content: Json) -> Json:
    """Reads ``head_dim``, and derives Gemma's ``query_pre_attn_scalar``, which is not stored."""
    width, heads = content.get("hidden_size", 0), content.get("num_attention_heads", 1)
    size = own.get("attention.key_length", own.get("rope.dimension_count", width // heads))
    for key, wanted in (
        ("rope.dimension_count", size),
        ("attention.value_length", size),
        ("attention.causal", True),
        ("expert_count", 0),
    ):
        if own.get(key, wanted) != wanted:
            raise UserError(f"{path}: {kind}.{key}: wanted {wanted!r}, found {own[key]!r:.80}")
    if not kind.startswith("gemma"):
        return {"head_dim": size}
    # It is the head's size, except in the 27B models, which are known by their layers.
    large = content.get("num_hidden_layers") == {"gemma2": 46, "gemma3": 62}[kind]
    return {"head_dim": size, "query_pre_attn_scalar": width // heads if large else size}


def _rope(path: str, kind: str, own: Json, names: Json) -> Json:
    """Reads ``rope_scaling``."""
    form = own.get("rope.scaling.type", "none")
    if FREQUENCIES in names:
        size = own.get("attention.key_length", own.get("rope.dimension_count"))
        divisors = gguf_files.dequantize(path, names[FREQUENCIES])
        return {"rope_scaling": _llama3(path, divisors, own.get("rope.freq_base", 1e4), size)}
    if form == "none":
        return {}
    return {"rope_scaling": {"rope_type": form, "factor": own.get("rope.scaling.factor")}}


def _llama3(path: str, divisors: np.ndarray, theta: float, size: Any) -> Json:
    """Recovers Llama 3's options from the divisors of its frequencies.

    Only ``factor`` varies between models: the file is checked against the usual other options.

    Raises:
      UserError: these options do not give the file's divisors.
    """
    scaling = RopeScaling(factor=float(divisors.max()))
    wanted = 1.0 / _frequency_scale(scaling, theta, size or 2 * len(divisors))
    if wanted.shape != divisors.shape or not np.allclose(divisors, wanted, rtol=1e-3):
        raise UserError(f"{path}: tensor {FREQUENCIES!r}: wanted a scaling as Llama 3's")
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_length,
    }


def _frequency_scale(scaling: RopeScaling, theta: float, size: int) -> np.ndarray:
    """Returns the factor of each frequency under Llama 3's scaling, ``[head_dim / 2]``."""
    turns = scaling.original_length / (2 * math.pi * theta ** (np.arange(0, size, 2) / size))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(keep + (1.0 - keep) / scaling.factor)


def tensors(path: str) -> dict[str, Tensor]:
    """Lists every tensor under the name that transformers gives it; opening one decodes it."""
    fields, entries = gguf_files.read(path)
    kind = fields.get("general.architecture")
    content = config(path)
    sandwich = kind in ("gemma2", "gemma3")
    all_heads = content["num_attention_heads"]
    paired = {"attn_q": all_heads, "attn_k": content.get("num_key_value_heads", all_heads)}
    tensors = {}
    for tensor in entries:
        if tensor.name == FREQUENCIES:
            continue
        name = _name(tensor.name, _SANDWICH if sandwich else _LAYER)
        part = tensor.name.split(".")[-2]
        heads = paired.get(part, 0) if kind == "llama" else 0
        plus_one = sandwich and "norm" in tensor.name
        decode: Callable[[], np.ndarray] = functools.partial(_decode, path, tensor, heads, plus_one)
        if part in _OUTSIDE:  # the loader opens these once for every few rows
            decode = functools.cache(decode)
        shape = tuple(int(x) for x in tensor.shape[::-1])
        tensors[name] = Tensor(pathlib.Path(path), "F32", shape, 0, decode)
    return tensors


def _name(name: str, layer: dict[str, str]) -> str:
    """Returns the name in transformers, or the file's own name if transformers has none."""
    stem, _, suffix = name.rpartition(".")
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{suffix}"
    block, _, part = stem.removeprefix("blk.").partition(".")
    if stem.startswith("blk.") and part in layer:
        return f"model.layers.{block}.{layer[part]}.{suffix}"
    return name


def _decode(path: str, tensor: Any, heads: int, plus_one: bool) -> np.ndarray:
    """Decodes a tensor, in the layout of transformers.

    Args:
      path, tensor: the file and its entry.
      heads: in each of this many heads, the rows of a rotary pair are adjacent, where transformers
        has them half a head apart; 0: the rows are in transformers' order.
      plus_one: the file stores the values + 1.
    """
    values: np.ndarray = gguf_files.dequantize(path, tensor)
    if heads:
        pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    return values - 1 if plus_one else values


def fields_of(content: Json, family: str) -> Json:
    """Makes the metadata that describe a network.

    Args:
      content: the network's config.json, from `configjson.write`.
      family: its ``model_type``.

    Raises:
      UserError: GGUF has no such rotary scaling.
    """
    kind = next((k for k, name in ARCHITECTURES.items() if name == family), "llama")
    own = {ours: content[theirs] for ours, theirs in _FIELDS.items() if theirs in content}
    if not kind.startswith("gemma"):
        own.pop("attention.sliding_window", None)
    own |= {"rope.dimension_count": content["head_dim"]}
    own |= {"attention.value_length": content["head_dim"]}
    scaling = content.get("rope_scaling") or {}
    form = scaling.get("rope_type", "none")
    if form == "linear":
        own |= {"rope.scaling.type": form, "rope.scaling.factor": scaling["factor"]}
    elif form not in ("none", "llama3"):  # Llama 3's scaling is stored as a tensor
        raise UserError(f"rope_scaling: GGUF files have no kind {form!r:.80}")
    named = {f"{kind}.{key}": value for key, value in own.items() if value is not None}
    return {"general.architecture": kind, **named}


def sources_of(
    tensors: dict[str, Tensor], fields: Json, scaling: RopeScaling | None
) -> list[gguf_files.Source]:
    """Converts a folder's tensors to those of a GGUF file.

    Args:
      tensors: by their names in transformers.
      fields: the metadata, from `fields_of`.
      scaling: the network's rotary scaling.
    """
    kind = fields["general.architecture"]
    own = {key.removeprefix(f"{kind}."): value for key, value in fields.items()}
    sandwich = kind in ("gemma2", "gemma3")
    parts = {theirs: ours for ours, theirs in (_SANDWICH if sandwich else _LAYER).items()}
    outside = {theirs: ours for ours, theirs in _OUTSIDE.items()}
    all_heads = own["attention.head_count"]
    paired = {"attn_q": all_heads, "attn_k": own.get("attention.head_count_kv", all_heads)}
    sources: list[gguf_files.Source] = []
    if scaling is not None and scaling.kind == "llama3":
        divisors = 1 / _frequency_scale(scaling, own["rope.freq_base"], own["rope.dimension_count"])
        sources.append((FREQUENCIES, divisors.shape, lambda: divisors))
    for name, tensor in tensors.items():
        stem, _, suffix = name.rpartition(".")
        part = outside.get(stem, "")
        if not part:
            block, _, rest = stem.removeprefix("model.layers.").partition(".")
            part = f"blk.{block}.{parts[rest]}"
        heads = paired.get(part.rpartition(".")[2], 0) if kind == "llama" else 0
        plus_one = sandwich and "norm" in part
        get = functools.partial(_encode, tensor, heads, plus_one)
        sources.append((f"{part}.{suffix}", tensor.shape, get))
    return sources


def _encode(tensor: Tensor, heads: int, plus_one: bool) -> np.ndarray:
    """Converts a tensor to llama.cpp's layout: the reverse of `_decode`."""
    values = np.asarray(tensor.open(), np.float32)
    if heads:
        halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
        values = halves.swapaxes(1, 2).reshape(values.shape)
    return values + 1 if plus_one else values
