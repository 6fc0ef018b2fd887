"""How far work is: bars in terminals of 80 columns, lines elsewhere."""

import io
import re
import sys

import pytest

from alignjax.runtime.loggers import bars

LINE = {
    "loss": 0.48123,
    "rewards/accuracies": 0.73456,
    "learning_rate": 5e-7,
    "tokens_per_second": 12345.6,
    "grad_norm": 3.0,
}


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO", "alignjax")
    return lambda: caplog.messages


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bars.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_training_says_a_line_of_numbers(said, clock):
    with bars.progress("alignment", 12, done=2) as advance:
        for _ in range(5):
            clock[0] += 5.0
            advance(1)
        advance(0, **LINE)
        clock[0] += 30.0
        advance(5)
    assert said() == [
        "alignment 7/12: loss 0.4812, accuracy 0.735, lr 5e-07, tokens/s 12,346, ETA 0:00:25",
        "alignment 12/12: took 0:00:55",
    ]
    assert all(len(line) <= 100 for line in said())


def test_items_of_unknown_number_are_counted_now_and_then(said, clock):
    def items():
        for i in range(5000):
            clock[0] += 0.02
            yield i

    assert list(bars.counted("reading rows", items())) == list(range(5000))
    assert said() == [f"reading rows: {n:,} so far" for n in (2048, 4096)]


def test_many_items_say_how_far_they_are_and_few_say_nothing(said, monkeypatch):
    monkeypatch.setattr(bars, "MANY", 300)
    assert list(bars.shown("rows", list(range(299)))) == list(range(299))
    assert not said()
    assert list(bars.shown("rows", list(range(300)))) == list(range(300))
    assert said() == ["rows 300/300: took 0:00:00"]


def test_other_work_says_a_line_now_and_then_and_one_at_its_end(said, clock):
    with bars.progress("  held-out rows", 100) as advance:
        for _ in range(10):
            clock[0] += 10.0
            advance(10)
    assert said() == [
        "held-out rows 30/100: ETA 0:01:10",
        "held-out rows 60/100: ETA 0:00:40",
        "held-out rows 90/100: ETA 0:00:10",
        "held-out rows 100/100: took 0:01:40",
    ]


def test_a_line_of_two_players_says_whose_numbers_they_are():
    assert bars.texts({"loss": 1.0, "reward_model/loss": 2.0, "eval_loss": 3.0}) == [
        "loss 1",
        "reward_model/loss 2",
    ]


def test_a_bar_fits_80_columns(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in (("COLUMNS", "80"), ("TERM", "xterm"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    with bars.progress("reward model's turns of a game", 12000) as advance:
        advance(12000, **LINE)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [x for x in re.split(r"[\r\n]+", text) if x.strip()]
    assert all(len(line) <= 80 for line in lines), lines
    assert "12000/12000" in lines[-1]
    assert "loss 0.4812 accuracy 0.735" in lines[-1]
