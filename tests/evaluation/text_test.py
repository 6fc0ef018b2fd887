"""BLEU against values worked out by hand, and against what nltk gives."""

import math

import numpy as np
import pytest

from alignjax.evaluation.text import bleu, bleu_char

SAID = ["the cat sat on mat", "a dog"]
WANTED = ["the cat sat on the mat", "a dog runs"]


def test_word_level_by_hand():
    """Orders 1 to 4 match 7 of 7, 4 of 5, 2 of 3 and 1 of 2; 7 words against 9."""
    wanted = 100 * math.exp(1 - 9 / 7) * (1 * 4 / 5 * 2 / 3 * 1 / 2) ** 0.25
    assert bleu(SAID, WANTED).mean == pytest.approx(wanted, rel=1e-12)
    assert wanted == pytest.approx(54.0, abs=0.01)


def test_it_is_the_libraries_score_also_where_an_order_has_no_match():
    from sacrebleu import corpus_bleu

    said, wanted = ["a dog barks loud, now", "no", ""], ["a dog runs far, now", "yes", "no"]
    found = bleu(said, wanted)
    assert found.mean == corpus_bleu(said, [wanted]).score > 0
    assert found.count == 3


def test_the_interval_is_over_prompts():
    same = bleu(["one two three four five"] * 9, ["one two three four six"] * 9)
    assert same.half_width == 0  # whichever prompts are drawn, the score is this one
    differ = bleu(["one two three four five"] * 9, ["one two three four five", *["six"] * 8])
    assert differ.half_width > 1


def test_character_level_by_hand():
    """Here abcd against abce: 3 of 4, 2 of 3, 1 of 2 and 0 of 1; abcde against abcdf has no 0."""
    wanted = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    np.testing.assert_allclose(bleu_char(["abcd", "abcde"], ["abce", "abcdf"]), [0.0, wanted])


def test_character_level_is_what_nltk_gives():
    """Version 3.10.4, ``sentence_bleu([y], x)`` on plain strings; blanks are characters, too."""
    said = ["I will help you clean the guitar.", "Hello there, friend. No questions asked!", "no"]
    wanted = ["I will not help you clean the old guitar.", "Hello there. No questions!", "yes"]
    nltk = [0.7446266724848845, 0.574302940807427, 0.0]
    np.testing.assert_allclose(bleu_char(said, wanted), nltk, rtol=1e-12)
    without = [[x.replace(" ", "") for x in texts] for texts in (said, wanted)]
    assert abs(bleu_char(*without)[0] - nltk[0]) > 1e-3
