"""Writes a tokenizer as the metadata of a GGUF file; `gguf.files` reads it back.

`gguf.WORDS` has the ways to split text into words that are supported: other tokenizers are refused.
"""

import json
import logging
from typing import Any

from alignjax.data.tokenizer import files, kinds
from alignjax.data.tokenizer.gguf import NAMED, WORDS
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError

Json = dict[str, Any]
Tokens = dict[int, tuple[str, float, int]]  # id -> its text, its score, its kind

log = logging.getLogger("alignjax")

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BPE = 1, 3, 4, 5, 2  # sentencepiece's numbers


def fields(folder: str, tokenizer: Tokenizer, rows: int) -> Json:
    """Makes the metadata of a folder's tokenizer.

    Args:
      folder: the tokenizer's files.
      tokenizer: loaded from the folder.
      rows: rows of the embedding, at least one per id; rows without a token are marked unused.

    Raises:
      UserError: GGUF does not support this kind of tokenizer.
    """
    file = files.model_file(folder)
    content, beside = files.read(file), files.read_beside(file)
    if file.endswith(".model"):
        own, tokens = _sentencepiece(file, content, beside.added)
    else:
        own, tokens = _byte_level(file, content, beside.added)
    for text, index in tokenizer.specials.items():
        if index in tokens and tokens[index][2] in (_NORMAL, _USER_DEFINED):
            tokens[index] = (text, tokens[index][1], _CONTROL)
    table = [tokens.get(i, (f"[PAD{i}]", 0.0, _UNUSED)) for i in range(rows)]
    texts, scores, types = zip(*table, strict=True)
    own |= {"ggml.tokens": list(texts), "ggml.token_type": list(types)}
    if own["ggml.model"] == "llama":
        own["ggml.scores"] = list(scores)
    own |= _ends(folder, tokenizer)
    own["ggml.add_bos_token"] = tokenizer.bos_id is not None
    own["chat_template"] = tokenizer.chat_template
    more = {name: text for name, text in beside.templates.items() if name != "default"}
    if more:
        own |= {"chat_templates": list(more), **{f"chat_template.{k}": v for k, v in more.items()}}
    return {f"tokenizer.{key}": value for key, value in own.items()}


def _ends(folder: str, tokenizer: Tokenizer) -> Json:
    """Returns the ids of special tokens; GGUF has names for three that end a response."""
    ends = [tokenizer.eos_id, *(i for i in tokenizer.ends if i != tokenizer.eos_id)]
    if ends[3:]:
        log.warning("%s: GGUF has no field for these ends of responses: %s", folder, ends[3:])
    ids: dict[str, int | None] = dict(zip(("eos", "eot", "eom"), ends[:3], strict=False))
    ids |= {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id}
    unknown = tokenizer.special_tokens.get("unk_token", "")
    ids["unknown"] = tokenizer.specials.get(unknown)
    return {f"ggml.{name}_token_id": i for name, i in ids.items() if i is not None}


def _byte_level(file: str, content: bytes, added: files.Added) -> tuple[Json, Tokens]:
    """Makes the metadata of a ``tokenizer.json`` with a byte-level BPE."""
    data = json.loads(content)
    model = data["model"]
    splitting = (_plain(data.get("pre_tokenizer")), (data.get("normalizer") or {}).get("type"))
    pre = next((name for name in NAMED if (_plain(WORDS[name]), _normal(name)) == splitting), "")
    if model.get("type") != "BPE" or model.get("byte_fallback") or not pre:
        raise UserError(
            f"{file}: GGUF does not support the way this tokenizer splits text into words; wanted "
            f"sentencepiece's BPE (a tokenizer.model) or one of {', '.join(NAMED)}"
        )
    merges = [x if isinstance(x, str) else " ".join(x) for x in model["merges"]]
    tokens: Tokens = {index: (text, 0.0, _NORMAL) for text, index in model["vocab"].items()}
    for token in data.get("added_tokens") or []:
        kind = _CONTROL if token["special"] else _USER_DEFINED
        tokens[token["id"]] = (token["content"], 0.0, kind)
    tokens |= _added(added, tokens)
    return {"ggml.model": "gpt2", "ggml.pre": pre, "ggml.merges": merges}, tokens


def _added(added: files.Added, tokens: Tokens) -> Tokens:
    return {
        token["id"]: (text, 0.0, _CONTROL if token["special"] else _USER_DEFINED)
        for text, token in added.items()
        if token["id"] not in tokens or token["special"]
    }


def _normal(name: str) -> str | None:
    return "NFC" if WORDS[name] == WORDS["qwen2"] else None


def _plain(steps: Any) -> list[Json]:
    """Returns a tokenizer.json's steps of splitting text in a normal form, to compare them."""
    fields = steps if isinstance(steps, dict) else {}
    if fields.get("type") == "Sequence":
        return [step for part in fields["pretokenizers"] for step in _plain(part)]
    defaults = {"ByteLevel": {"use_regex": True, "add_prefix_space": True}}
    step = {**defaults.get(fields.get("type", ""), {}), **fields}
    return [{k: v for k, v in step.items() if k != "trim_offsets" and v is not False}]


def _sentencepiece(file: str, content: bytes, added: files.Added) -> tuple[Json, Tokens]:
    """Makes the metadata of a sentencepiece ``.model``."""
    model = kinds.sentencepiece_model(file, content)
    spec, normal = model.trainer_spec, model.normalizer_spec
    if spec.model_type != _BPE or not spec.byte_fallback or normal.precompiled_charsmap:
        raise UserError(
            f"{file}: wanted a BPE model with byte fallback and without a normalisation table, the "
            "only sentencepiece models that GGUF supports"
        )
    pieces = {i: (p.piece, float(p.score), int(p.type)) for i, p in enumerate(model.pieces)}
    own = {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.add_space_prefix": bool(normal.add_dummy_prefix),
        "ggml.remove_extra_whitespaces": bool(normal.remove_extra_whitespaces),
    }
    return own, {**pieces, **_added(added, pieces)}
