"""Rows as published sets have them, and what each is read as; the source is not named."""

import json
import re

import pytest

from alignjax.data import sources
from alignjax.data.files import Row
from alignjax.data.records import DataError, DataReport, Message, check
from alignjax.data.sources import columns

U, A = "user", "assistant"


def m(role, content, **more):
    return {"role": role, "content": content, **more}


def said(prompt):
    """A prompt in one line: its turns' first letters and contents; a plain text as it is."""
    if isinstance(prompt, str):
        return prompt
    return " | ".join(f"{turn.role[0]}: {turn.content}" for turn in prompt if turn.role != "tools")


def read(tmp_path, rows, name="d.jsonl", **keywords):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = DataReport()
    records = list(check(sources.auto(report, path=str(path), **keywords), report))
    report.kept = len(records)
    assert not report.unaccounted
    return records, report


PAIRS = {
    "UltraFeedback, binarized": (
        {"prompt": "Hi", "prompt_id": "7", "chosen": [m(U, "Hi"), m(A, "a")],
         "rejected": [m(U, "Hi"), m(A, "b")], "messages": [m(U, "Hi"), m(A, "a")],
         "score_chosen": 8.0, "score_rejected": 4.0},
        "u: Hi",
    ),
    "Orca": ({"system": "Be kind.", "question": "Hi", "chosen": "a", "rejected": "b"},
             "s: Be kind. | u: Hi"),
    "Orca, without a system text": (
        {"system": None, "prompt": "Hi", "chosen": "a", "rejected": "b"}, "u: Hi"
    ),
    "Orca by distilabel": (
        {"system": "Be kind.", "input": "Hi", "chosen": "a", "rejected": "b",
         "generations": ["a", "b"], "rating": [9.0, 2.0]},
        "s: Be kind. | u: Hi",
    ),
    "Capybara, preferred": (
        {"prompt": "Hi", "conversation": [{"input": "Hi", "output": None}], "source": "x",
         "chosen": [m(U, "Hi"), m(A, "Yo"), m(U, "And?"), m(A, "a")],
         "rejected": [m(U, "Hi"), m(A, "Yo"), m(U, "And?"), m(A, "b")]},
        "u: Hi | a: Yo | u: And?",
    ),
    "Skywork": ({"chosen": [m(U, "Hi"), m(A, "a")], "rejected": [m(U, "Hi"), m(A, "b")],
                 "source": "x"}, "u: Hi"),
    "Tulu": ({"id": "t", "source": "x", "prompt": "Hi", "chosen_model": "y",
              "chosen": [m(U, "Hi"), m(A, "a")], "rejected": [m(U, "Hi"), m(A, "b")]}, "u: Hi"),
    "UltraInteract": (
        {"task": "t", "trajectory": [{"from": "user", "value": "Hi"}], "chosen": "a",
         "rejected": "b", "id": "1", "parent_id": "0"},
        "u: Hi",
    ),
    "OpenAI's preferences": (
        {"input": {"messages": [m("developer", "Be kind."), m(U, "Hi")], "tools": [],
                   "parallel_tool_calls": True},
         "preferred_output": [m(A, "a")], "non_preferred_output": [m(A, "b")]},
        "s: Be kind. | u: Hi",
    ),
    "SHP": (
        {"post_id": "p", "domain": "d", "history": "Hi", "human_ref_A": "b", "human_ref_B": "a",
         "labels": 0, "score_A": 3, "score_B": 9},
        "u: Hi",
    ),
    "PKU-SafeRLHF": (
        {"prompt": "Hi", "response_0": "b", "response_1": "a", "is_response_0_safe": True,
         "better_response_id": 1},
        "Hi",
    ),
    "HelpSteer 2, preferences": (
        {"prompt": "Hi", "response_1": "a", "response_2": "b", "preference_strength": -2}, "Hi"
    ),
    "HelpSteer 3": (
        {"domain": "d", "language": "en", "context": [m(U, "Hi")], "response1": "b",
         "response2": "a", "overall_preference": 2},
        "u: Hi",
    ),
    "Arena": (
        {"question_id": "q", "model_a": "x", "model_b": "y", "winner": "model_b", "turn": 1,
         "conversation_a": [m(U, "Hi"), m(A, "b")], "conversation_b": [m(U, "Hi"), m(A, "a")]},
        "u: Hi",
    ),
    "Summaries": (
        {"info": {"id": "i", "post": "Hi"}, "summaries": [{"text": "b"}, {"text": "a"}],
         "choice": 1},
        "u: Hi",
    ),
    "Stack Exchange": ({"qid": 1, "question": "Hi", "response_j": "a", "response_k": "b"}, "u: Hi"),
    "ms-swift": (
        {"messages": [m("system", "Be kind."), m(U, "Hi"), m(A, "a")], "rejected_response": "b"},
        "s: Be kind. | u: Hi",
    ),
    "ms-swift, messages": (
        {"messages": [m("system", "Be kind."), m(U, "Hi"), m(A, "a")],
         "rejected_messages": [m(U, "Hi"), m(A, "b")]},
        "s: Be kind. | u: Hi",
    ),
    "ms-swift, older": (
        {"system": "Be kind.", "history": [["Yo", "Yes"]], "query": "Hi", "response": "a",
         "rejected_response": "b"},
        "s: Be kind. | u: Yo | a: Yes | u: Hi",
    ),
    "Alpaca": ({"instruction": "Hi", "input": "there", "chosen": "a", "rejected": "b"},
               "u: Hi\nthere"),
    "Alpaca, ranked": ({"instruction": "Hi", "input": "", "output": ["a", "b"]}, "u: Hi"),
    "ShareGPT": (
        {"conversations": [{"from": "system", "value": "Be kind."},
                           {"from": "human", "value": "Hi"}],
         "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        "s: Be kind. | u: Hi",
    ),
    "texts within objects": (
        {"sample": {"question": "Hi", "chosen": {"text": "a"}, "rejected": {"text": "b"}}}, "u: Hi"
    ),
    "one text in a list": ({"prompt": "Hi", "chosen": ["a"], "rejected": ["b"]}, "Hi"),
    "AlpacaEval": ({"instruction": "Hi", "output_1": "b", "output_2": "a", "preference": 2.0},
                   "u: Hi"),
    "the index of the best": ({"prompt": "Hi", "responses": ["b", "a"], "chosen": 1}, "Hi"),
    "ORPO mix": ({"source": "x", "prompt": "Hi", "question": "Hi",
                  "chosen": [m(U, "Hi"), m(A, "a")], "rejected": [m(U, "Hi"), m(A, "b")]},
                 "u: Hi"),
    "HH with its parts": ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "response": "a", "chosen": "a",
                           "rejected": "b"}, "\n\nHuman: Hi\n\nAssistant:"),
    "HH beside its prompt": (
        {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "\n\nHuman: Hi\n\nAssistant:a",
         "rejected": "\n\nHuman: Hi\n\nAssistant:b"}, "\n\nHuman: Hi\n\nAssistant:"),
    "a whole dialogue beside the responses": (
        {"messages": [m(U, "Hi"), m(A, "a")], "chosen": "a", "rejected": "b"}, "u: Hi"
    ),
    "history as JSON text": (
        {"question": "Hi", "history": '[["Yo", "Yes"]]', "tools": "null", "chosen": "a",
         "rejected": "b"}, "u: Yo | a: Yes | u: Hi"),
    "a dialogue as JSON text": (
        {"chat": json.dumps([m(U, "Hi")]), "good": "a", "bad": json.dumps([m(A, "b")])}, "u: Hi"
    ),
    "other spellings": ({"Question": "Hi", "chosenResponse": "a", "rejected-response": "b"},
                        "u: Hi"),
    "within an object": ({"row": {"prompt": "Hi", "chosen": "a", "rejected": "b"}, "n": 1}, "Hi"),
    "parts of content": (
        {"prompt": [m(U, [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}])],
         "chosen": [m(A, [{"type": "output_text", "text": "a"}])], "rejected": [m(A, "b")]},
        "u: Hi",
    ),
    "roles of other makers": (
        {"prompt": [m("Human", "Hi"), m("model", "Yo"), m("user", "And?")], "chosen": "a",
         "rejected": "b"},
        "u: Hi | a: Yo | u: And?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(tmp_path, name):
    row, prompt = PAIRS[name]
    (record,), report = read(tmp_path, [row])
    assert (said(record.prompt), record.responses) == (prompt, ("a", "b"))
    assert (record.scores, record.desirable, report.warned) == ((), (), {})
    assert "a" not in report.unread


LISTS = {
    "Nectar": (
        [{"prompt": "\n\nHuman: Hi\n\nAssistant: ", "turns": 1, "num_responses": 2,
          "answers": [{"answer": "a", "model": "x", "rank": 1.0},
                      {"answer": "b", "model": "y", "rank": 4.0}]}],
        "\n\nHuman: Hi\n\nAssistant: ", ((-1.0,), (-4.0,)), ("rank",),
    ),
    "UltraFeedback": (
        [{"source": "x", "instruction": "Hi", "models": ["x", "y"], "correct_answers": ["None"],
          "completions": [{"response": "a", "overall_score": 8.5, "annotations": {}},
                          {"response": "b", "overall_score": 3.0, "annotations": {}}]}],
        "u: Hi", ((8.5,), (3.0,)), ("overall_score",),
    ),
    "distilabel": (
        [{"instruction": "Hi", "generations": ["a", "b"], "ratings": [5, 2], "rationales": [""]}],
        "u: Hi", ((5.0,), (2.0,)), ("ratings",),
    ),
    "HelpSteer": (
        [{"prompt": "Hi", "response": "a", "helpfulness": 4, "correctness": 3, "coherence": 4,
          "complexity": 1, "verbosity": 2},
         {"prompt": "Hi", "response": "b", "helpfulness": 1, "correctness": 0, "coherence": 4,
          "complexity": 1, "verbosity": 2}],
        "Hi", ((4.0, 3.0, 4.0, 1.0, 2.0), (1.0, 0.0, 4.0, 1.0, 2.0)),
        ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    ),
    "WebGPT": (
        [{"question": {"full_text": "Hi", "id": "1"}, "answer_0": "a", "answer_1": "b",
          "score_0": 1.0, "score_1": -1.0}],
        "u: Hi", ((1.0,), (-1.0,)), ("score",),
    ),
    "comparisons": (
        [{"question": "Hi", "prediction 1": "a", "prediction 2": "b", "preference": [1]}],
        "u: Hi", ((1.0,), (-1.0,)), ("preference",),
    ),
    "lists as JSON text": (
        [{"prompt": "Hi", "responses": '["a", "b"]', "scores": "[1, 2]"}],
        "Hi", ((1.0,), (2.0,)), ("scores",),
    ),
    "several on each side": (
        [{"prompt": "Hi", "chosen": ["a"], "rejected": ["b", "c"]}],
        "Hi", ((1.0,), (0.0,), (0.0,)), ("chosen",),
    ),
    "numbers under another name": (
        [{"prompt": "Hi", "responses": ["a", "b"], "judged": [1, 0.5], "model": ["x", "y"]}],
        "Hi", ((1.0,), (0.5,)), ("judged",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path, name):
    rows, prompt, scores, objectives = LISTS[name]
    (record,), report = read(tmp_path, rows)
    assert (said(record.prompt), record.responses) == (prompt, ("a", "b", "c")[: len(scores)])
    assert (record.scores, record.objectives) == (scores, objectives)
    assert report.added == 1 - len(rows)


@pytest.mark.parametrize(
    ("good", "bad", "column"),
    [(True, False, "label"), (1, 0, "label"), ("yes", "no", "is_safe"), ("no", "yes", "toxic"),
     (1, -1, "kto_tag"), ("Desirable", "undesirable", "label"), (False, True, "hallucination")],
)  # fmt: skip
def test_labels(tmp_path, good, bad, column):
    rows = [{"prompt": "Hi", "completion": "a", column: good},
            {"messages": [m(U, "Hi"), m(A, "b")], column: bad}]  # fmt: skip
    records, _ = read(tmp_path, rows)
    assert [(r.responses, r.desirable) for r in records] == [(("a",), (True,)), (("b",), (False,))]


def test_dialogues_train_every_turn(tmp_path):
    rows = [
        {"messages": [m(U, "1"), m(A, "a"), m(U, "2"), m(A, "b")]},
        {"messages": [m(U, "3"), m(A, "c", weight=0), m(U, "4"), m(A, "d", loss=True)]},
        {"source": "x", "conversation": [{"input": "5", "output": "e"}]},
        {"instruction": "7", "history": [["6", "f"]], "output": "g"},
        {"system_prompt": "S", "question": "8", "response": "h"},
        {"prompt": "9", "messages": [m(U, "9"), m(A, "i")]},
        {"conversations": [{"from": "gpt", "value": "Hey"}, {"from": "human", "value": "10"},
                           {"from": "gpt", "value": "j"}, {"from": "human", "value": "bye"}]},
    ]  # fmt: skip
    records, report = read(tmp_path, rows)
    assert [(said(r.prompt), *r.responses) for r in records] == [
        ("u: 1", "a"),
        ("u: 1 | a: a | u: 2", "b"),
        ("u: 3 | a: c | u: 4", "d"),
        ("u: 5", "e"),
        ("u: 6", "f"),
        ("u: 6 | a: f | u: 7", "g"),
        ("s: S | u: 8", "h"),
        ("u: 9", "i"),
        ("a: Hey | u: 10", "j"),
    ]
    assert records[1].root == records[0].prompt  # both are held out, or neither
    assert (report.rows_in, report.added) == (7, 2)
    assert report.warned == {"untrained_opening": 1, "unanswered_turn": 1}
    records, _ = read(tmp_path, rows[:2], turns="last")
    assert [r.responses for r in records] == [("b",), ("d",)]
    all_zero = {"messages": [m(U, "1"), m(A, "a", loss=False)]}
    _, report = read(tmp_path, [*rows[:1], all_zero])
    assert report.dropped == {"no_trained_turn": 1}


def test_prompts_alone_are_read_where_a_run_samples_its_own_responses(tmp_path):
    rows = [
        {"prompt": "1"},
        {"question": "2"},
        {"system": "S", "prompt": "3"},
        {"prompt": [m(U, "4")]},
        {"messages": [m(U, "5"), m(A, "a"), m(U, "6")]},
        {"instruction": "7", "input": "8", "output": None},
        {"messages": [m(U, "9"), m(A, "b")]},
        {"question": "10", "answer": "c"},
        {"prompt": "  "},
        {"prompt": "1"},
    ]
    records, report = read(tmp_path, rows, prompts_alone=True)
    assert [(said(r.prompt), *r.responses) for r in records] == [
        ("1",),
        ("u: 2",),
        ("s: S | u: 3",),
        ("u: 4",),
        ("u: 5 | a: a | u: 6",),
        ("u: 7\n8",),
        ("u: 9", "b"),
        ("u: 10", "c"),
    ]
    assert [r.prompt_alone for r in records] == [True] * 6 + [False] * 2
    assert report.dropped == {"empty_prompt": 1, "duplicate": 1}
    assert report.readings["read as prompt: prompt from 'prompt'"] == 3
    # An empty list of responses is no prompt alone; without the setting nothing is.
    _, report = read(
        tmp_path, [{"prompt": "p", "responses": [], "label": []}], prompts_alone=True,
        columns=columns.Columns(label="label"),
    )  # fmt: skip
    assert report.dropped == {"empty_response": 1}
    with pytest.raises(DataError, match=r":1: wanted .*--set data\.source\.prompts_alone=true$"):
        read(tmp_path, rows)


TOOL = {"name": "weather", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}


def test_tools(tmp_path):
    """Tools and calls in the spellings of OpenAI and ShareGPT are one thing."""
    text = json.dumps({"city": "Graz"})
    openai = {
        "tools": [{"type": "function", "function": TOOL}],
        "messages": [m(U, "Coat?"), m(A, None, tool_calls=[{**CALL, "id": "c1"}]),
                     m("tool", "3", tool_call_id="c1", name="weather"), m(A, "Yes.")],
        "rejected_response": "No.",
    }  # fmt: skip
    as_text = {**CALL, "function": {"name": "weather", "arguments": text}}
    sharegpt = {
        "tools": json.dumps([TOOL]),
        "conversations": [
            {"from": "human", "value": "Coat?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": text})},
            {"from": "observation", "value": "3"},
        ],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
    }
    response = {"prompt": [m(U, "Coat?")], "chosen": [{"role": A, "tool_calls": [as_text]}],
                "rejected": [m(A, "No.")], "tools": [TOOL]}  # fmt: skip
    records, _ = read(tmp_path, [openai, sharegpt, response])
    tools = Message("tools", json.dumps([{"type": "function", "function": TOOL}]))
    assert all(record.prompt[0] == tools for record in records)
    assert records[0].responses == records[1].responses == ("Yes.", "No.")
    first, second = (record.prompt[2].fields() for record in records[:2])
    assert first == {"role": A, "content": None, "tool_calls": [{**CALL, "id": "c1"}]}
    assert second == {"role": A, "content": None, "tool_calls": [CALL]}
    assert records[0].prompt[3].fields() == m("tool", "3", name="weather", tool_call_id="c1")
    assert json.loads(records[2].more[0]) == {"content": None, "tool_calls": [CALL]}
    assert json.loads(records[2].responses[0]) == CALL["function"]  # what people and judges see
    assert records[2].more[1] == ""


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning(tmp_path, name):
    row = {"prompt": [m(U, "1+1?")], "chosen": [m(A, "2", **{name: "One more."})],
           "rejected": [m(A, [{"type": "thinking", "thinking": "Hm."}, "3"])]}  # fmt: skip
    (record,), _ = read(tmp_path, [row])
    assert record.responses == ("2", "3")
    assert [json.loads(x) for x in record.more] == [
        {"reasoning_content": "One more."},
        {"reasoning_content": "Hm."},
    ]
    (record,), _ = read(tmp_path, [row], inline_reasoning=True)
    assert record.responses[0] == "<think>\nOne more.\n</think>\n\n2"
    assert record.more == ()


def test_names_given_in_the_config(tmp_path):
    rows = [{"a": "Hi", "b": "x", "c": "y", "d": {"e": "S"}}]
    given = sources.Columns(prompt="a", chosen="b", rejected="c", system="d.e")
    (record,), report = read(tmp_path, rows, columns=given)
    assert (said(record.prompt), record.responses) == ("s: S | u: Hi", ("x", "y"))
    assert list(report.readings) == [
        "read as pair: prompt from 'a', system from 'd.e', chosen from 'b', rejected from 'c'"
    ]
    rows = [{"chosen": {"text": "Hi\na"}, "rejected": {"text": "Hi\nb"}, "d": "maths"}]
    (record,), _ = read(tmp_path, rows, columns=sources.Columns(domain="d"))
    assert (record.prompt, record.responses, record.domain) == ("Hi\n", ("a", "b"), "maths")
    given = sources.Columns(prompt="a", response="b", label="ok")
    rows = [{"a": "Hi", "b": "x", "ok": 1, "note": "!"}, {"a": "Ho", "b": "x", "ok": 0}]
    records, report = read(tmp_path, rows, columns=given)
    assert [r.desirable for r in records] == [(True,), (False,)]
    assert report.unread == {"note": 1}
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "better": "c", "all": ["a", "b"],
             "rating": [1, 2]}]  # fmt: skip
    (record,), _ = read(tmp_path, rows, columns=sources.Columns(chosen="better"))
    assert record.responses == ("c", "b")
    (record,), _ = read(tmp_path, rows, columns=sources.Columns(responses="all"))
    assert record.scores == ((1.0,), (2.0,))
    rows = [{"a": "Hi", "b": "x", "ok": 1}]
    with pytest.raises(DataError, match=r"d\.jsonl:1: column 'okk' of data\.columns\.label .*'ok'"):
        read(tmp_path, rows, columns=sources.Columns(prompt="a", response="b", label="okk"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "question": "q", "chosen": "a", "rejected": "b"},
         r"'prompt' and 'question' could each be the prompt; .*--set data\.columns\.prompt=prompt"),
        ({"prompt": "p", "response": "a", "output": "b"}, "could each be the response"),
        ({"prompt": "p", "completion": "a", "label": True, "kto_tag": False},
         "could each be the label"),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0,
          "safer_response_id": 1}, "'better_response_id' and 'safer_response_id' could each be"),
        ({"prompt": "p", "responses": ["a", "b"], "helpful": [1, 2], "harmless": [2, 1]},
         r"'helpful' and 'harmless' could each be the scores"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "good": "c", "bad": "d"},
         "could each be the chosen"),
        ({"messages": [m(U, "p"), m(A, "a")], "completion": "b"}, "end in different responses"),
        ({"prompt": "p", "response_1": "a", "response_2": "b"}, "no column says which is better"),
        ({"prompt": "p", "responses": ["a", "b"], "lengths": [3, 4]}, "no column scores or ranks"),
        ({"prompt": "p", "responses": ["a", "b"], "judge_rank": [1, 2], "perplexity": [9, 8]},
         "no column scores or ranks"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "no column scores"),
        ({"completion": "a"}, "no column is the prompt"),
        ({"text": "p"}, "wanted columns of responses"),
        ({"prompt": "p", "completion": "a", "label": "maybe"}, r"'label': .* found .maybe"),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 2},
         "'better_response_id': wanted one of 0, 1, found 2"),
        ({"messages": [m(U, "p"), m(A, "a", weight=0.5)]}, r"weight': wanted 0 or 1, found 0\.5"),
        ({"messages": [m(U, "p"), m(A, None)]}, r"'messages\[1\]' has no 'content'"),
        ({"messages": [m(U, "p"), m(A, None, tool_calls=[{"id": "x"}])]},
         r"'messages\[1\]\.tool_calls\[0\]': wanted a function"),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "label": 0},
         "'label': wanted one of 1, 2, found 0"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "label": 1},
         "'label': wanted one of a, b, found 1"),
        ({"problem": "p", "solution": "s", "answer": "a"}, "could each be the response"),
        ({"system": ["S"], "prompt": "p", "completion": "a"}, "'system': wanted text, found list"),
        ({"tools": {"name": "t"}, "prompt": "p", "completion": "a"},
         "'tools': wanted a list of tools, found object"),
        ({"chosen": str([m(U, "p"), m(A, "a")]), "rejected": str([m(U, "p"), m(A, "b")])},
         "'chosen': wanted messages as JSON"),
        ({"tools": "[", "prompt": "p", "completion": "a"}, "field 'tools' is not valid JSON"),
        ({"system": "S", "messages": [m("system", "T"), m(U, "p"), m(A, "a")]},
         "'system' differs from the system's message"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_asked_about(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"d\.jsonl:1: .*{message}"):
        read(tmp_path, [row])


def test_rows_that_cannot_be_used_have_reasons(tmp_path):
    image = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What?"}]
    good = {"prompt": [m(U, "Hi")], "chosen": [m(A, "a")], "rejected": [m(A, "b")]}
    rows = [
        good,
        {**good, "prompt": [m(U, " ")]},
        {**good, "chosen": [m(U, "a")]},
        {**good, "prompt": [m(U, image)]},
        {**good, "prompt": [m(U, "Ho")], "images": ["x.png"]},
        {**good, "rejected": [m(U, "Ho"), m(A, "b")]},
        {"prompt": "Hi", "response_1": "a", "response_2": "b", "winner": "Both bad"},
        {"chosen": [m(U, "x"), m(A, "a")], "rejected": [m(U, "y"), m(A, "b")]},
        {**good, "system": "S", "prompt": "Hi", "chosen": [m("system", "T"), m(U, "Hi"), m(A, "a")],
         "rejected": [m("system", "T"), m(U, "Hi"), m(A, "b")]},
        {"messages": [m(U, "x"), m(A, "c")], "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": ["a"], "rejected": []},
        {"messages": []},
        {"prompt": "y", "chosen": "\n\nHuman: x\n\nAssistant: a",
         "rejected": "\n\nHuman: x\n\nAssistant: b"},
    ]  # fmt: skip
    records, report = read(tmp_path, rows)
    assert len(records) == 1
    assert report.dropped == {
        "empty_turn": 1,
        "empty_response": 1,
        "no_assistant_turn": 2,
        "image": 2,
        "prompt_mismatch": 4,
        "tie": 1,
        "context_mismatch": 1,
    }
    assert report.ids["image"] == ["d.jsonl:4", "d.jsonl:5"]


def test_pairs_of_one_id_have_ids_of_their_own(tmp_path):
    pair = {"id": "a", "prompt": "Hi", "chosen": "1", "rejected": "2"}
    records, _ = read(tmp_path, [pair, {**pair, "rejected": "3"}, {**pair, "chosen": "4"}])
    assert [r.id for r in records] == ["a", "a#2", "a#3"]
    with pytest.raises(DataError, match="duplicate id 'a' with different prompts at"):
        read(tmp_path, [pair, {**pair, "prompt": "Ho"}])


@pytest.mark.parametrize("indent", [None, 1])
def test_rows_of_a_json_list_have_ids_of_their_own(tmp_path, indent):
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    path = tmp_path / "d.json"
    path.write_text(json.dumps(rows, indent=indent))
    records = list(sources.auto(DataReport(), path=str(path)))
    assert len({r.id for r in records}) == len({r.origin for r in records}) == 3
    assert [r.prompt for r in records] == ["0", "1", "2"]


def test_plain_dialogues_as_messages(tmp_path):
    text = "\n\nHuman: Hi\n\nAssistant: Yo\n\nHuman: And?\n\nAssistant:"
    rows = [{"chosen": f"{text} a", "rejected": f"{text} b"},
            {"prompt": f"{text} ", "chosen": "a", "rejected": "b"}]  # fmt: skip
    records, _ = read(tmp_path, rows[:1], chat=True)
    records += read(tmp_path, rows[1:], chat=True)[0]
    for record in records:
        assert said(record.prompt) == "u: Hi | a: Yo | u: And?"
        assert record.responses == ("a", "b")
    assert read(tmp_path, rows[1:])[0][0].prompt == f"{text} "


SHARED = {
    "01_compact_list.json": (3, {}, 0),
    "02_tools.jsonl": (2, {}, 0),
    "03_sharegpt_full.json": (1, {}, 0),
    "04_sharegpt_kto.jsonl": (2, {}, 0),
    "05_rejected_response.jsonl": (2, {}, 0),
    "06_question_system.jsonl": (2, {}, 0),
    "07_alpaca.json": (3, {}, 1),
    "08_reasoning.jsonl": (1, {}, 0),
    "09_content_parts.jsonl": (1, {"image": 1}, 0),
    "10_long_json_column.jsonl": (1, {}, 0),
    "11_several_pairs_one_id.jsonl": (2, {}, 0),
    "12_bad_rows.jsonl": (2, {"empty_turn": 1, "no_assistant_turn": 1}, 0),
    "13_multi_turn.jsonl": (3, {}, 1),
    "14_int_label.jsonl": (2, {}, 0),
}


def test_shared_cases(data_dir):
    folder = data_dir.parent / "cases" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared cases: no folder {folder}")
    for name, (kept, dropped, added) in SHARED.items():
        report = DataReport()
        records = list(check(sources.auto(report, path=str(folder / name)), report))
        assert (len(records), report.dropped, report.added) == (kept, dropped, added), name


@pytest.mark.parametrize(
    ("pattern", "kept", "reading"),
    [
        ("alpacaeval_bon16_tulu2/*.gz", 643, "list: .*scores from 'judge_preference'"),
        ("halueval_general/*.gz", 4507, "response: .*label from 'hallucination'"),
        ("hh_harmless_base_test/*.gz", 2303, "pair: chosen from 'chosen'"),
        ("llamafactory_demos/dpo_en*", 294, "pair: dialogue from 'conversations', chosen"),
        ("llamafactory_demos/dpo_zh*", 289, "pair: dialogue from 'conversations', chosen"),
        ("llamafactory_demos/kto*", 300, "dialogue: .*label from 'label'"),
        ("model_written_evals_persona/risk-*.gz", 2000, "chosen from 'answer_matching_behavior'"),
        ("qa_feedback_dev/*.json", 488, "choice: prompt from 'question', preferred from 'pref"),
        ("unieval_multidim/sfhot.json", 353, "prompt from 'source', response from 'system_out"),
        ("unieval_multidim/sfres.json", 515, "prompt from 'source', response from 'system_out"),
        ("unieval_multidim/topical_chat.json", 60, "prompt from 'source', response from 'sys"),
    ],
)
def test_real_sets_need_no_source(data_dir, pattern, kept, reading):
    report = DataReport()
    records = list(check(sources.auto(report, path=str(data_dir / pattern)), report))
    (sentence,) = report.readings
    assert len(records) == report.records_in - report.dropped_total == kept
    assert re.search(reading, sentence), sentence


@pytest.mark.parametrize(
    ("rows", "readings"),
    [
        # The same columns: a number or a word, two equal texts or different ones, JSON or text.
        (
            [
                {"prompt": "p", "completion": "a", "label": 1},
                {"prompt": "p", "completion": "b", "label": "no"},
                {"prompt": "p", "completion": "c", "score": 0.5},
                {"prompt": "p", "completion": "d", "score": "0.5"},
            ],
            [("response", "label"), ("response", "label")] + [("response", "scores")] * 2,
        ),
        (
            [
                {"prompt": "p", "chosen": "a", "rejected": "b"},
                {"prompt": "p", "chosen": "", "rejected": "b"},
                {"prompt": '[{"role": "user", "content": "p"}]', "chosen": "a", "rejected": "b"},
                {"messages": '[{"role": "user", "content": "p"}]', "chosen": "a", "rejected": "b"},
                {"messages": "text", "chosen": "a", "rejected": "b"},
            ],
            [("pair", "rejected")] * 5,
        ),
        (  # a number is no prompt
            [
                {"prompt": "p", "question": 3, "completion": "a"},
                {"prompt": 3, "question": "p", "completion": "a"},
            ],
            [("response", "response")] * 2,
        ),
    ],
)
def test_a_row_is_read_alike_whatever_came_before(rows, readings):
    """The columns of rows of one shape are found once: no other row may get them."""

    def found(order):
        known = {}
        out = {}
        for i in order:
            row = Row(rows[i], f"f:{i}", str(i), "f")
            flat = columns.flatten(row, columns.Columns())
            out[i] = columns.find_once(flat, columns.Columns(), known)
        return [out[i] for i in range(len(rows))]

    alone = [found([i] * 2 + [j for j in range(len(rows)) if j != i])[i] for i in range(len(rows))]
    assert alone == found(range(len(rows))) == found(reversed(range(len(rows))))
    assert [(x.kind, list(x.names)[-1]) for x in alone] == readings


def test_columns_of_one_role_are_told_apart_by_their_values():
    same = {"prompt": "p", "question": "p", "chosen": "a", "rejected": "b"}
    known = {}
    for fields, fits in ((same, True), ({**same, "question": "q"}, False), (same, True)):
        row = columns.flatten(Row(fields, "f:1", "1", "f"), columns.Columns())
        if fits:
            assert columns.find_once(row, columns.Columns(), known).names["prompt"] == "prompt"
        else:
            with pytest.raises(DataError, match="could each be the prompt"):
                columns.find_once(row, columns.Columns(), known)
