"""Rules that compare a response with an answer."""

import pytest

from alignjax.rewards import answers


@pytest.mark.parametrize(
    ("response", "answer", "same"),
    [
        ("The total is 42.", "6 * 7 = <<6*7=42>>42\n#### 42", 1.0),
        ("so \\boxed{1,250.50}", "1250.5", 1.0),
        ("It is -3", "3", 0.0),
        ("First 42, then 41", "42", 0.0),  # the last number counts
        ("no idea", "42", 0.0),
        ("no idea", "none", 0.0),  # nothing equals nothing
        (".5", "0.50", 1.0),
        ("3, 4", "4", 1.0),  # a comma between digits alone separates thousands
    ],
)
def test_numbers(response, answer, same):
    assert answers.same_number(response, answer) == same


@pytest.mark.parametrize(
    ("response", "answer", "same"),
    [
        (" New  York.\n", "new york", 1.0),
        ("New York City", "New York", 0.0),
        ("e.g.", "e.g", 1.0),
        ("", "x", 0.0),
    ],
)
def test_texts(response, answer, same):
    assert answers.same_text(response, answer) == same
