"""Reads the two kinds of tokenizer: sentencepiece and ``tokenizer.json``.

`load.load` chooses between them, and adds the settings of the files beside them.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from alignjax.data.tokenizer.files import FLAGS, Added
from alignjax.errors import UserError

Encode = Callable[[str, bool], list[int]]  # (text, whether it starts the sequence) -> ids


@dataclass(frozen=True)
class Parts:
    """The common interface of both kinds of tokenizer."""

    vocab_size: int
    specials: dict[str, int]
    added: dict[str, int]  # special tokens, and other texts that are always one token
    default_ids: dict[str, int]
    token_to_id: Callable[[str], int | None]
    id_to_token: Callable[[int], str]
    adds_bos: Callable[[int | None], bool]
    encode: Encode  # special tokens in the text are plain text
    encode_rendered: Encode | None  # special tokens in the text become ids; None: not supported
    decode: Callable[[list[int]], str]


def sentencepiece_parts(file: str, content: bytes, added: Added) -> Parts:
    """Reads a sentencepiece ``.model``, and the tokens that the files beside it add."""
    import sentencepiece

    model = sentencepiece_model(file, content)
    try:
        start = sentencepiece.SentencePieceProcessor(model_proto=content)
        # Many models put a space before text; text that continues a sequence must not get it.
        model.normalizer_spec.add_dummy_prefix = False
        rest = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    except (RuntimeError, ValueError):
        raise _damaged(file) from None
    controls, defined = _special_pieces(model)
    more, marked = _added_pieces(model, added)
    defined |= marked
    special = {text: index for text, index in more.items() if added[text]["special"]}
    defaults = (
        ("bos_token", start.bos_id()),
        ("eos_token", start.eos_id()),
        ("pad_token", start.pad_id()),
    )
    unknown = start.unk_id()
    names = {index: text for text, index in more.items()}

    def token_to_id(token: str) -> int | None:
        if token in more:
            return more[token]
        index = start.piece_to_id(token)
        return None if index == unknown and token != start.id_to_piece(unknown) else index

    encode = _encode_apart(start.encode, rest.encode, tuple(defined))
    words = {text: index for text, index in more.items() if text not in special}
    return Parts(
        vocab_size=max([start.get_piece_size() - 1, *more.values()]) + 1,
        specials={**controls, **defined, **special},
        added={**controls, **defined, **more},
        default_ids={name: index for name, index in defaults if index >= 0},
        token_to_id=token_to_id,
        id_to_token=lambda index: names[index] if index in names else start.id_to_piece(index),
        adds_bos=lambda bos_id: bos_id is not None,
        encode=_encode_words(encode, words) if words else encode,
        encode_rendered=None,
        decode=_decode_runs(start.decode, rest.decode, names, special) if more else start.decode,
    )


def _added_pieces(model: Any, added: Added) -> tuple[dict[str, int], dict[str, int]]:
    """Returns tokens beside a model's pieces, and ordinary pieces that files mark as special.

    Raises:
      UserError: a token's id differs from the model's.
    """
    pieces = {piece.piece: index for index, piece in enumerate(model.pieces)}
    for text, token in added.items():
        index, wanted = pieces.get(text), token["id"]
        if wanted < len(model.pieces) if index is None else wanted != index:
            raise _other_id(token["file"], text, wanted, index)
    more = {text: token["id"] for text, token in added.items() if text not in pieces}
    plain = (model.pieces[0].NORMAL, model.pieces[0].USER_DEFINED)
    marked = {x: pieces[x] for x, token in added.items() if x in pieces and token["special"]}
    return more, {x: i for x, i in marked.items() if model.pieces[i].type in plain}


def _other_id(file: str, text: str, wanted: int, index: int | None) -> UserError:
    found = "another token" if index is None else str(index)
    return UserError(f"{file}: token {text!r}: wanted id {wanted}, found {found} in the vocabulary")


def _encode_words(encode: Encode, words: dict[str, int]) -> Encode:
    """Makes an encoder that turns each of the given words into one token."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def encode_words(text: str, first: bool) -> list[int]:
        ids: list[int] = []
        for part in pattern.split(text):
            if part in words:
                ids.append(words[part])
            elif part:
                ids.extend(encode(part, first and not ids))
        return ids

    return encode_words


def _decode_runs(
    start: Callable[[list[int]], str],
    rest: Callable[[list[int]], str],
    names: dict[int, str],
    special: dict[str, int],
) -> Callable[[list[int]], str]:
    """Makes a decoder that also decodes added tokens, except special ones."""

    def decode(ids: list[int]) -> str:
        text, run, decode_run = "", list[int](), start
        for index in [*ids, -1]:
            if index >= 0 and index not in names:
                run.append(index)
                continue
            text += decode_run(run) if run else ""
            word = names.get(index, "")
            text += "" if word in special else word
            run, decode_run = [], rest
        return text

    return decode


def _damaged(file: str) -> UserError:
    return UserError(f"{file}: not a sentencepiece model, or a damaged one")


def sentencepiece_model(file: str, content: bytes) -> Any:
    """Parses a model's protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2
    try:
        model = schema.ModelProto.FromString(content)
    except Exception:  # protobuf's DecodeError, whose module differs between versions
        raise _damaged(file) from None
    # A truncated file can still parse. The pieces come first: check for the field after them.
    if not model.pieces or not model.HasField("normalizer_spec"):
        raise _damaged(file)
    return model


def _special_pieces(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of control pieces, and of user-defined pieces that look like special tokens."""
    controls, defined = {}, {}
    for index, piece in enumerate(model.pieces):
        if piece.type == piece.CONTROL:
            controls[piece.piece] = index
        # Other user-defined pieces are ordinary text (line breaks, runs of spaces, digits).
        elif piece.type == piece.USER_DEFINED and re.fullmatch(r"<.+>|\[.+\]", piece.piece):
            defined[piece.piece] = index
    return controls, defined


