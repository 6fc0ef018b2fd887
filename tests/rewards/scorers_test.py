"""Scores of responses: judges, reward models, and the program that writes them down."""

from functools import partial

import numpy as np
import pytest

from alignjax.data.records import DataError, DataReport, Message, Record
from alignjax.errors import UserError
from alignjax.rewards import scorers
from alignjax.world import sources as world


def test_a_judge_scores_every_response():
    records = list(world.lists(DataReport(), size=3, seed=0, responses=4))
    found = scorers.judged(records, judge=world.judge, name="true_score")
    for record, scores in zip(records, found, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, np.array(record.scores)[:, 0], rtol=1e-6)
    both = scorers.judged(records, judge=world.judge, name=("helpful", "true_score"))
    assert both[0].shape == (4, 2)
    np.testing.assert_array_equal(both[1][:, 1], found[1])


def test_what_a_judge_cannot_score_is_one_line():
    record = next(world.pairs(DataReport(), size=1, seed=0))
    with pytest.raises(DataError, match=r"no score 'helpfull' \(did you mean 'helpful'"):
        scorers.judged([record], judge=world.judge, name="helpfull")
    talk = type(record)(id="a", prompt=(Message("user", "Hi"),), responses=("Yes",))
    with pytest.raises(
        DataError, match=r"a: wanted a prompt of plain text .*, found a conversation; a scorer func"
    ):
        scorers.judged([talk], judge=world.judge, name="helpful")


def judge(prompt, response):
    return {"length": len(response), "first": ord(response[0])}


LENGTH = partial(scorers.judged, judge=judge, name="length")
BOTH = partial(scorers.judged, judge=judge, name=("length", "first"))
RECORDS = [Record(id="first", prompt="p", responses=("a", "bc"))]


def three(records, *, give):
    return [give(len(r.responses)) for r in records]


def opened(*functions):
    return scorers.open_scorers(functions, "s", None)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda k: np.zeros(k + 1), r"'first' has 2 responses: wanted scores \[2\] or \[2, M\], "
         r"found shape \[3\]"),
        (lambda k: np.zeros((k, 0)), r"found shape \[2, 0\]"),
        (lambda k: np.float32(1), r"found shape \[\]"),
        (lambda k: np.array([1.0, np.nan]), r"'first': wanted finite .*found \[1\.0, nan\]"),
        (lambda k: np.array([1.0, 1e39]), r"'first': wanted finite .*found \[1\.0, 1e\+39\]"),
    ],
)  # fmt: skip
def test_scores_that_are_none_are_refused_with_the_scorer_s_name(give, message):
    with pytest.raises(UserError, match=rf"^s\[1\]: .*scorers_test\.three: .*{message}"):
        scorers.mean_scores(opened(LENGTH, partial(three, give=give)), RECORDS)
    with pytest.raises(UserError, match=r"s\[0\]: .*three: KeyError: 'p'$"):
        scorers.mean_scores(opened(partial(three, give=lambda k: {}["p"])), RECORDS)
    with pytest.raises(UserError, match=r"wanted scores of 1 records, found 0"):
        scorers.mean_scores(opened(lambda records: []), RECORDS)
    found = scorers.mean_scores(opened(LENGTH, LENGTH), RECORDS)
    assert found[0].tolist() == [1.0, 2.0]


def test_a_scorer_of_several_objectives_gives_those_that_are_asked_for():
    (both,) = opened(BOTH)
    assert (both.names, both.digest, both.reward_models) == (("length", "first"), "", ())
    (table,) = both.tables(RECORDS, ("first", "length"))
    assert table.tolist() == [[97, 1], [98, 2]]
    with pytest.raises(
        UserError, match=r"^s\[0\]: .*judged: .*no 'lenght' \(did you mean 'length'"
    ):
        both.tables(RECORDS, ("first", "lenght"))
    missing = np.array([[1.0, np.nan], [2.0, 3.0]])
    (unnamed,) = opened(lambda records: [missing])
    np.testing.assert_array_equal(unnamed.tables(RECORDS, ("a", "b"))[0], missing)
    with pytest.raises(
        UserError, match=r"wanted scores \[2, 3\], for a, b, c, found shape \[2, 2\]"
    ):
        unnamed.tables(RECORDS, ("a", "b", "c"))
    (infinite,) = opened(lambda records: [missing * np.inf])
    with pytest.raises(UserError, match=r"wanted finite scores"):
        infinite.tables(RECORDS, ("a", "b"))


def test_several_scorers_give_an_objective_each():
    first = partial(scorers.judged, judge=judge, name=("first",))
    (both,) = opened(partial(scorers.several, scorers=(first, LENGTH)))
    assert (both.reward_models, both.only_reward_models, both.digest) == ((), False, "")
    (table,) = both.tables(RECORDS, ("a", "b"))
    assert table.tolist() == [[97, 1], [98, 2]]
    assert both.means(RECORDS)[0].tolist() == [49, 50]
    with pytest.raises(UserError, match=r"wanted scores \[2, 3\], for a, b, c, found shape \[2, 2"):
        both.tables(RECORDS, ("a", "b", "c"))
    (wide,) = opened(partial(scorers.several, scorers=(LENGTH, BOTH)))
    wanted = (
        r"^s\[0\]: .*several: scorers\[1\]: wanted one score per response, \[2\], found .*\[2, 2\]"
    )
    with pytest.raises(UserError, match=wanted):
        wide.tables(RECORDS, ("a", "b", "c"))
    (none,) = opened(partial(scorers.several, scorers=()))
    with pytest.raises(UserError, match="scorers: wanted at least one, found none"):
        none.means(RECORDS)


def test_a_judge_gives_the_same_scores_of_every_response():
    def changing(prompt, response):
        return {"length": len(response), **({"b": 1} if "b" in response else {})}

    found = scorers.judgements(judge, [("p", "a"), ("p", "bc")])
    assert {name: x.tolist() for name, x in found.items()} == {"length": [1, 2], "first": [97, 98]}
    with pytest.raises(UserError, match=r"changing: wanted the scores length, found .*'b': 1"):
        scorers.judgements(changing, [("p", "a"), ("p", "bc")])
