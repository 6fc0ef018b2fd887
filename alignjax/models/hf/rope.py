"""Reads and writes the rotary options of config.json, in the forms of transformers 4 and 5.

Version 4 writes ``rope_theta`` and ``rope_scaling``. Version 5 writes ``rope_parameters``, with one
object for each kind of layer in Gemma 3. A file may have both forms if they agree.
"""

from collections.abc import Mapping
from typing import Any

from alignjax.errors import UserError
from alignjax.models.config import ROPE_SCALINGS, RopeScaling
from alignjax.models.hf.values import positive, size

Json = dict[str, Any]

FULL, WINDOW = "full_attention", "sliding_attention"
_KNOWN = {  # options that transformers ignores where a kind of scaling does not read them
    *("rope_theta", "rope_type", "type", "factor", "low_freq_factor", "high_freq_factor"),
    *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"),
    *("mscale_all_dim", "truncate", "short_factor", "long_factor", "partial_rotary_factor"),
}


def read(content: Json, optional: Mapping[str, Any], file: str) -> Json:
    """Reads the rotary fields of ModelConfig.

    Args:
      content: the config.json.
      optional: `Family.optional`, the defaults.
      file: its name, for messages.

    Raises:
      UserError: the kind of scaling is not supported, or the two forms differ.
    """
    scaling, windowed = _by_layer(content, "rope_scaling", file)
    parameters, new_windowed = _by_layer(content, "rope_parameters", file)
    own = _join(file, rope_scaling=scaling, rope_parameters=parameters)
    windowed = _join(file, rope_scaling=windowed, rope_parameters=new_windowed)
    top = {k: content[k] for k in ("rope_theta",) if content.get(k) is not None}
    theta = _join(file, config=top, rope_parameters={k: own[k] for k in own if k in top})
    default = optional.get("rope_theta", 1e4)
    fields: Json = {"rope_theta": positive({**own, **theta}, "rope_theta", file, default)}
    if "rope_local_base_freq" in optional:
        local = content.get("rope_local_base_freq")
        given = {} if local is None else {"rope_theta": local}
        named = {k: v for k, v in windowed.items() if k == "rope_theta"}
        local = _join(file, rope_local_base_freq=given, sliding_attention=named)
        default = optional["rope_local_base_freq"]
        fields["window_rope_theta"] = positive(local, "rope_theta", file, default)
    if windowed.get("rope_type", "default") != "default":
        raise UserError(f"{file}: rope_parameters.{WINDOW}: scaling is not supported")
    kind = own.get("rope_type", "default")
    if kind == "default":
        return fields
    return {**fields, "rope_scaling": _scaling(kind, own, content, file)}


def _scaling(kind: Any, own: Json, content: Json, file: str) -> RopeScaling:
    if kind not in ROPE_SCALINGS:
        raise UserError(
            f"{file}: rope_scaling: {kind!r:.80} is not supported; {', '.join(ROPE_SCALINGS)} are"
        )
    options: Json = {"kind": kind, "factor": positive(own, "factor", file)}
    if kind == "dynamic":
        options["original_length"] = size(content, "max_position_embeddings", file)
    if kind == "llama3":
        for key in ("low_freq_factor", "high_freq_factor"):
            options[key] = positive(own, key, file)
        key = "original_max_position_embeddings"
        lengths = [{key: x[key]} for x in (content, own) if x.get(key) is not None]
        joined = _join(file, config=lengths[0], rope_scaling=lengths[-1]) if lengths else {}
        default = content.get("max_position_embeddings")
        options["original_length"] = size(joined, key, file, default)
    return RopeScaling(**options)


def _by_layer(content: Json, key: str, file: str) -> tuple[Json, Json]:
    """Returns the options of layers with full attention, and those of layers with a window."""
    given = content.get(key) or {}
    if not isinstance(given, dict):
        raise UserError(f"{file}: {key}: wanted an object, found {given!r:.80}")
    nested = FULL in given or WINDOW in given
    parts = [given.get(FULL) or {}, given.get(WINDOW) or {}] if nested else [given, {}]
    for part in parts:
        if not isinstance(part, dict):
            raise UserError(f"{file}: {key}: wanted objects for each kind of layer")
        for name, value in part.items():
            is_set = value is not None and value is not False
            if is_set and (name not in _KNOWN or (name == "partial_rotary_factor" and value != 1)):
                raise UserError(
                    f"{file}: {key}.{name}: this option is not supported (found {value!r:.80})"
                )
    return _set_options(parts[0]), _set_options(parts[1])


def _set_options(part: Json) -> Json:
    """Returns the options that are set, with ``type`` under its newer name ``rope_type``."""
    named = {"rope_type": part.get("type"), **part}
    return {k: v for k, v in named.items() if v is not None and k != "type"}


def _join(file: str, **forms: Json) -> Json:
    """Joins two forms of the same options.

    Raises:
      UserError: they differ.
    """
    (first, old), (second, new) = forms.items()
    for key in old.keys() & new.keys():
        if old[key] != new[key]:
            raise UserError(
                f"{file}: {key}: {first} says {old[key]!r:.80}, {second} says {new[key]!r:.80}; "
                "wanted the same value"
            )
    return {**old, **new}


def write(scaling: RopeScaling | None) -> Json | None:
    """Makes the ``rope_scaling`` of config.json."""
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
