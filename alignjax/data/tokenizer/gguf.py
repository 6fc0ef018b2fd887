"""Converts the tokenizer inside a GGUF file to the files of a folder.

Byte-level vocabularies become a ``tokenizer.json``, sentencepiece ones a ``tokenizer.model``.
"""

import json
from typing import Any

from alignjax import gguf_files
from alignjax.errors import UserError

Json = dict[str, Any]

_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT_2 = {**_BYTES, "use_regex": True}
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens; 1 is an ordinary one


def _split(pattern: str) -> Json:
    parts = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return _sequence({**parts, "invert": False}, _BYTES)


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# How text is split into words before its bytes are merged, by ``tokenizer.ggml.pre``.
WORDS: dict[str, Json] = {
    "default": _GPT_2,
    "gpt-2": _GPT_2,
    "smollm": _sequence({"type": "Digits", "individual_digits": True}, _GPT_2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), _split(_LLAMA_3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split(_QWEN_2)),
}
NAMED = ("gpt-2", "smollm", "llama-bpe", "qwen2")  # the names written into new files


def files(path: str) -> dict[str, bytes]:
    """Makes the tokenizer's files, by name; ``generation_config.json`` has the ends of responses.

    Raises:
      UserError: the file holds no tokenizer, or one that is not supported.
    """
    fields, _ = gguf_files.read(path)
    own = {k.removeprefix("tokenizer."): v for k, v in fields.items() if k.startswith("tokenizer.")}
    tokens, kinds = own.get("ggml.tokens"), own.get("ggml.token_type")
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f"{path}: holds no tokenizer; set tokenizer.path to one")
    kinds = kinds if isinstance(kinds, list) else [1] * len(tokens)
    form = own.get("ggml.model")
    if form == "gpt2":
        named = {"tokenizer.json": _byte_level(path, own, tokens, kinds)}
    elif form == "llama":
        named = {"tokenizer.model": _sentencepiece(path, own, tokens, kinds)}
    else:
        raise UserError(
            f"{path}: tokenizer.ggml.model: {form!r:.80} is not supported; gpt2 and llama are"
        )
    config = json.dumps(_config(own, tokens), indent=2)
    ends = json.dumps({"eos_token_id": list(ends_of(path))}, indent=2)
    return {
        **named,
        "tokenizer_config.json": config.encode(),
        "generation_config.json": ends.encode(),
    }


def ends_of(path: str) -> tuple[int, ...]:
    """Reads the ids that end a response."""
    fields, _ = gguf_files.read(path)
    named = (fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(int(index) for index in named if index is not None))


def _config(own: Json, tokens: list[str]) -> Json:
    """Makes the content of tokenizer_config.json."""
    ids = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    named = {ours: own.get(f"ggml.{theirs}_token_id") for ours, theirs in ids.items()}
    content: Json = {
        f"{name}_token": tokens[index]
        for name, index in named.items()
        if index is not None and 0 <= index < len(tokens)
    }
    # Older files have no add_bos_token; llama.cpp then decides by the kind of vocabulary.
    bos = own.get("ggml.model") == "llama" or own.get("ggml.pre") in ("llama-bpe", "llama3")
    content["add_bos_token"] = bool(own.get("ggml.add_bos_token", bos))
    more = own.get("chat_templates") or []
    templates = {name: own[f"chat_template.{name}"] for name in more}
    if own.get("chat_template"):
        templates["default"] = own["chat_template"]
    if templates:
        content["chat_template"] = [{"name": k, "template": v} for k, v in templates.items()]
    return content


def _byte_level(path: str, own: Json, tokens: list[str], kinds: list[int]) -> bytes:
    """Makes a ``tokenizer.json`` of a byte-level BPE."""
    pre = own.get("ggml.pre", "default")
    if pre not in WORDS:
        known = ", ".join(WORDS)
        raise UserError(f"{path}: tokenizer.ggml.pre: {pre!r:.80} is not supported; {known} are")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.tokens: wanted different tokens, found one twice")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": index, "content": token, **flags, "special": kinds[index] == _CONTROL}
        for index, token in enumerate(tokens)
        if kinds[index] in (_CONTROL, _USER_DEFINED)
    ]
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": WORDS[pre] == WORDS["llama-bpe"], "vocab": vocab,
        "merges": own.get("ggml.merges", []),
    }  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if WORDS[pre] == WORDS["qwen2"] else None,
        "pre_tokenizer": WORDS[pre], "post_processor": None, "decoder": _GPT_2, "model": model,
    }  # fmt: skip
    return json.dumps(content, ensure_ascii=False).encode()


def _sentencepiece(path: str, own: Json, tokens: list[str], kinds: list[int]) -> bytes:
    """Makes a sentencepiece ``.model``, which has the same numbers for the kinds of tokens."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    scores = own.get("ggml.scores")
    if not isinstance(scores, list) or not len(scores) == len(kinds) == len(tokens):
        raise UserError(f"{path}: tokenizer.ggml.scores: wanted one score per token")
    model = schema.ModelProto()
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        spaces = " " in token and not token.strip(" ")
        text = "\u2581" * len(token) if spaces else token
        model.pieces.add(piece=text, score=float(score), type=int(kind))
    spec, normal = model.trainer_spec, model.normalizer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(tokens)
    spec.unk_id = int(own.get("ggml.unknown_token_id", 0))
    spec.bos_id = int(own.get("ggml.bos_token_id", -1))
    spec.eos_id = int(own.get("ggml.eos_token_id", -1))
    spec.pad_id = int(own.get("ggml.padding_token_id", -1))
    for name in ("unk", "bos", "eos", "pad"):
        if 0 <= (index := getattr(spec, f"{name}_id")) < len(tokens):
            setattr(spec, f"{name}_piece", tokens[index])
    normal.name = "identity"
    normal.add_dummy_prefix = bool(own.get("ggml.add_space_prefix", True))
    normal.remove_extra_whitespaces = bool(own.get("ggml.remove_extra_whitespaces", False))
    return model.SerializeToString()
