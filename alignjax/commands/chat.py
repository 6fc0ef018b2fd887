"""The command ``chat``: a conversation in a terminal, with one model or two side by side."""

import dataclasses
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax

from alignjax.commands import voices
from alignjax.commands.voices import Voice
from alignjax.config import SamplingConfig
from alignjax.data.records import Message
from alignjax.errors import UserError, did_you_mean
from alignjax.types import Array

COMMANDS = {
    "/regenerate": "another response to the last message",
    "/compare PATH": "compare with a second model; without PATH: stop comparing",
    "/temperature X": "sampling temperature; 0: greedy",
    "/reset": "start a new conversation",
    "/quit": "leave",
}
Respond = Callable[[Voice, Sequence[Message], SamplingConfig, Array], tuple[str, bool]]


@dataclasses.dataclass
class Conversation:
    """A conversation with one or two networks, which get the same messages."""

    voices: list[Voice]
    settings: SamplingConfig
    turns: list[list[Message]]  # one list per network
    draws: int = 0  # responses so far, which seed the next one


def run(
    path: str,
    *,
    against: str,
    settings: SamplingConfig,
    overrides: Sequence[str],
    checkpoint: str = "last",
    seed: int = 0,
) -> None:
    """Chats until the input ends or ``/quit``.

    Args:
      path: a network, see `voices.load`.
      against: a second network that responds side by side, or empty.
      settings: how to sample, one response at a time.
      overrides: changes to the config of a run.
      checkpoint: last or best, if ``path`` is a run.
      seed: seed of the sampling.

    Raises:
      UserError: there is no such network.
    """
    loaded = [voices.load(path, overrides, checkpoint)]
    loaded += [voices.load(against)] if against else []
    talk = Conversation(loaded, settings, [[] for _ in loaded])
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        _say(f"{' and '.join(v.name for v in loaded)}; {', '.join(COMMANDS)}")
    key = jax.random.key(seed)
    for text in converse(talk, _lines(terminal), key, voices.respond, voices.load):
        _say(text)


def converse(
    talk: Conversation,
    lines: Iterable[str],
    key: Array,
    respond: Respond,
    load: Callable[[str], Voice],
    width: int | None = None,
) -> Iterator[str]:
    """Yields the output for each line: responses, or the result of a command.

    Args:
      talk: the conversation, which is changed.
      lines: messages and commands.
      key: PRNG key of all samples.
      respond: returns a network's response.
      load: loads the network at a path, for ``/compare``.
      width: columns of the screen; None: the terminal's, or 0 without a terminal.
    """
    for line in lines:
        word, _, value = line.strip().partition(" ")
        if word in ("/quit", "/exit"):
            return
        if not word:
            continue
        if word.startswith("/") and word != "/regenerate":
            yield _command(talk, word, value.strip(), load)
            continue
        if word == "/regenerate":
            if not talk.turns[0]:
                yield "there is no message yet"
                continue
            if not talk.settings.temperature:
                yield "at temperature 0 the response is always the same; set one: /temperature 1"
                continue
            for turns in talk.turns:
                turns.pop()
        else:
            for turns in talk.turns:
                turns.append(Message("user", line.strip()))
        yield _answers(talk, key, respond, _width() if width is None else width)


def _answers(talk: Conversation, key: Array, respond: Respond, width: int) -> str:
    """Samples a response from every model, and adds it to that model's conversation."""
    responses = []
    for voice, turns in zip(talk.voices, talk.turns, strict=True):
        draw = jax.random.fold_in(key, talk.draws)
        text, ended = respond(voice, turns, talk.settings, draw)
        turns.append(Message("assistant", text))
        cut = f" [cut at {talk.settings.max_new_tokens} tokens]"
        responses.append(text.strip() + ("" if ended else cut))
    talk.draws += 1
    if len(responses) == 1:
        return responses[0]
    return beside([v.name for v in talk.voices], responses, width)


def _command(talk: Conversation, word: str, value: str, load: Callable[[str], Voice]) -> str:
    """Runs a line that begins with a slash; returns what to print."""
    names = [name.split()[0] for name in COMMANDS]
    if word == "/reset":
        talk.turns = [[] for _ in talk.voices]
        return "a new conversation"
    if word == "/temperature":
        try:
            talk.settings = dataclasses.replace(talk.settings, temperature=float(value))
        except (ValueError, UserError):
            return f"/temperature: wanted a number >= 0, found {value!r}"
        return f"temperature {talk.settings.temperature:g}"
    if word == "/compare":
        del talk.voices[1:], talk.turns[1:]
        if not value:
            return f"{talk.voices[0].name} alone"
        try:
            talk.voices.append(load(value))
        except UserError as error:
            return str(error)
        talk.turns.append(list(talk.turns[0]))
        return f"{talk.voices[0].name} beside {talk.voices[1].name}"
    if word == "/help":
        return "\n".join(f"{name:<16}{text}" for name, text in COMMANDS.items())
    return f"no command {word!r}{did_you_mean(word, names)}; /help lists them"


def beside(names: Sequence[str], texts: Sequence[str], width: int) -> str:
    """Formats two texts in two columns, or one below the other if the terminal is narrow."""
    if width < 60:
        return "\n".join(f"[{name}] {text}" for name, text in zip(names, texts, strict=True))
    half = (width - 3) // 2
    columns = [
        [name, "-" * half, *(part for x in text.split("\n") for part in _wrap(x, half))]
        for name, text in zip(names, texts, strict=True)
    ]
    rows = max(map(len, columns))
    left, right = (column + [""] * (rows - len(column)) for column in columns)
    return "\n".join(f"{a:<{half}} | {b}".rstrip() for a, b in zip(left, right, strict=True))


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _lines(terminal: bool) -> Iterator[str]:
    """Reads lines; in a terminal with a prompt and a history."""
    if not terminal:
        yield from sys.stdin
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (adds editing and history to input)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
