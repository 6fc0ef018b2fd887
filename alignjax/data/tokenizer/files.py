"""Reads the files beside a tokenizer that say how it is used, in Hugging Face's formats.

Beside ``tokenizer.json`` or a sentencepiece ``.model`` lie ``tokenizer_config.json``,
``special_tokens_map.json``, ``added_tokens.json``, the chat templates, and a model's
``generation_config.json`` or ``config.json``. All of them are optional, and none is trusted.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from alignjax import digests, gguf_files
from alignjax.data.tokenizer import chat, gguf
from alignjax.errors import UserError, did_you_mean

# Bytes of a tokenizer file; a tokenizer.json takes 20 times as much memory. The largest published
# one, Gemma 3's, has 33 MB.
MAX_FILE = 48 * 2**20
MORE_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja

Added = dict[str, dict[str, Any]]  # a token's text -> its id, whether it is special, and more


@dataclasses.dataclass(frozen=True)
class Beside:
    """The settings in the files beside a tokenizer.

    Attributes:
      tokens: special tokens by name (``eos_token``).
      add_bos: whether prompts start with BOS; None if no file says.
      added: tokens beside the vocabulary, see `Added`.
      templates: chat templates by name; an unnamed one is ``default``.
      template_files: the file of each template.
      ends: ids that end a response, from the model in the same folder.
      ends_file: the file that lists them.
    """

    tokens: Mapping[str, str]
    add_bos: bool | None
    added: Added
    templates: Mapping[str, str]
    template_files: Mapping[str, str]
    ends: tuple[int, ...]
    ends_file: str


def model_file(path: str) -> str:
    """Finds the tokenizer's file: the path itself, or the file in a folder.

    Raises:
      UserError: there is no such file, or it is of another kind.
    """
    if os.path.isdir(path):
        for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
        raise UserError(f"{path}: wanted tokenizer.json or tokenizer.model, found neither")
    if not os.path.isfile(path):
        folder, name = os.path.split(path)
        beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        raise UserError(f"{path}: no such tokenizer{did_you_mean(name, beside)}")
    if not path.endswith((".model", ".json")):
        raise UserError(f"{path}: wanted a sentencepiece .model or a tokenizer.json")
    return path


def read(path: str) -> bytes:
    """Reads a file of at most `MAX_FILE` bytes."""
    if os.path.getsize(path) > MAX_FILE:
        raise UserError(f"{path}: wanted at most {MAX_FILE // 2**20} MiB, found more")
    try:
        return digests.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        value = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: wanted a JSON object")
    return value


def read_beside(file: str, model: str = "") -> Beside:
    """Reads the files beside a tokenizer's; ``ends`` from a model's folder, if it is given.

    Raises:
      UserError: a file is damaged, or a field is of a wrong type.
    """
    folder = os.path.dirname(file)
    config_file = os.path.join(folder, "tokenizer_config.json")
    config = _read_json(config_file)
    tokens: dict[str, str] = {}
    for fields in (_read_json(os.path.join(folder, "special_tokens_map.json")), config):
        for name, token in fields.items():
            content = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(content, str):
                tokens[name] = content
    templates, template_files = _templates(folder, config.get("chat_template"), config_file)
    ends, ends_file = _ends(model or folder)
    return Beside(
        tokens=tokens,
        add_bos=config.get("add_bos_token"),
        added=_added(folder, config, config_file, tokens),
        templates=templates,
        template_files=template_files,
        ends=ends,
        ends_file=ends_file,
    )


def _templates(folder: str, given: Any, file: str) -> tuple[dict[str, str], dict[str, str]]:
    """Reads the chat templates by name, and the file of each; newer forms override older ones."""
    templates: dict[str, tuple[str, str]] = {}
    if isinstance(given, str):
        templates["default"] = given, file
    elif isinstance(given, list):
        for entry in given:
            name, text = (entry.get(x) if isinstance(entry, dict) else None for x in _NAMED)
            if not isinstance(name, str) or not isinstance(text, str):
                raise UserError(
                    f"{file}: chat_template: wanted text, or objects of a name and a template"
                )
            templates[name] = text, file
    elif given is not None:
        raise UserError(f"{file}: field 'chat_template' is not text")
    more = os.path.join(folder, MORE_TEMPLATES)
    if os.path.isdir(more):
        for name in sorted(os.listdir(more)):
            if name.endswith(".jinja"):
                path = os.path.join(more, name)
                templates[name.removesuffix(".jinja")] = read_template(path), path
    beside = os.path.join(folder, "chat_template.jinja")
    if os.path.isfile(beside):
        templates["default"] = read_template(beside), beside
    return {k: text for k, (text, _) in templates.items()}, {
        k: path for k, (_, path) in templates.items()
    }


_NAMED = ("name", "template")


def read_template(path: str) -> str:
    """Reads a ``.jinja`` file."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such chat template")
    try:
        return read(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: invalid UTF-8 at byte offset {error.start}") from None


def choose_template(given: str, beside: Beside, file: str) -> tuple[str, str]:
    """Chooses the chat template, and the file to name in messages about it.

    Args:
      given: a template, its file, or the name of one of the tokenizer's; "" for the default one.
      beside: the tokenizer's settings.
      file: the tokenizer's file.

    Raises:
      UserError: no such template, or there are several and none is the default.
    """
    if "{" in given:
        return given, "chat_template"
    name = given or "default"
    if name in beside.templates:
        return beside.templates[name], beside.template_files[name]
    names = ", ".join(sorted(beside.templates))
    if given:
        known = f"; {file} has the templates {names}" if beside.templates else ""
        if known and not os.path.isfile(given):
            raise UserError(f"{given}: no such chat template{known}")
        return read_template(given), given
    if beside.templates:
        some = next(iter(beside.template_files.values()))
        raise UserError(
            f"{some}: has the chat templates {names} and no default; name one with "
            "tokenizer.chat_template"
        )
    return chat.PLAIN_TEMPLATE, file


def _ends(folder: str) -> tuple[tuple[int, ...], str]:
    """Reads the ids that end a model's response, and the name of the file that has them."""
    if gguf_files.is_gguf(folder):
        return gguf.ends_of(folder), "GGUF"
    for name in ("generation_config.json", "config.json"):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        given = _read_json(path).get("eos_token_id")
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(i) is int for i in ids):
            raise UserError(f"{path}: eos_token_id: wanted ids of tokens, found {given!r:.80}")
        return tuple(i for i in ids if i >= 0), name  # some files have -1 for none
    return (), ""


def _added(folder: str, config: dict[str, Any], file: str, tokens: dict[str, str]) -> Added:
    """Reads the tokens that tokenizer_config.json and added_tokens.json add to the vocabulary."""
    path = os.path.join(folder, "added_tokens.json")
    named = set(tokens.values())
    added: Added = {}
    for text, index in _read_json(path).items():
        if type(index) is not int or index < 0:
            raise UserError(f"{path}: {text!r}: wanted an id, found {index!r:.80}")
        special = text in named
        added[text] = {"id": index, "special": special, "normalized": not special, "file": path}
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"{file}: added_tokens_decoder: wanted an object, ids -> tokens")
    for key, token in decoder.items():
        content = token.get("content") if isinstance(token, dict) else None
        if not isinstance(content, str) or not content or not str(key).isdecimal():
            raise UserError(f"{file}: added_tokens_decoder: {key!r:.40}: wanted an id and a token")
        flags = {name: bool(token.get(name, False)) for name in FLAGS}
        added[content] = {"id": int(key), **flags, "file": file}
    return added


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