def _encode_apart(
    start: Callable[[str], list[int]], rest: Callable[[str], list[int]], defined: tuple[str, ...]
) -> Encode:
    """Makes an encoder that never produces a special token from text.

    Sentencepiece never makes control pieces from text, but it does make user-defined ones. Their
    text is therefore cut after its first character, and the parts are encoded separately.
    """
    cuts = re.compile("|".join(f"(?<={re.escape(p[0])})(?={re.escape(p[1:])})" for p in defined))

    def encode(text: str, first: bool) -> list[int]:
        encode_first = start if first else rest
        if not any(piece in text for piece in defined):
            return encode_first(text)
        ids: list[int] = []
        for part in cuts.split(text):
            ids.extend((rest if ids else encode_first)(part))
        return ids

    return encode


def _without_prefix(node: Any) -> Any:
    """Changes a part of a tokenizer.json so that it puts no space before text."""
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


def huggingface_parts(file: str, content: bytes, added: Added, marked: Iterable[str] = ()) -> Parts:
    """Reads a ``tokenizer.json``.

    Args:
      file, content: the tokenizer's.
      added: tokens that the files beside it add.
      marked: tokens to treat as special, even if the file does not.
    """
    try:
        start_settings = _with_added(content.decode(), added, set(marked))
        rest_settings = _continued(start_settings)
        # A large vocabulary takes long to load: load the second pair only where it differs.
        same = rest_settings is start_settings
        start = _load(start_settings, specials_as_text=False)
        start_text = _load(start_settings, specials_as_text=True)
        rest = start if same else _load(rest_settings, specials_as_text=False)
        rest_text = start_text if same else _load(rest_settings, specials_as_text=True)
    except Exception as error:  # the library raises plain Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file}: not a usable tokenizer.json ({reason})") from None

    def encoder(start: Any, rest: Any) -> Encode:
        def encode(text: str, first: bool) -> list[int]:
            tokenizer = start if first else rest
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        return encode

    tokens = start.get_added_tokens_decoder()
    for text, token in added.items():
        index = start.token_to_id(text)
        if index != token["id"] and _is_new(text, content):
            raise _other_id(token["file"], text, token["id"], index)
    defaults = _added_ends(start, tokens)
    return Parts(
        vocab_size=max(start.get_vocab(with_added_tokens=True).values()) + 1,
        specials={token.content: index for index, token in tokens.items() if token.special},
        added={token.content: index for index, token in tokens.items()},
        default_ids=defaults,
        token_to_id=start.token_to_id,
        id_to_token=lambda index: start.id_to_token(index) or "",
        adds_bos=lambda bos_id: bos_id is not None and bos_id == defaults.get("bos_token"),
        encode=encoder(start_text, rest_text),
        encode_rendered=encoder(start, rest),
        decode=lambda ids: start.decode(ids, skip_special_tokens=True),
    )


def _is_new(text: str, content: bytes) -> bool:
    """Whether a tokenizer.json does not list an added token."""
    return text not in [x["content"] for x in json.loads(content).get("added_tokens") or []]


def _with_added(settings: str, added: Added, marked: set[str]) -> str:
    """Adds tokens to the settings and marks special ones; the same string if nothing changes."""
    if not added and not marked:
        return settings
    fields = json.loads(settings)
    tokens = fields.get("added_tokens") or []
    known = {token["content"] for token in tokens}
    more = sorted((token["id"], text) for text, token in added.items() if text not in known)
    marked = marked | {text for text, token in added.items() if token["special"]}
    unmarked = [x["content"] for x in tokens if x["content"] in marked and not x["special"]]
    if not more and not unmarked:
        return settings
    unmarked += [text for _, text in more if text in marked and not added[text]["special"]]
    tokens = tokens + [
        {"id": index, "content": text, **{flag: added[text].get(flag, False) for flag in FLAGS}}
        for index, text in more
    ]
    # Special tokens are matched before the text is normalised.
    marks = {"special": True, "normalized": False}
    tokens = [{**token, **marks} if token["content"] in unmarked else token for token in tokens]
    return json.dumps({**fields, "added_tokens": tokens})


def _load(settings: str, *, specials_as_text: bool) -> Any:
    import tokenizers

    tokenizer: Any = tokenizers.Tokenizer.from_str(settings)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if specials_as_text:
        tokenizer.encode_special_tokens = True
    return tokenizer


def _continued(settings: str) -> str:
    """Makes the settings for text that continues a sequence; the same string if nothing changes."""
    fields = json.loads(settings)
    changed = {key: _without_prefix(fields.get(key)) for key in ("normalizer", "pre_tokenizer")}
    same = all(fields.get(key) == value for key, value in changed.items())
    return settings if same else json.dumps({**fields, **changed})


def _added_ends(tokenizer: Any, added: Any) -> dict[str, int]:
    """Finds the BOS and the EOS that a tokenizer adds to a text by itself, if it does."""
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    ends = {}
    if len(ids) > len(plain):
        if ids[0] in added and ids[0] != plain[0]:
            ends["bos_token"] = ids[0]
        if ids[-1] in added and ids[-1] != plain[-1]:
            ends["eos_token"] = ids[-1]
    return ends
