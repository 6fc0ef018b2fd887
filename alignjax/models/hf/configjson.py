"""Reads config.json into a ModelConfig and back; refuses what is not supported by its name."""

import dataclasses
import math
from typing import Any

from alignjax.errors import UserError, did_you_mean
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.models.hf.families import ASIDE, FAMILIES, SIZES, Family

Json = dict[str, Any]

LARGEST = 2**24  # no size is larger: a hostile config costs neither time nor memory
MOST_LAYERS = 1024
_FULL, _WINDOW = "full_attention", "sliding_attention"
_READ = {
    *SIZES,
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "rope_theta"),
    *("rope_scaling", "rope_parameters", "layer_types", "sliding_window"),
    *("sliding_window_pattern", "_sliding_window_pattern"),
}
_ROPE = {
    *("rope_theta", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
}
_SHAPE = [  # what config.json decides; the rest is how the network is run
    f.name
    for f in dataclasses.fields(ModelConfig)
    if f.name not in ("path", "dtype", "param_dtype", "remat", "attention", "logits_chunk")
]


def shape_fields(config: ModelConfig) -> Json:
    """The fields that describe the network itself, by name."""
    return {name: getattr(config, name) for name in _SHAPE}


def labels(content: Json, file: str) -> tuple[str, ...]:
    """The names of a reward model's outputs, empty for a language model.

    Raises:
      UserError: its outputs are not numbered from 0.
    """
    architectures = content.get("architectures")
    if not str(architectures).endswith("ForSequenceClassification']"):
        return ()
    names = content.get("id2label", {"0": "", "1": ""})  # transformers leaves out two
    numbered = isinstance(names, dict) and list(names) == [str(i) for i in range(len(names))]
    if not numbered or not 0 < len(names) <= 1024:
        raise UserError(f"{file}: id2label: wanted names of outputs 0, 1, ..., found {names!r:.80}")
    return tuple(map(str, names.values()))


def read(content: Json, file: str, *, reward: bool = False) -> ModelConfig:
    """Reads the network that a config.json describes; how it is run stays at the defaults.

    Args:
      content, file: the JSON object, and where it is from.
      reward: a reward model's is wanted, not a policy's.

    Raises:
      UserError: the family or an option is not supported, or a field is missing or of a wrong type.
    """
    family = _family(content, file, reward)
    _check_options(content, family, file)
    own = {**family.optional, **content}
    fields: Json = {ours: _size(own, key, file) for key, ours in SIZES.items()}
    if fields["layers"] > MOST_LAYERS:
        raise UserError(f"{file}: num_hidden_layers: wanted {MOST_LAYERS} at most")
    tied = own.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{file}: tie_word_embeddings: wanted true or false, found {tied!r:.80}")
    fields.update(
        kv_heads=_size(own, "num_key_value_heads", file, fields["heads"]),
        head_dim=_size(own, "head_dim", file, fields["width"] // fields["heads"]),
        norm_eps=_positive(own, "rms_norm_eps", file),
        tied_embeddings=tied,
        **family.fixed,
        **_rope(own, file),
        **_window(own, family, fields["layers"], file),
    )
    if "query_pre_attn_scalar" in own:
        fields["query_scalar"] = _positive(own, "query_pre_attn_scalar", file)
    for key, ours in (
        ("attn_logit_softcapping", "attention_softcap"),
        ("final_logit_softcapping", "logit_softcap"),
    ):
        if own.get(key) is not None:
            fields[ours] = _positive(own, key, file)
    try:
        return ModelConfig(**fields)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _family(content: Json, file: str, reward: bool) -> Family:
    """The family of ``model_type``, for a model of the right kind, a policy or a reward model."""
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
    """Refuses every option that could change what the network computes and is not supported."""
    for key, value in content.items():
        if key in family.only:
            if value not in (None, family.only[key]):
                only = family.only[key]
                raise UserError(f"{file}: {key}: wanted {only!r}, found {value!r:.80}")
            continue
        known = key in ASIDE or key in _READ or key in family.optional
        # None and false switch an option off, also one that is newer than this code.
        if not known and value is not None and value is not False:
            raise UserError(f"{file}: {key}: this option is not supported (found {value!r:.80})")


def _positive(fields: Json, key: str, file: str, default: Any = None) -> float:
    value = fields.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"{file}: {key}: wanted a number above 0, found {value!r:.80}")
    return float(value)


def _size(fields: Json, key: str, file: str, default: Any = None) -> int:
    value = _positive(fields, key, file, default)
    if value != int(value) or value > LARGEST:
        raise UserError(f"{file}: {key}: wanted a whole number to {LARGEST}, found {value:g}")
    return int(value)


def _rope(own: Json, file: str) -> Json:
    """Rotary options, from ``rope_theta`` and ``rope_scaling`` or the newer ``rope_parameters``."""
    scaling = own.get("rope_scaling") or {}
    parameters = own.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise UserError(f"{file}: rope_parameters, rope_scaling: wanted objects")
    windowed = parameters.get(_WINDOW) or {}
    parameters = parameters.get(_FULL, parameters)  # Gemma 3: one object for each kind of layer
    if not isinstance(windowed, dict) or not isinstance(parameters, dict):
        raise UserError(f"{file}: rope_parameters: wanted objects for each kind of layer")
    if windowed.get("rope_type", "default") != "default":
        raise UserError(f"{file}: rope_parameters.{_WINDOW}: scaling is not supported")
    for key in {**scaling, **windowed, **parameters}:
        if key not in _ROPE:
            raise UserError(f"{file}: rope_scaling.{key}: this option is not supported")
    own = {"rope_theta": 1e4, **own, **scaling, **parameters}
    fields: Json = {"rope_theta": _positive(own, "rope_theta", file)}
    if "rope_local_base_freq" in own:
        own["rope_local_base_freq"] = windowed.get("rope_theta", own["rope_local_base_freq"])
        fields["window_rope_theta"] = _positive(own, "rope_local_base_freq", file)
    kind = own.get("rope_type", own.get("type", "default"))
    if kind == "default":
        return fields
    if kind not in ("llama3", "linear"):
        raise UserError(
            f"{file}: rope_scaling: {kind!r:.80} is not supported; llama3 and linear are"
        )
    options: Json = {"kind": kind, "factor": _positive(own, "factor", file)}
    if kind == "llama3":
        for key in ("low_freq_factor", "high_freq_factor"):
            options[key] = _positive(own, key, file)
        options["original_length"] = _size(own, "original_max_position_embeddings", file)
    return {**fields, "rope_scaling": RopeScaling(**options)}


def _window(own: Json, family: Family, layers: int, file: str) -> Json:
    """Reads which layers have a window: all, none, or all but every n-th."""
    off = own.get("sliding_window") is None or own.get("use_sliding_window") is False
    if off or "sliding_window" not in family.optional:
        return {}
    window: Json = {"window": _size(own, "sliding_window", file)}
    types = own.get("layer_types")
    if types is None and own.get("max_window_layers"):  # these first ones have none
        full = min(layers, _size(own, "max_window_layers", file))
        types = [_FULL] * full + [_WINDOW] * (layers - full)
    if types is None:
        every = 0
        if "sliding_window_pattern" in own:
            every = _size(own, "sliding_window_pattern", file)
        return {**window, "full_every": every} if 0 < every <= layers else window
    known = isinstance(types, list) and all(t in (_FULL, _WINDOW) for t in types)
    if not known or len(types) != layers:
        raise UserError(f"{file}: layer_types: wanted {layers} of {_FULL} and {_WINDOW}")
    if _FULL not in types:
        return window
    every = types.index(_FULL) + 1
    if every == 1 and _WINDOW not in types:
        return {}
    if any((t == _FULL) != ((i + 1) % every == 0) for i, t in enumerate(types)):
        raise UserError(
            f"{file}: layer_types: these windows are not supported; in all layers, in none, or in "
            "all but every n-th"
        )
    return {**window, "full_every": every}


def write(config: ModelConfig, family: str = "", outputs: tuple[str, ...] = ()) -> Json:
    """Makes a config.json that describes the network.

    Args:
      config: the network.
      family: the ``model_type`` to prefer; some networks are of several.
      outputs: the names of a reward model's outputs; empty: it is a policy's.

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
    """The config.json of a network as one of a family; `write` checks that it says everything."""
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
        "rope_scaling": _rope_fields(c.rope_scaling),
        "torch_dtype": c.param_dtype,
        **family.only,
    }
    if "sliding_window" in family.optional:
        content["sliding_window"] = c.window
    if "use_sliding_window" in family.optional:
        content |= {"use_sliding_window": c.window is not None, "max_window_layers": 0}
    if "sliding_window_pattern" in family.optional:
        full = [c.full_every > 0 and (i + 1) % c.full_every == 0 for i in range(c.layers)]
        content["layer_types"] = [_FULL if x or c.window is None else _WINDOW for x in full]
        scalar = c.query_scalar
        whole = scalar is not None and scalar == int(scalar)  # transformers wants it so
        content["query_pre_attn_scalar"] = int(scalar) if scalar and whole else scalar
        content["final_logit_softcapping"] = c.logit_softcap
        if c.full_every:
            content["sliding_window_pattern"] = c.full_every
    if "attn_logit_softcapping" in family.optional:
        content["attn_logit_softcapping"] = c.attention_softcap
    if "rope_local_base_freq" in family.optional:
        content["rope_local_base_freq"] = c.window_rope_theta
    return content


def _rope_fields(scaling: RopeScaling | None) -> Json | None:
    if scaling is None:
        return None
    fields: Json = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return fields
