"""Loads tokenizers: sentencepiece models and Hugging Face's ``tokenizer.json``, as one type.

Both kinds follow the same rules:

- A prompt gets exactly one BOS, at position 0, if the tokenizer has one. Every response ends with
  exactly one end token: the chat template's, else the EOS. Nothing is truncated here.
- Prompt and response are encoded separately, so the boundary between them is always a token
  boundary, and the ids of prompt + response decode to the text of prompt + response (as far as
  the tokenizer's own normalisation is lossless).
- Text in the data that looks like a special token is plain text. Only a chat template can write
  special tokens.
- Padding has no meaning (masks come from lengths), so a tokenizer needs no pad token: ``pad_id`` is
  then ``eos_id``.

No code of a model is ever run (``auto_map`` is not read) and nothing is unpickled.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignjax import gguf_files
from alignjax.data.records import DataError, Message, Prompt
from alignjax.data.tokenizer import chat, files, gguf
from alignjax.data.tokenizer.kinds import Encode, Parts, huggingface_parts, sentencepiece_parts
from alignjax.data.tokenizer.turns import Turn, after_opening, find_turn
from alignjax.errors import UserError, did_you_mean


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
      eos_id: ends a response if the chat template writes no end.
      bos_id: starts every prompt; None if the tokenizer has none or does not use it.
      pad_id: fills up batches.
      ends: ids that end a response -> where each comes from: the chat template's end of a turn, the
        tokenizer's EOS, the model's generation_config.json. Sampling stops at any of them.
      opening: text with which the template ends prompts and that begins the response: ``<think>``.
      digest: hex sha256 of everything that changes ids: model, template, special tokens.
    """

    vocab_size: int
    eos_id: int
    bos_id: int | None
    pad_id: int
    ends: Mapping[int, str]
    opening: str
    digest: str
    chat_template: str = field(repr=False)
    template_name: str = field(repr=False)  # the template's file, for messages
    special_tokens: dict[str, str] = field(repr=False)  # names as templates know them
    specials: dict[str, int] = field(repr=False)  # texts that templates may use -> ids
    special_pattern: re.Pattern[str] = field(repr=False)  # any one of them
    encode_text: Encode = field(repr=False, compare=False)
    encode_rendered: Encode | None = field(repr=False, compare=False)
    decode_ids: Callable[[list[int]], str] = field(repr=False, compare=False)

    def encode(
        self,
        prompt: Prompt,
        responses: Sequence[str],
        more: Sequence[str] = (),
        full: bool = False,
    ) -> Encoded:
        """Encodes a prompt and its responses.

        ``more`` has `Message.more` of each response, or is empty. ``full`` keeps all of the
        template's text after a response, not only the end of its turn.

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
            prompt_ids, response_ids = self._encode_dialogue(prompt, answers, special, full)
        return Encoded(
            np.asarray(prompt_ids, np.int32),
            tuple(np.asarray(ids, np.int32) for ids in response_ids),
            special,
        )

    def _encode_dialogue(
        self, prompt: tuple[Message, ...], responses: Sequence[Message], special: bool, full: bool
    ) -> tuple[list[int], list[list[int]]]:
        """Encodes the template's text of the prompt, and what each response adds to it."""
        turns = (*prompt, *responses)
        literals: list[tuple[str, str]] = []
        if special:
            turns, literals = self._hide(turns)
        context, answers = turns[: len(prompt)], turns[len(prompt) :]
        before = self._render(context, True)
        prompt_ids = self._one_bos(self._encode_rendered(before, literals, first=True))
        response_ids = []
        for answer in answers:
            dialogue = self._render((*context, answer), False)
            text: str | None = dialogue.removeprefix(before)
            if not dialogue.startswith(before):
                text = after_opening(self._render, context, before, answer)
            if text is None:
                raise DataError(
                    f"{self.template_name}: chat template renders the prompt differently when a "
                    "response follows, so the two cannot be separated"
                )
            ids = self._encode_rendered(text, literals, first=False)
            response_ids.append(ids if full else self._one_end(ids))
        return prompt_ids, response_ids

    def render(self, prompt: Prompt) -> str:
        """Renders a prompt as text, with the chat template if it is a dialogue."""
        return prompt if isinstance(prompt, str) else self._render(prompt, True)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes ids; leaves out special tokens and ids outside the vocabulary."""
        array = np.asarray(ids, np.int64)
        keep = (array >= 0) & (array < self.vocab_size) & ~np.isin(array, [*self._closing])
        return self.decode_ids(array[keep].tolist())

    @functools.cached_property
    def _closing(self) -> frozenset[int]:
        """The ends that are special tokens."""
        return frozenset(self.ends) & frozenset(self.specials.values())

    def describe_ends(self) -> str:
        """Describes in one line the tokens that end a response, and the text that opens it."""
        names = {index: text for text, index in self.specials.items()}
        names = {i: self.decode_ids([i]) for i in self.ends if i < self.vocab_size} | names
        parts = [f"{names.get(i, '')!r} {i} ({where})" for i, where in self.ends.items()]
        opened = f"; prompts end with {self.opening!r}, from the chat template" * bool(self.opening)
        return f"responses end with {', '.join(parts)}{opened}"

    def _render(self, turns: tuple[Message, ...], add_generation_prompt: bool) -> str:
        return _render(
            turns,
            add_generation_prompt,
            template=self.chat_template,
            name=self.template_name,
            special_tokens=self.special_tokens,
        )

    def _has_special(self, *texts: str) -> bool:
        return any(self.special_pattern.search(text) for text in texts)

    def _hide(
        self, turns: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], list[tuple[str, str]]]:
        """Replaces text that looks like a special token by private-use characters.

        After rendering, special tokens can then only be the template's own.

        Returns:
          The changed turns, and (stand-in, text) pairs to undo the change.
        """
        used = {char for turn in turns for char in turn.content + turn.more}
        free = (chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in used)
        find = self.special_pattern.findall
        texts = {x for turn in turns for x in find(turn.content) + find(turn.more)}
        # Longest first: a special token may be part of another.
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
        """Encodes a template's text: special tokens become ids, stand-ins their text."""
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

    def _one_end(self, ids: list[int]) -> list[int]:
        """Cuts after the template's end of a turn (a line break may follow it), or adds the EOS."""
        end = next((n for n, i in enumerate(ids, 1) if i in self._closing), 0)
        if not end:
            return [*ids, self.eos_id]
        if self.decode(ids[end:]).strip():
            raise DataError(f"{self.template_name}: chat template writes text after the EOS")
        return ids[:end]


