"""What the program tells of itself: help, version, completion."""

import re
import subprocess

import pytest

import alignjax
from alignjax import cli
from alignjax.errors import UserError


@pytest.mark.parametrize("name", cli.VERBS)
def test_the_help_of_a_command_has_its_flags_and_an_example(name):
    text = cli.help_text(["help", name])
    assert cli.help_text([name, "--help"]) == cli.help_text(["--set=x", name, "--help"]) == text
    verb = cli.VERBS[name]
    assert set(re.findall(r"^  --(\w+)", text, re.M)) == set(verb.reads)
    assert f"python -m alignjax {name} {verb.example}".rstrip() in text
    wanted = text.partition("required:")[2].partition("optional:")[0]
    assert set(re.findall(r"^  --(\w+)", wanted, re.M)) == set(verb.needs)


def test_the_help_lists_every_command_and_the_version_is_told():
    text = cli.help_text(["--help"])
    assert text == cli.help_text([]) == cli.help_text(["help"])
    assert {*cli.VERBS, "help", "completion"} <= set(re.findall(r"^  (\w+)  ", text, re.M))
    assert cli.help_text(["--version"]) == f"alignjax {alignjax.__version__}"


def test_an_example_has_flags_that_the_command_reads():
    for name, verb in cli.VERBS.items():
        assert set(re.findall(r"--(\w+)", f"{verb.example} {verb.more}")) <= set(verb.reads), name
        assert set(verb.notes) <= set(verb.reads), name
        assert all(note in cli.help_text(["help", name]) for note in verb.notes.values()), name


@pytest.mark.parametrize("words", [["rnu", "--foo=1"], ["help", "rnu"], ["rnu", "--help"]])
def test_an_unknown_command_is_named_with_the_nearest(words):
    with pytest.raises(UserError, match=r"no command 'rnu' \(did you mean 'run'\?\)"):
        cli.help_text(words)


def test_a_command_that_works_is_told_nothing():
    assert cli.help_text(["run", "--config=x.py", "--set", "a=b"]) == ""
    assert cli.help_text(["--set", "a=b", "run"]) == ""


def test_bash_completes_commands_and_flags():
    asks = "COMP_WORDS=({}); COMP_CWORD={}; _alignjax; echo ${{COMPREPLY[@]}}"
    lines = [
        cli.help_text(["completion", "bash"]),
        asks.format("alignjax gen", 1),
        asks.format("alignjax run --w", 2),
        asks.format("python -m alignjax export --ad", 4),
        asks.format("alignjax completion z", 2),
    ]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.split("\n")[:4] == ["generate", "--workdir=", "--adapter", "zsh"], done
    assert "bashcompinit" in cli.help_text(["completion", "zsh"])
    with pytest.raises(UserError, match="wanted bash or zsh, found 'fish'"):
        cli.help_text(["completion", "fish"])
