"""Scores of responses: judges, reward models, and the program that writes them down."""

import numpy as np
import pytest

from alignjax.data.records import DataError, Message, Receipt
from alignjax.rewards import scorers
from alignjax.world import sources as world


def test_a_judge_scores_every_response():
    records = list(world.lists(Receipt(), size=3, seed=0, responses=4))
    found = scorers.judged(records, judge=world.judge, name="true_score")
    for record, scores in zip(records, found, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, np.array(record.scores)[:, 0], rtol=1e-6)
    both = scorers.judged(records, judge=world.judge, name=("helpful", "true_score"))
    assert both[0].shape == (4, 2)
    np.testing.assert_array_equal(both[1][:, 1], found[1])


def test_what_a_judge_cannot_score_is_one_line():
    record = next(world.pairs(Receipt(), size=1, seed=0))
    with pytest.raises(DataError, match=r"no score 'helpfull' \(did you mean 'helpful'"):
        scorers.judged([record], judge=world.judge, name="helpfull")
    talk = type(record)(id="a", prompt=(Message("user", "Hi"),), responses=("Yes",))
    with pytest.raises(DataError, match=r"a: the prompt is a conversation"):
        scorers.judged([talk], judge=world.judge, name="helpful")