def load(
    path: str,
    *,
    model: str = "",
    chat_template: str = "",
    bos: str = "",
    eos: str = "",
    pad: str = "",
) -> Tokenizer:
    """Loads a tokenizer.

    Args:
      path: a sentencepiece ``.model``, a ``tokenizer.json``, a folder with one of them (and
        ``tokenizer_config.json``, ``special_tokens_map.json``, ``chat_template.jinja`` beside), or
        a GGUF file.
      model: the folder of the model, whose generation_config.json may list more ends of responses.
        By default the tokenizer's folder.
      chat_template: a ``.jinja`` file, the template itself (text with a ``{``), or the name of one
        of the tokenizer's. By default the folder's ``default``, else ``chat.PLAIN_TEMPLATE``.
      bos: text of the token that starts prompts. By default the one that the tokenizer adds.
      eos: text of the token that ends responses. By default the one in the files.
      pad: text of the padding token. By default the one in the files, else the EOS.

    Raises:
      UserError: the file is missing, damaged or of another kind; there is no EOS; a special token
        is not in the vocabulary; the template has a syntax error.
    """
    if gguf_files.is_gguf(path):
        other = "" if model == path else model
        return _from_gguf(path, model=other, chat_template=chat_template, bos=bos, eos=eos, pad=pad)
    file = files.model_file(path)
    content = files.read(file)
    beside = files.read_beside(file, model)
    overrides = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    named = {**beside.tokens, **{name: token for name, token in overrides.items() if token}}
    template, template_name = files.choose_template(chat_template, beside, file)
    chat.check_template(template, template_name)
    spm = file.endswith(".model")
    parts = (sentencepiece_parts if spm else huggingface_parts)(file, content, beside.added)

    ids = _named_ids(parts, named, file)
    if "eos_token" not in ids:
        raise UserError(f"{file}: has no end-of-sequence token; set eos to its text")
    adds_bos = beside.add_bos
    if not bos and not (parts.adds_bos(ids.get("bos_token")) if adds_bos is None else adds_bos):
        ids.pop("bos_token", None)
    special_tokens = {**named, **{name: parts.id_to_token(i) for name, i in ids.items()}}
    render = functools.partial(
        _render, template=template, name=template_name, special_tokens=special_tokens
    )
    turn = find_turn(render, parts.added)
    ends = _ends(parts, turn, ids["eos_token"], beside)
    texts = {index: text for text, index in parts.added.items()}
    closing = {texts[i]: i for i in ends if i in texts}
    if not spm and not closing.keys() <= parts.specials.keys():
        parts = huggingface_parts(file, content, beside.added, closing)
    used = {parts.id_to_token(i): i for name, i in ids.items() if name != "pad_token"}
    specials = {**parts.specials, **closing, **used}
    return _assemble(
        content, parts, ids, specials, special_tokens, (template, template_name), ends, turn.opening
    )


