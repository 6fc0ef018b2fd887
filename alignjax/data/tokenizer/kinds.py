"""What a tokenizer can do, from the bytes of its file: sentencepiece, and ``tokenizer.json``.

`load.load` chooses between the two, and adds what the files beside them say.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from alignjax.errors import UserError


@dataclass(frozen=True)
class Parts:
    """What the two kinds of tokenizer have in common."""

    vocab_size: int
    specials: dict[str, int]
    default_ids: dict[str, int]
    token_to_id: Callable[[str], int | None]
    id_to_token: Callable[[int], str]
    adds_bos: Callable[[int | None], bool]
    encode: Callable[[str, bool], list[int]]  # (text, starts the sequence) -> ids, specials off
    encode_rendered: Callable[[str, bool], list[int]] | None  # the same with specials, if it can
    decode: Callable[[list[int]], str]


def sentencepiece_parts(file: str, content: bytes) -> Parts:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    damaged = UserError(f"{file}: not a sentencepiece model, or a damaged one")
    try:
        model = schema.ModelProto.FromString(content)
    except Exception:  # protobuf's DecodeError, whose module differs between versions
        raise damaged from None
    # The pieces come first in the file: a cut one can still parse, without what follows them.
    if not model.pieces or not model.HasField("normalizer_spec"):
        raise damaged
    try:
        start = sentencepiece.SentencePieceProcessor(model_proto=content)
        model.normalizer_spec.add_dummy_prefix = False
        rest = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except (RuntimeError, ValueError):
        raise damaged from None
    kinds = schema.ModelProto.SentencePiece
    specials, defined = {}, []
    for index, piece in enumerate(model.pieces):
        if piece.type == kinds.CONTROL:
            specials[piece.piece] = index
        # Other user-defined pieces are ordinary text (line breaks, runs of spaces, digits).
        elif piece.type == kinds.USER_DEFINED and re.fullmatch(r"<.+>|\[.+\]", piece.piece):
            specials[piece.piece] = index
            defined.append(piece.piece)
    # Control pieces are never produced from text; user-defined ones always are, unless broken up.
    breaks = re.compile("|".join(f"(?<={re.escape(p[0])})(?={re.escape(p[1:])})" for p in defined))

    def encode(text: str, first: bool) -> list[int]:
        processor = start if first else rest
        if not defined or not any(piece in text for piece in defined):
            return processor.encode(text)
        ids: list[int] = []
        for part in breaks.split(text):
            ids.extend((rest if ids else processor).encode(part))
        return ids

    defaults = {
        "bos_token": start.bos_id(),
        "eos_token": start.eos_id(),
        "pad_token": start.pad_id(),
    }
    unknown = start.unk_id()

    def token_to_id(token: str) -> int | None:
        index = start.piece_to_id(token)
        return None if index == unknown and token != start.id_to_piece(unknown) else index

    return Parts(
        vocab_size=start.get_piece_size(),
        specials=specials,
        default_ids={name: index for name, index in defaults.items() if index >= 0},
        token_to_id=token_to_id,
        id_to_token=start.id_to_piece,
        adds_bos=lambda bos_id: bos_id is not None,
        encode=encode,
        encode_rendered=None,
        decode=start.decode,
    )


def _without_prefix(node: Any) -> Any:
    """A tokenizer.json that puts no space before a text which continues another."""
    if isinstance(node, list):
        return [_without_prefix(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _without_prefix(value) for key, value in node.items()}
    if node.get("type") == "Sequence" and "normalizers" in node:
        node["normalizers"] = [n for n in node["normalizers"] if n is not None]
    if node.get("type") == "Prepend":
        return None
    if node.get("type") == "Metaspace":
        node.update(prepend_scheme="never")
        node.pop("add_prefix_space", None)
    elif "add_prefix_space" in node:
        node["add_prefix_space"] = False
    return node


def huggingface_parts(file: str, content: bytes) -> Parts:
    import tokenizers

    try:
        settings = json.loads(content)
        start = tokenizers.Tokenizer.from_str(content.decode())
        changed = {
            key: _without_prefix(settings.get(key)) for key in ("normalizer", "pre_tokenizer")
        }
        # Another tokenizer only where it differs: a large vocabulary takes long to load.
        same = all(settings.get(key) == value for key, value in changed.items())
        continued = content.decode() if same else json.dumps({**settings, **changed})
        rest = start if same else tokenizers.Tokenizer.from_str(continued)
        start_text = tokenizers.Tokenizer.from_str(content.decode())
        rest_text = start_text if same else tokenizers.Tokenizer.from_str(continued)
    except Exception as error:  # the library raises plain Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: not a usable tokenizer.json ({reason})") from None
    for tokenizer in (start, rest, start_text, rest_text):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    start_text.encode_special_tokens = rest_text.encode_special_tokens = True
    added = start.get_added_tokens_decoder()
    specials = {token.content: index for index, token in added.items() if token.special}

    def encode(text: str, first: bool) -> list[int]:
        return (start_text if first else rest_text).encode(text, add_special_tokens=False).ids

    def encode_rendered(text: str, first: bool) -> list[int]:
        return (start if first else rest).encode(text, add_special_tokens=False).ids

    ends = start.encode("a", add_special_tokens=True).ids
    plain = start.encode("a", add_special_tokens=False).ids
    defaults = {}
    if len(ends) > len(plain):
        if ends[0] in added and ends[0] != plain[0]:
            defaults["bos_token"] = ends[0]
        if ends[-1] in added and ends[-1] != plain[-1]:
            defaults["eos_token"] = ends[-1]
    adds_bos = defaults.get("bos_token")
    return Parts(
        vocab_size=max(start.get_vocab(with_added_tokens=True).values()) + 1,
        specials=specials,
        default_ids=defaults,
        token_to_id=start.token_to_id,
        id_to_token=lambda index: start.id_to_token(index) or "",
        adds_bos=lambda bos_id: bos_id is not None and bos_id == adds_bos,
        encode=encode,
        encode_rendered=encode_rendered,
        decode=lambda ids: start.decode(ids, skip_special_tokens=True),
    )
