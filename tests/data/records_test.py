"""The checks common to every source, the data report, and splitting by prompt."""

import math
from dataclasses import replace

import pytest

from alignjax.data import splits
from alignjax.data.records import DataError, DataReport, Message, Record, check


def pair(id: str, chosen: str = "good", rejected: str = "bad", **fields) -> Record:
    return Record(id=id, prompt=fields.pop("prompt", "ask"), responses=(chosen, rejected), **fields)


def scored(id: str, responses: tuple[str, ...], scores: tuple[float, ...]) -> Record:
    values = tuple((score,) for score in scores)
    return Record(id=id, prompt="ask", responses=responses, scores=values, objectives=("q",))


def labelled(id: str, response: str, label: bool) -> Record:
    return Record(id=id, prompt="ask", responses=(response,), desirable=(label,))


def run(*rows: Record) -> tuple[list[Record], DataReport]:
    report = DataReport(rows_in=len(rows))
    kept = list(check(rows, report))
    report.kept = len(kept)
    assert not report.unaccounted
    return kept, report


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("x", chosen=""), "empty_response"),
        (pair("x", rejected=" \n\t"), "empty_response"),
        (pair("x", "same", "same"), "identical_pair"),
        (pair("x", prompt=" "), "empty_prompt"),
        (pair("x", prompt=()), "empty_prompt"),
        (scored("x", ("a",), (1.0,)), "single_response"),
        (scored("x", ("a", "b"), (1.0, 1.0)), "tied_scores"),
        (scored("x", ("a", "a"), (1.0, 2.0)), "identical_pair"),
        (scored("x", ("a", ""), (1.0, 2.0)), "single_response"),
        (scored("x", ("", " "), (1.0, 2.0)), "empty_response"),
    ],
)
def test_useless_rows_are_dropped_by_reason(row, reason):
    kept, report = run(pair("before"), row)
    assert [r.id for r in kept] == ["before"]
    assert report.dropped == {reason: 1}
    assert report.ids[reason] == ["x"]


def test_lists_lose_single_responses_and_stay_lists():
    kept, report = run(scored("x", ("a", "", "b", "a"), (1.0, 2.0, 3.0, 4.0)))
    assert kept[0].responses == ("a", "b")
    assert kept[0].scores == ((1.0,), (3.0,))
    assert report.warned == {"removed_empty_responses": 1, "removed_repeated_responses": 1}


def test_lists_of_draws_keep_what_repeats_unless_all_are_the_same():
    row = scored("x", ("a", "", "b", "a"), (1.0, 2.0, 3.0, 1.0))
    same = scored("y", ("a", "a", ""), (1.0, 2.0, 0.0))
    kept, report = run(replace(row, repeats=True), replace(same, repeats=True))
    assert [r.responses for r in kept] == [("a", "b", "a")]
    assert kept[0].scores == ((1.0,), (3.0,), (1.0,))
    assert report.warned == {"removed_empty_responses": 1}
    assert report.dropped == {"identical_pair": 1}


def test_duplicates_keep_the_first_and_contradictions_report_both():
    kept, report = run(pair("a"), pair("b"), pair("c", "bad", "good"), pair("d", domain="other"))
    assert [row.id for row in kept] == ["a", "c", "d"]
    assert report.dropped == {"duplicate": 1}
    assert report.ids["contradiction"] == ["a", "c"]

    _, report = run(labelled("a", "x", True), labelled("b", "x", False))
    assert report.ids["contradiction"] == ["a", "b"]


def test_one_id_for_two_prompts_is_an_error_that_names_both_places():
    rows = [pair("x", origin="f:10"), pair("x", "other", origin="f:57")]
    rows[1] = replace(rows[1], prompt="other")
    with pytest.raises(DataError, match="duplicate id 'x' with different prompts at f:10 and f:57"):
        run(*rows)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, -2e18])
def test_scores_must_be_finite(value):
    with pytest.raises(DataError, match=r"score 'q' of response 1: wanted a finite number"):
        run(scored("x", ("a", "b"), (1.0, value)))


