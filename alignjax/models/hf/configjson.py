"""Converts config.json to a ModelConfig and back; an error names an unsupported field."""

import dataclasses
from typing import Any

from alignjax.errors import UserError, did_you_mean
from alignjax.models.config import ModelConfig
from alignjax.models.hf import rope
from alignjax.models.hf.families import (
    ASIDE,
    FAMILIES,
    NEUTRAL,
    NOTE_PREFIXES,
    NOTE_SUFFIXES,
    NOTES,
    SIZES,
    Family,
)
from alignjax.models.hf.rope import FULL, WINDOW
from alignjax.models.hf.values import positive, size

Json = dict[str, Any]

MOST_LAYERS = 1024
_READ = {
    *SIZES,
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta"),
    *("rope_scaling", "rope_parameters", "layer_types", "original_max_position_embeddings"),
    "_sliding_window_pattern",
}
_SHAPE = [  # the fields that config.json sets; the others say how the network is run
    f.name
    for f in dataclasses.fields(ModelConfig)
    if f.name not in ("path", "dtype", "param_dtype", "remat", "attention", "logits_chunk")
]


def shape_fields(config: ModelConfig) -> Json:
    """Returns the fields that describe the network itself, by name."""
    return {name: getattr(config, name) for name in _SHAPE}


def labels(content: Json, file: str) -> tuple[str, ...]:
    """Returns the names of a reward model's outputs, empty for a language model.

    Raises:
      UserError: the outputs are not numbered from 0.
    """
    architectures = content.get("architectures")
    if not str(architectures).endswith("ForSequenceClassification']"):
        return ()
    names = content.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # transformers' default
    numbered = isinstance(names, dict) and list(names) == [str(i) for i in range(len(names))]
    if not numbered or not 0 < len(names) <= 1024:
        raise UserError(f"{file}: id2label: wanted names of outputs 0, 1, ..., found {names!r:.80}")
    return tuple(map(str, names.values()))


def two_labels(content: Json, names: tuple[str, ...]) -> tuple[str, str] | None:
    """Returns the two labels of a classifier that chooses one of them, else None.

    Two outputs trained by regression or as independent labels are two objectives, not a choice.
    """
    independent = content.get("problem_type") in ("regression", "multi_label_classification")
    return None if len(names) != 2 or independent else (names[0], names[1])


