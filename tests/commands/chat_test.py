"""What a conversation shows after each line; networks are made up, but for one."""

import re
import types

import jax
import pytest

from alignjax.commands import chat, voices
from alignjax.config import SamplingConfig
from alignjax.data.records import Message
from alignjax.errors import UserError
from tests import runs

STORY = str(runs.ROOT / "tests" / "parity" / "data" / "story")
KEY = jax.random.key(0)


def voice(name):
    return types.SimpleNamespace(name=name)


def load(path):
    if path == "none":
        raise UserError("none: wanted a run")
    return voice(path)


def talked(lines, *names, width=0, ended=True, **settings):
    """What is shown, and what each network was given each time."""
    given = []

    def respond(voice, turns, settings, key):
        given.append((voice.name, [turn.content for turn in turns], settings.temperature, key))
        return f"{voice.name} {len(given)}", ended

    there = [voice(name) for name in names or ("one",)]
    talk = chat.Conversation(there, SamplingConfig(samples=1, **settings), [[] for _ in there])
    shown = list(chat.converse(talk, lines, KEY, respond, load, width))
    return shown, given, talk


def test_a_conversation_is_remembered_and_begun_again():
    shown, given, talk = talked(["Hi.\n", "\n", "And?\n", "/reset\n", "Hi.\n", "/quit\n", "no\n"])
    assert shown == ["one 1", "one 2", "a new conversation", "one 3"]
    assert [x[1] for x in given] == [["Hi."], ["Hi.", "one 1", "And?"], ["Hi."]]
    assert talk.turns[0] == [Message("user", "Hi."), Message("assistant", "one 3")]


def test_a_response_is_drawn_again_by_another_key():
    lines = ["/regenerate", "Hi.", "/regenerate", "/temperature 0", "/regenerate", "/temperature x"]
    shown, given, _ = talked(lines)
    assert shown[:3] == ["there is no message yet", "one 1", "one 2"]
    assert [x[1] for x in given] == [["Hi."], ["Hi."]]
    assert (given[0][3] != given[1][3]).all()
    assert shown[3] == "temperature 0"
    assert "always the same" in shown[4]
    assert "wanted a number >= 0, found 'x'" in shown[5]


def test_two_networks_respond_side_by_side_each_in_its_own_conversation():
    lines = ["Hi.", "/compare two", "And?", "More.", "/compare none", "/compare", "Last."]
    shown, given, _ = talked(lines)
    assert shown[2] == "[one] one 2\n[two] two 3"
    assert given[2][:2] == ("two", ["Hi.", "one 1", "And?"])
    assert given[4][:2] == ("two", ["Hi.", "one 1", "And?", "two 3", "More."])
    assert shown[4:] == ["none: wanted a run", "one alone", "one 6"]
    both = talked(["Hi."], "one", "two", width=63)[0][0].splitlines()
    assert both[0] == f"{'one':<30} | two"
    assert both[2] == f"{'one 1':<30} | two 2"


def test_a_cut_response_and_a_wrong_command_are_told():
    shown, given, _ = talked(["Hi.", "/regenrate", "/help"], ended=False, max_new_tokens=7)
    assert shown[0] == "one 1 [cut at 7 tokens]"
    assert "no command '/regenrate' (did you mean '/regenerate'?)" in shown[1]
    assert all(name.split()[0] in shown[2] for name in chat.COMMANDS)
    assert len(given) == 1


def test_a_folder_responds_as_much_as_it_is_asked_to():
    """Prompts of two lengths below a power of two are one program."""
    there = voices.load(STORY)
    settings = SamplingConfig(samples=1, max_new_tokens=3, temperature=0.0)
    said = [
        voices.respond(there, [Message("user", text)], settings, KEY) for text in ("A", "A plan")
    ]
    assert said[0] == voices.respond(there, [Message("user", "A")], settings, KEY)
    assert all(text or ended for text, ended in said)
    with pytest.raises(UserError, match="nowhere: wanted a run, a folder"):
        voices.load("nowhere")
    message = r"--set mesh\.fsdp=2: .*story is not a run"
    assert re.search(message, runs.refused("chat", f"--model={STORY}", "--set=mesh.fsdp=2"))