def test_scores_and_labels_must_fit_the_responses():
    with pytest.raises(DataError, match="1 scores for 2 responses"):
        run(Record(id="x", prompt="p", responses=("a", "b"), scores=((1.0,),), objectives=("q",)))
    with pytest.raises(DataError, match="wanted labels for 1 responses, found 2"):
        run(Record(id="x", prompt="p", responses=("a",), desirable=(True, False)))
    with pytest.raises(DataError, match="response 0 has 2 scores for the objectives q"):
        run(Record(id="x", prompt="p", responses=("a",), scores=((1.0, 2.0),), objectives=("q",)))


def test_unpaired_data_need_both_classes_and_imbalance_is_shown():
    with pytest.raises(DataError, match="all 3 labelled responses are desirable"):
        run(*(labelled(str(i), f"r{i}", True) for i in range(3)))
    rows = [labelled(str(i), f"r{i}", i > 0) for i in range(10)]
    _, report = run(*rows)
    assert "9 desirable, 1 undesirable (9.0 to 1)" in report.render()
    assert "a weight of 9.00 on the undesirable ones" in report.render()


def test_report_round_trips_and_reads_well():
    report = DataReport(rows_in=1000, kept=994)
    for i in range(5):
        report.drop("empty_response", f"f:{i}")
    report.warn("truncated_prompt", "f:9")
    other = DataReport(rows_in=7)
    other.restore(report.as_dict())
    assert other == report
    assert report.render().splitlines() == [
        "rows read                 1,000  100.00%",
        "kept                        994   99.40%",
        "UNACCOUNTED                   1    0.10%",
        "  dropped empty_response      5    0.50%  f:0, f:1, f:2, ...",
        "  noted truncated_prompt      1    0.10%  f:9",
    ]


def prompts(count: int) -> list[Record]:
    return [pair(f"{i}/{j}", f"c{j}", prompt=f"Prompt {i}") for i in range(count) for j in (0, 1)]


def test_split_keeps_prompts_together_and_is_stable_under_appending():
    rows = prompts(200)
    report = DataReport()
    train, held_out = splits.split_by_prompt(rows, seed=1, eval_fraction=0.2, report=report)
    assert len(train) + len(held_out) == len(rows)
    assert report.held_out == len(held_out)
    assert 40 < len(held_out) < 130
    splits.check_no_overlap(train, held_out)
    _, more = splits.split_by_prompt(prompts(300), seed=1, eval_fraction=0.2)
    assert [row.id for row in more[: len(held_out)]] == [row.id for row in held_out]
    _, other = splits.split_by_prompt(rows, seed=2, eval_fraction=0.2)
    assert {row.id for row in other} != {row.id for row in held_out}


def test_split_by_size_holds_out_whole_prompts():
    train, held_out = splits.split_by_prompt(prompts(50), seed=0, eval_size=9)
    assert len(held_out) == 10
    splits.check_no_overlap(train, held_out)


@pytest.mark.parametrize(
    "sizes",
    [{}, {"eval_fraction": 0.1, "eval_size": 1}, {"eval_size": 100}, {"eval_fraction": 1.5}],
)
def test_split_refuses_sizes_it_cannot_honour(sizes):
    with pytest.raises(DataError, match=r"^split: "):
        splits.split_by_prompt(prompts(2), seed=0, **sizes)


def test_overlap_is_found_up_to_case_and_white_space():
    train = [pair("a", prompt="What is  this?")]
    held_out = [pair("b", prompt="what is this?\n"), pair("c", prompt="else")]
    with pytest.raises(DataError, match=r"1 of 2 evaluation rows .* training data \(b\)"):
        splits.check_no_overlap(train, held_out)


def test_digest_of_a_dialogue_depends_on_roles():
    as_user = (Message("user", "hi"),)
    assert splits.prompt_digest(as_user) != splits.prompt_digest((Message("system", "hi"),))
    assert splits.prompt_digest(as_user) == splits.prompt_digest((Message("user", " HI "),))
