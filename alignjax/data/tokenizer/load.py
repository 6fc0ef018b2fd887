"""Text to token ids: sentencepiece models and Hugging Face ``tokenizer.json``, behind one type.

Rules, the same for both kinds:

- A prompt gets exactly one BOS, at position 0, if the tokenizer has one; every response ends with
  exactly one EOS. Nothing is truncated here.
- Prompt and response are encoded apart, once each, so the boundary between them is always a token
  boundary, and the ids of prompt + response decode to the text of prompt + response (as far as
  the tokenizer's own normalisation is lossless).
- Text that looks like a special token is plain text when it comes from the data. Only a chat
  template can write special tokens.
- Padding never carries meaning (masks come from lengths), so a tokenizer without a pad token is
  fine: ``pad_id`` is then ``eos_id``.

No code of a model is ever run (``auto_map`` is not read) and nothing is unpickled.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignjax.data.records import DataError, Message, Prompt
from alignjax.data.tokenizer import chat
from alignjax.data.tokenizer.kinds import Encode, Parts, huggingface_parts, sentencepiece_parts
from alignjax.errors import UserError, did_you_mean

MAX_FILE = 512 * 2**20  # bytes of a tokenizer file


@dataclass(frozen=True)
class Encoded:
    """One prompt and its responses as ids; see the rules above."""

    prompt_ids: np.ndarray  # [P] int32
    response_ids: tuple[np.ndarray, ...]  # K of [R_k] int32
    special_text: bool  # the data hold text that looks like a special token


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Encodes prompts and responses, and decodes ids; made by ``load``.

    Attributes:
      vocab_size: ids are in ``[0, vocab_size)``; a model must embed at least as many.
      eos_id: ends every response.
      bos_id: starts every prompt; None if the tokenizer has none or does not use it.
      pad_id: fills up batches; carries no meaning.
      digest: hex sha256 of everything that changes ids: model, template, special tokens.
    """

    vocab_size: int
    eos_id: int
    bos_id: int | None
    pad_id: int
    digest: str
    chat_template: str = field(repr=False)
    template_name: str = field(repr=False)  # the template's file, for messages
    special_tokens: dict[str, str] = field(repr=False)  # names as templates know them
    specials: dict[str, int] = field(repr=False)  # texts that templates may use -> ids
    special_pattern: re.Pattern[str] = field(repr=False)  # any one of them
    encode_text: Encode = field(repr=False, compare=False)
    encode_rendered: Encode | None = field(repr=False, compare=False)
    decode_ids: Callable[[list[int]], str] = field(repr=False, compare=False)

    def encode(self, prompt: Prompt, responses: Sequence[str], more: Sequence[str] = ()) -> Encoded:
        """Encodes a prompt and its responses.

        ``more`` has `Message.more` of the responses, for the chat template; or nothing.

        Raises:
          DataError: the chat template refuses the dialogue, or renders the prompt differently
            once a response follows it.
        """
        if isinstance(prompt, str):
            special = self._has_special(prompt, *responses)
            ids = self.encode_text(prompt, True)
            prompt_ids = ids if self.bos_id is None else [self.bos_id, *ids]
            response_ids = [[*self.encode_text(text, False), self.eos_id] for text in responses]
        else:
            rest = more or [""] * len(responses)
            answers = [Message("assistant", *x) for x in zip(responses, rest, strict=True)]
            texts = (x for turn in (*prompt, *answers) for x in (turn.content, turn.more))
            special = self._has_special(*texts)
            prompt_ids, response_ids = self._encode_dialogue(prompt, answers, special)
        return Encoded(
            np.asarray(prompt_ids, np.int32),
            tuple(np.asarray(ids, np.int32) for ids in response_ids),
            special,
        )

    def _encode_dialogue(
        self, prompt: tuple[Message, ...], responses: Sequence[Message], special: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Encodes what the template writes for the prompt, and adds to it for each response."""
        turns = (*prompt, *responses)
        literals: list[tuple[str, str]] = []
        if special:
            turns, literals = self._hide(turns)
        context, answers = turns[: len(prompt)], turns[len(prompt) :]
        before = self._render(context, True)
        prompt_ids = self._one_bos(self._encode_rendered(before, literals, first=True))
        response_ids = []
        for answer in answers:
            whole = self._render((*context, answer), False)
            if not whole.startswith(before):
                raise DataError(
                    f"{self.template_name}: chat template renders the prompt differently when a "
                    "response follows; the two cannot be separated"
                )
            ids = self._encode_rendered(whole[len(before) :], literals, first=False)
            response_ids.append(self._one_eos(ids))
        return prompt_ids, response_ids

    def render(self, prompt: Prompt) -> str:
        """The text of a prompt, after the chat template if it is a dialogue."""
        return prompt if isinstance(prompt, str) else self._render(prompt, True)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids; special tokens, and ids past the vocabulary, are left out."""
        return self.decode_ids([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

    def _render(self, prompt: tuple[Message, ...], add_generation_prompt: bool) -> str:
        return chat.render(
            self.chat_template,
            prompt,
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            name=self.template_name,
        )

    def _has_special(self, *texts: str) -> bool:
        return any(self.special_pattern.search(text) for text in texts)

    def _hide(
        self, turns: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], list[tuple[str, str]]]:
        """Replaces text that looks like a special token by private-use characters.

        A template's own special tokens can then be told from the data's text.

        Returns:
          The changed turns, and what to put back: (stand-in, text) each.
        """
        used = {char for turn in turns for char in turn.content + turn.more}
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        found = self.special_pattern.findall
        texts = {x for turn in turns for x in found(turn.content) + found(turn.more)}
        # Longest first, so that a special token within another is not replaced inside it.
        longest_first = sorted(texts, key=len, reverse=True)
        literals = [(next(free), special) for special in longest_first]
        hidden = []
        for turn in turns:
            content, more = turn.content, turn.more
            for stand_in, special in literals:
                content, more = content.replace(special, stand_in), more.replace(special, stand_in)
            hidden.append(Message(turn.role, content, more))
        return tuple(hidden), literals

    def _encode_rendered(
        self, text: str, literals: list[tuple[str, str]], *, first: bool
    ) -> list[int]:
        """Encodes a template's text: its special tokens become ids, everything else is text."""
        if not literals and self.encode_rendered is not None:
            return self.encode_rendered(text, first)
        ids: list[int] = []
        for part in self.special_pattern.split(text):
            if part in self.specials:
                ids.append(self.specials[part])
            elif part:
                for stand_in, special in literals:
                    part = part.replace(stand_in, special)
                ids.extend(self.encode_text(part, first and not ids))
        return ids

    def _one_bos(self, ids: list[int]) -> list[int]:
        if self.bos_id is None:
            return ids
        while ids and ids[0] == self.bos_id:
            ids = ids[1:]
        return [self.bos_id, *ids]

    def _one_eos(self, ids: list[int]) -> list[int]:
        """Cuts after the template's EOS (line breaks follow it in some), or adds the EOS."""
        if self.eos_id not in ids:
            return [*ids, self.eos_id]
        end = ids.index(self.eos_id) + 1
        if self.decode_ids(ids[end:]).strip():
            raise DataError(f"{self.template_name}: chat template writes text after the EOS")
        return ids[:end]


def load(
    path: str, *, chat_template: str = "", bos: str = "", eos: str = "", pad: str = ""
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      path: a sentencepiece ``.model``, a ``tokenizer.json``, or a folder with one of them (and
        ``tokenizer_config.json``, ``special_tokens_map.json``, ``chat_template.jinja`` beside).
      chat_template: a ``.jinja`` file, or the template itself (text with a ``{``). By default the
        one of the folder, else ``chat.PLAIN_TEMPLATE``.
      bos: text of the token to start prompts with. By default what the tokenizer itself adds.
      eos: text of the token to end responses with. By default what the files beside say.
      pad: text of the padding token. By default what the files say, else the EOS.

    Raises:
      UserError: file missing, damaged or of another kind; no EOS known; no such special token;
        the template has a syntax error.
    """
    file = _model_file(path)
    content = _read(file)
    config = _config_beside(file)
    overrides = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    named = {**config["tokens"], **{name: token for name, token in overrides.items() if token}}
    template, template_name = _template(chat_template, config, file)
    chat.check_template(template, template_name)
    parts = (sentencepiece_parts if file.endswith(".model") else huggingface_parts)(file, content)

    ids = _named_ids(parts, named, file)
    eos_id = ids.get("eos_token")
    if eos_id is None:
        raise UserError(f"{file}: names no end-of-sequence token; set eos to its text")
    add_bos = config["add_bos"]
    if not bos and not (parts.adds_bos(ids.get("bos_token")) if add_bos is None else add_bos):
        ids.pop("bos_token", None)
    bos_id = ids.get("bos_token")

    used = (i for i in (bos_id, eos_id) if i is not None)
    specials = {**parts.specials, **{parts.id_to_token(i): i for i in used}}
    special_tokens = {**named, **{name: parts.id_to_token(i) for name, i in ids.items()}}
    settings = [template, bos_id, eos_id, sorted(specials.items()), sorted(special_tokens.items())]
    # Longest first: the pattern must not find a special token inside a longer one.
    longest_first = sorted(specials, key=len, reverse=True)
    return Tokenizer(
        vocab_size=parts.vocab_size,
        eos_id=eos_id,
        bos_id=bos_id,
        pad_id=ids.get("pad_token", eos_id),
        digest=_digest(content, settings),
        chat_template=template,
        template_name=template_name,
        special_tokens=special_tokens,
        specials=specials,
        special_pattern=re.compile("(" + "|".join(map(re.escape, longest_first)) + ")"),
        encode_text=parts.encode,
        encode_rendered=parts.encode_rendered,
        decode_ids=parts.decode,
    )


def _digest(content: bytes, settings: list[Any]) -> str:
    identity = hashlib.sha256(content).digest() + json.dumps(settings).encode()
    return hashlib.sha256(identity).hexdigest()


def _named_ids(parts: Parts, named: dict[str, str], file: str) -> dict[str, int]:
    """The ids of BOS, EOS and padding: of the tokens named, else the tokenizer's own."""
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = named.get(name)
        index = parts.default_ids.get(name) if token is None else parts.token_to_id(token)
        if index is not None:
            ids[name] = index
        elif token is not None:
            raise UserError(
                f"{file}: has no token {token!r} to use as {name}"
                f"{did_you_mean(token, parts.specials)}"
            )
    return ids


def check_ids(name: str, ids: int, rows: int) -> None:
    """Refuses a tokenizer, named ``name``, that has more ids than an embedding has rows."""
    if ids > rows:
        raise UserError(
            f"model.vocab_size: the tokenizer {name} has {ids} ids, the model embeds {rows}"
        )


def _model_file(path: str) -> str:
    if os.path.isdir(path):
        for name in ("tokenizer.json", "tokenizer.model", "spiece.model"):
            if os.path.isfile(os.path.join(path, name)):
                return os.path.join(path, name)
        raise UserError(f"{path}: holds neither tokenizer.json nor tokenizer.model")
    if not os.path.isfile(path):
        folder, name = os.path.split(path)
        beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        raise UserError(f"{path}: no such tokenizer{did_you_mean(name, beside)}")
    if not path.endswith((".model", ".json")):
        raise UserError(f"{path}: expected a sentencepiece .model or a tokenizer.json")
    return path


def _read(path: str) -> bytes:
    if os.path.getsize(path) > MAX_FILE:
        raise UserError(f"{path}: is larger than {MAX_FILE // 2**20} MiB")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def _config_beside(file: str) -> dict[str, Any]:
    """Reads special tokens, whether BOS is added, and the template from Hugging Face's files."""
    folder = os.path.dirname(file)
    config_file = os.path.join(folder, "tokenizer_config.json")
    config = _read_json(config_file)
    tokens: dict[str, str] = {}
    for fields in (_read_json(os.path.join(folder, "special_tokens_map.json")), config):
        for name, token in fields.items():
            content = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(content, str):
                tokens[name] = content
    templates = config.get("chat_template")
    if isinstance(templates, list):
        templates = {
            entry.get("name"): entry.get("template")
            for entry in templates
            if isinstance(entry, dict)
        }.get("default")
    if templates is not None and not isinstance(templates, str):
        raise UserError(f"{config_file}: field 'chat_template' is not text")
    beside = os.path.join(folder, "chat_template.jinja")
    if os.path.isfile(beside):
        return {"tokens": tokens, "add_bos": config.get("add_bos_token"), "file": beside}
    return {
        "tokens": tokens,
        "add_bos": config.get("add_bos_token"),
        "template": templates,
        "file": config_file,
    }


def _template(given: str, config: dict[str, Any], file: str) -> tuple[str, str]:
    """Chooses the template, and the file to name in messages about it."""
    if "{" in given:
        return given, "chat_template"
    path = given or (config["file"] if config["file"].endswith(".jinja") else "")
    if path:
        if not os.path.isfile(path):
            raise UserError(f"{path}: no such chat template")
        try:
            return _read(path).decode(), path
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: invalid UTF-8 at byte offset {error.start}") from None
    if config.get("template"):
        return config["template"], config["file"]
    return chat.PLAIN_TEMPLATE, file