def _assemble(
    content: bytes,
    parts: Parts,
    ids: Mapping[str, int],
    specials: dict[str, int],
    special_tokens: dict[str, str],
    template: tuple[str, str],
    ends: Mapping[int, str],
    opening: str,
) -> Tokenizer:
    """Makes the tokenizer from the parts that `load` has read."""
    eos_id, bos_id = ids["eos_token"], ids.get("bos_token")
    settings: list[Any] = [template[0], bos_id, eos_id, sorted(specials.items())]
    settings.append(sorted(special_tokens.items()))
    if set(ends) != {eos_id}:
        settings.append(sorted(ends))
    # Longest first: the pattern must not find a special token inside a longer one.
    longest_first = sorted(specials, key=len, reverse=True)
    return Tokenizer(
        vocab_size=parts.vocab_size,
        eos_id=eos_id,
        bos_id=bos_id,
        pad_id=ids.get("pad_token", eos_id),
        ends=ends,
        opening=opening,
        digest=_digest(content, settings),
        chat_template=template[0],
        template_name=template[1],
        special_tokens=special_tokens,
        specials=specials,
        special_pattern=re.compile("(" + "|".join(map(re.escape, longest_first)) + ")"),
        encode_text=parts.encode,
        encode_rendered=parts.encode_rendered,
        decode_ids=parts.decode,
    )


def _from_gguf(
    path: str, *, model: str, chat_template: str, bos: str, eos: str, pad: str
) -> Tokenizer:
    """Loads the tokenizer of a GGUF file: writes its files to a temporary folder and loads that."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in gguf.files(path).items():
            (pathlib.Path(folder) / name).write_bytes(content)
        try:
            tokenizer = load(
                folder, model=model, chat_template=chat_template, bos=bos, eos=eos, pad=pad
            )
        except UserError as error:
            raise UserError(str(error).replace(folder, path)) from None
    return dataclasses.replace(tokenizer, template_name=path)


def _render(
    turns: tuple[Message, ...],
    add_generation_prompt: bool,
    *,
    template: str,
    name: str,
    special_tokens: dict[str, str],
) -> str:
    return chat.render(
        template,
        turns,
        add_generation_prompt=add_generation_prompt,
        special_tokens=special_tokens,
        name=name,
    )


def _ends(parts: Parts, turn: Turn, eos_id: int, beside: files.Beside) -> dict[int, str]:
    """Returns the ids that end a response, and where each comes from."""
    sources: dict[int, list[str]] = {}
    if turn.end:
        sources.setdefault(parts.added[turn.end], []).append("chat template")
    sources.setdefault(eos_id, []).append("tokenizer")
    for index in beside.ends:
        sources.setdefault(index, []).append(beside.ends_file)
    return {index: ", ".join(where) for index, where in sources.items()}


def _digest(content: bytes, settings: list[Any]) -> str:
    identity = hashlib.sha256(content).digest() + json.dumps(settings).encode()
    return hashlib.sha256(identity).hexdigest()


def _named_ids(parts: Parts, named: dict[str, str], file: str) -> dict[str, int]:
    """Returns the ids of BOS, EOS and padding: of the named tokens, else the tokenizer's own."""
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = named.get(name)
        index = parts.default_ids.get(name) if token is None else parts.token_to_id(token)
        if index is not None:
            ids[name] = index
        elif token is not None:
            raise UserError(
                f"{file}: {name}: has no token {token!r}{did_you_mean(token, parts.specials)}"
            )
    return ids


def check_ids(name: str, ids: int, rows: int) -> None:
    """Refuses a tokenizer, named ``name``, with more ids than the embedding has rows."""
    if ids > rows:
        raise UserError(
            f"model.vocab_size: the tokenizer {name} has {ids} ids, the model embeds {rows}"
        )