def read(content: Json, file: str, *, reward: bool = False) -> ModelConfig:
    """Reads the network that a config.json describes; other fields keep their defaults.

    Args:
      content, file: the JSON object, and its file for messages.
      reward: expect a reward model instead of a policy.

    Raises:
      UserError: the family or an option is not supported, or a field is missing or of a wrong type.
    """
    family = _family(content, file, reward)
    _check_options(content, family, file)
    own = {**family.optional, **content}
    fields: Json = {ours: size(own, key, file) for key, ours in SIZES.items()}
    if fields["layers"] > MOST_LAYERS:
        raise UserError(f"{file}: num_hidden_layers: wanted {MOST_LAYERS} at most")
    fields.update(
        kv_heads=size(own, "num_key_value_heads", file, fields["heads"]),
        head_dim=size(own, "head_dim", file, fields["width"] // fields["heads"]),
        norm_eps=positive(own, "rms_norm_eps", file),
        tied_embeddings=_flag(own, "tie_word_embeddings", file),
        **family.fixed,
        **rope.read(content, family.optional, file),
        **_window(own, family, fields["layers"], file),
    )
    for key, names in family.biases.items():
        fields.update(dict.fromkeys(names, _flag(own, key, file)))
    if "query_pre_attn_scalar" in own:
        fields["query_scalar"] = positive(own, "query_pre_attn_scalar", file)
    for key, ours in (
        ("attn_logit_softcapping", "attention_softcap"),
        ("final_logit_softcapping", "logit_softcap"),
    ):
        if own.get(key) is not None:
            fields[ours] = positive(own, key, file)
    try:
        return ModelConfig(**fields)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _family(content: Json, file: str, reward: bool) -> Family:
    """Returns the family of ``model_type``, and checks the architecture: policy or reward model."""
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = did_you_mean(str(kind), FAMILIES)
        raise UserError(
            f"{file}: model_type: {kind!r:.80} is not supported{near}; {', '.join(FAMILIES)} are"
        )
    family = FAMILIES[kind]
    wanted = family.classifier if reward else family.architecture
    architectures = content.get("architectures") or [family.architecture]
    if architectures != [wanted]:
        raise UserError(f"{file}: architectures: wanted {wanted}, found {architectures!r:.80}")
    return family


def _check_options(content: Json, family: Family, file: str) -> None:
    """Refuses unsupported options that could change what the network computes."""
    for key, value in content.items():
        allowed = family.only.get(key)
        if allowed is None and key not in family.biases:
            allowed = NEUTRAL.get(key)
        if allowed is not None and not (value is None or value in allowed or _is_off(key, value)):
            wanted = " or ".join(map(repr, allowed or (None,)))
            raise UserError(f"{file}: {key}: wanted {wanted}, found {value!r:.80}")
        read = key in _READ or key in family.optional or key in family.biases
        if allowed is None and not read and key not in ASIDE and not _is_note(key, value, family):
            raise UserError(f"{file}: {key}: this option is not supported (found {value!r:.80})")


def _is_note(key: str, value: Any, family: Family) -> bool:
    """Whether a field that is not read has no effect on the computation."""
    # None and false switch an option off, even an option that is newer than this code.
    off = value is None or value is False
    named = key.startswith(NOTE_PREFIXES) or key.endswith(NOTE_SUFFIXES)
    return off or named or key in NOTES or key in family.unread


def _is_off(key: str, value: Any) -> bool:
    """Whether a ``quantization_config`` says that the weights are not quantised."""
    if key != "quantization_config" or not isinstance(value, dict):
        return False
    bits = [value.get("load_in_4bit"), value.get("load_in_8bit")]
    return value.get("quant_method") == "bitsandbytes" and bits == [False, False]


def notes(content: Json) -> list[str]:
    """Lists the fields of a config.json that have no effect, for the log.

    Fields that transformers writes for every model are left out.
    """
    family = FAMILIES[content["model_type"]]
    known = {*ASIDE, *_READ, *family.optional, *family.biases, *family.only}
    return sorted(k for k, v in content.items() if k not in known and v is not None)


def _flag(fields: Json, key: str, file: str) -> bool:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise UserError(f"{file}: {key}: wanted true or false, found {value!r:.80}")
    return bool(value)


def _window(own: Json, family: Family, layers: int, file: str) -> Json:
    """Reads ``window`` and ``full_every``: a window in all, none, or all but every n-th."""
    types = own.get("layer_types")
    known = isinstance(types, list) and all(t in (FULL, WINDOW) for t in types)
    if types is not None and (not known or len(types) != layers):
        raise UserError(f"{file}: layer_types: wanted {layers} of {FULL} and {WINDOW}")
    off = own.get("sliding_window") is None or "sliding_window" not in family.optional
    if off or ("use_sliding_window" in family.optional and not own["use_sliding_window"]):
        if types is not None and WINDOW in types:
            raise UserError(f"{file}: layer_types: wanted {FULL} alone where no window is set")
        return {}
    window: Json = {"window": size(own, "sliding_window", file)}
    if types is None and own.get("max_window_layers"):  # the first layers have no window
        full = min(layers, size(own, "max_window_layers", file))
        types = [FULL] * full + [WINDOW] * (layers - full)
    if types is None:
        every = 0
        if "sliding_window_pattern" in own:
            every = size(own, "sliding_window_pattern", file)
        return {**window, "full_every": every} if 0 < every <= layers else window
    if FULL not in types:
        return window
    every = types.index(FULL) + 1
    uniform = set(family.optional) & {"use_sliding_window", "sliding_window_pattern"}
    if every == 1 and WINDOW not in types and uniform:
        return {}
    if not uniform or any((t == FULL) != ((i + 1) % every == 0) for i, t in enumerate(types)):
        raise UserError(
            f"{file}: layer_types: this order is not supported; wanted a window in all layers, in "
            "none, or in all but every n-th"
        )
    return {**window, "full_every": every}


def write(config: ModelConfig, family: str = "", outputs: tuple[str, ...] = ()) -> Json:
    """Makes a config.json that describes the network.

    Args:
      config: the network.
      family: the ``model_type`` to prefer; several families can describe some networks.
      outputs: the names of a reward model's outputs; empty for a policy.

    Raises:
      UserError: no family has this combination of options.
    """
    for kind in sorted(FAMILIES, key=lambda kind: kind != family):
        content = _fields(config, kind)
        try:
            same = shape_fields(read(content, "")) == shape_fields(config)
        except UserError:
            same = False
        if same and outputs:
            content["architectures"] = [FAMILIES[kind].classifier]
            content["id2label"] = {str(i): name for i, name in enumerate(outputs)}
            content["label2id"] = {name: i for i, name in enumerate(outputs)}
            content["problem_type"] = "regression"
        if same:
            return content
    raise UserError(f"model: no family of {', '.join(FAMILIES)} has this combination of options")


def _fields(config: ModelConfig, kind: str) -> Json:
    """Makes the config.json of a network as one family writes it.

    `write` reads it back, to check that the family can express the network.
    """
    c, family = config, FAMILIES[kind]
    content: Json = {
        "architectures": [family.architecture],
        "model_type": kind,
        **{key: getattr(c, ours) for key, ours in SIZES.items()},
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tied_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": rope.write(c.rope_scaling),
        "torch_dtype": c.param_dtype,
        **{key: allowed[0] for key, allowed in family.only.items()},
        **{key: getattr(c, ours[-1]) for key, ours in family.biases.items()},
    }
    if c.rope_scaling is not None and c.rope_scaling.kind == "dynamic":
        content["max_position_embeddings"] = c.rope_scaling.original_length
    if "sliding_window" in family.optional:
        content["sliding_window"] = c.window
    if "use_sliding_window" in family.optional:
        content |= {"use_sliding_window": c.window is not None, "max_window_layers": 0}
    if "sliding_window_pattern" in family.optional:
        full = [c.full_every > 0 and (i + 1) % c.full_every == 0 for i in range(c.layers)]
        content["layer_types"] = [FULL if x or c.window is None else WINDOW for x in full]
        scalar = c.query_scalar
        integral = scalar is not None and scalar == int(scalar)  # transformers wants an int
        content["query_pre_attn_scalar"] = int(scalar) if scalar and integral else scalar
        content["final_logit_softcapping"] = c.logit_softcap
        if c.full_every:
            content["sliding_window_pattern"] = c.full_every
    if "attn_logit_softcapping" in family.optional:
        content["attn_logit_softcapping"] = c.attention_softcap
    if "rope_local_base_freq" in family.optional:
        content["rope_local_base_freq"] = c.window_rope_theta
    return content
