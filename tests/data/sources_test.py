"""Every reader on small crafted files, and on the real files with their known faulty rows."""

import json

import pytest

from alignjax.data import records, sources
from alignjax.data.records import DataError, DataReport, Message, check

HUMAN = "\n\nHuman: "


@pytest.fixture
def write(tmp_path):
    def rows_to_file(*rows: dict) -> str:
        path = tmp_path / "d.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return rows_to_file


def read(source, path: str, **keywords):
    report = DataReport()
    rows = list(check(source(report, path=path, **keywords), report))
    report.kept = len(rows)
    assert not report.unaccounted
    return rows, report


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


class TestHH:
    def test_splits_at_the_last_turn(self, write):
        start = f"{HUMAN}Hi\n\nAssistant: Yes.{HUMAN}Sure? Human: hm\n\nAssistant:"
        path = write({"chosen": f"{start} Yes, I am", "rejected": f"{start} Yes"})
        (row,), report = read(sources.hh, path)
        assert row.prompt == start
        assert row.responses == (" Yes, I am", " Yes")  # one is a prefix of the other
        assert row.id == "d.jsonl:1"
        assert report.warned == {"inline_marker": 1}

    def test_faulty_rows_are_counted(self, write):
        ask = f"{HUMAN}Hi\n\nAssistant:"
        path = write(
            {"chosen": f"{ask} a", "rejected": f"{ask} b"},
            {"chosen": f"{ask} ", "rejected": f"{ask} b"},
            {"chosen": f"{HUMAN}Ho\n\nAssistant: a", "rejected": f"{ask} b"},
        )
        rows, report = read(sources.hh, path)
        assert len(rows) == 1
        assert report.dropped == {"empty_response": 1, "context_mismatch": 1}

    def test_text_without_turns_is_an_error(self, write):
        with pytest.raises(DataError, match=r"d\.jsonl:1: field 'rejected' has no turn"):
            read(sources.hh, write({"chosen": "\n\nAssistant: x", "rejected": "y"}))

    def test_dialogues_become_messages(self, write):
        start = f"{HUMAN}Hi {HUMAN} there\n\nAssistant: Yes.\n\n1. a{HUMAN}Human: hm\n\nAssistant:"
        path = write({"chosen": f"{start} Yes, I am ", "rejected": f"{start}  Yes"})
        (row,), report = read(sources.hh, path, chat=True)
        assert row.prompt == (
            Message("user", "Hi\n\nthere"),
            Message("assistant", "Yes.\n\n1. a"),
            Message("user", "Human: hm"),
        )
        assert row.responses == ("Yes, I am", "Yes")
        assert report.warned == {"inline_marker": 1, "joined_turns": 1}

    def test_dialogues_that_are_no_messages(self, write):
        ask = f"{HUMAN}Hi\n\nAssistant:"
        path = write(
            {"chosen": f"{ask} a", "rejected": f"{ask} b"},
            {"chosen": f"{ask} a", "rejected": f"{ask} b{HUMAN}c"},
            {"chosen": f"{ask} x\n\nAssistant: a", "rejected": f"{ask} x\n\nAssistant: b"},
            {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
            {"chosen": f"{ask} a", "rejected": f"{ask}  a"},
        )
        rows, report = read(sources.hh, path, chat=True)
        assert [row.responses for row in rows] == [("a", "b")]
        assert report.dropped == {"unanswered_turn": 2, "empty_prompt": 1, "identical_pair": 1}
        path = write(
            {"chosen": f"{ask} a", "rejected": f"{ask} b"},
            {"chosen": f"Once {ask} a", "rejected": f"Once {ask} b"},
        )
        with pytest.raises(DataError, match=r"d\.jsonl:2: the dialogue begins with 'Once '"):
            read(sources.hh, path, chat=True)

    def test_messages_of_the_real_file(self, data_dir, monkeypatch):
        """They say what the text says, turn by turn."""
        monkeypatch.setattr(records, "IDS_KEPT", 100)
        path = str(data_dir / "hh_harmless_base_test" / "test.jsonl.gz")
        plain, _ = read(sources.hh, path)
        chats, report = read(sources.hh, path, chat=True)
        assert report.dropped == {"empty_response": 4, "context_mismatch": 5}
        assert report.warned == {"inline_marker": 44, "joined_turns": 4}
        names = {"user": "Human", "assistant": "Assistant"}
        for text, chat in zip(plain, chats, strict=True):
            roles = [turn.role for turn in chat.prompt]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            said = "".join(f"\n\n{names[t.role]}: {t.content}" for t in chat.prompt)
            words = f"{said}\n\nAssistant:".split()
            if text.id not in report.ids["joined_turns"]:
                assert words == text.prompt.split()
            assert chat.responses == tuple(y.strip() for y in text.responses)

    def test_real_file(self, data_dir, monkeypatch):
        monkeypatch.setattr(records, "IDS_KEPT", 100)
        path = str(data_dir / "hh_harmless_base_test" / "test.jsonl.gz")
        report = DataReport()
        rows = {row.id: row for row in check(sources.hh(report, path=path), report)}
        assert report.rows_in == 2312
        assert report.dropped == {"empty_response": 4, "context_mismatch": 5}

        def ids(*zero_based: int) -> list[str]:
            return [f"test.jsonl.gz:{row + 1}" for row in zero_based]

        assert report.ids["empty_response"] == ids(86, 516, 925, 1103)
        assert report.ids["context_mismatch"] == ids(1254, 1688, 1950, 1952, 2036)
        # 39 rows hold an inline "Human:" on the chosen side, 48 on either; 4 of these 48 are among
        # the rows with different contexts.
        assert report.warned == {"inline_marker": 44}
        prefix = rows[ids(1609)[0]]  # the one row whose sides are prefixes and not empty
        assert prefix.responses[0].startswith(prefix.responses[1]) or prefix.responses[
            1
        ].startswith(prefix.responses[0])
        assert all(row.prompt.endswith("\n\nAssistant:") for row in rows.values())
        assert all(text.startswith(" ") for row in rows.values() for text in row.responses)

    def test_common_prefix_would_cut_responses_of_the_real_file(self, data_dir):
        path = str(data_dir / "hh_harmless_base_test" / "test.jsonl.gz")
        by_turn, _ = read(sources.trl, path)
        by_prefix, _ = read(sources.trl, path, marker="(no such marker)")
        prefix_of = {row.id: row.prompt for row in by_prefix}
        longer = [row for row in by_turn if len(prefix_of[row.id]) > len(row.prompt)]
        assert by_turn == read(sources.hh, path)[0]
        assert len(longer) > 100  # rows that lose whole words of the response to the prompt


class TestTRL:
    @pytest.mark.parametrize(
        ("chosen", "rejected", "prompt", "responses"),
        [
            ("The sky is blue", "The sky is green", "The sky is", (" blue", " green")),
            ("The sky", "The sky is blue", "The", (" sky", " sky is blue")),
            ("Say cats", "Say cars", "Say", (" cats", " cars")),
            ("Q: x\nA: yes", "Q: x\nA: no", "Q: x\nA:", (" yes", " no")),
            ("Q: x\nyes", "Q: x\nno", "Q: x\n", ("yes", "no")),
            ("Say  a", "Say  b", "Say", ("  a", "  b")),
            ("Hello there ", "Hello there", "Hello", (" there ", " there")),
            (
                "x\n\nAssistant: The a",
                "x\n\nAssistant: The b",
                "x\n\nAssistant:",
                (" The a", " The b"),
            ),
        ],
    )
    def test_implicit_prompt_of_plain_text(self, write, chosen, rejected, prompt, responses):
        (row,), _ = read(sources.trl, write({"chosen": chosen, "rejected": rejected}))
        assert (row.prompt, row.responses) == (prompt, responses)

    @pytest.mark.parametrize("sides", [("Paris ", "London"), ("Yes", "Yesterday"), ("a", "a")])
    def test_no_implicit_prompt_is_made_up(self, write, sides):
        rows, report = read(sources.trl, write({"chosen": sides[0], "rejected": sides[1]}))
        assert not rows
        assert report.dropped == {"no_common_prompt": 1}

    def test_explicit_formats(self, write):
        path = write(
            {"prompt": "p", "chosen": " a", "rejected": " b", "margin": 1.0},
            {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            {"prompt": "q", "chosen": [user("q"), assistant("a")],
             "rejected": [user("q"), assistant("b")]},
            {"chosen": [user("r"), assistant("a")], "rejected": [user("r"), assistant("b")]},
            {"chosen": [user("s"), assistant("a")], "rejected": [user("t"), assistant("b")]},
        )  # fmt: skip
        rows, report = read(sources.trl, path)
        assert [row.prompt for row in rows] == [
            "p",
            *((Message("user", name),) for name in "pqr"),
        ]
        assert rows[0].responses == (" a", " b")
        assert all(row.responses == ("a", "b") for row in rows[1:])
        assert report.dropped == {"context_mismatch": 1}
        assert report.warned == {"ignored_margin": 1}

    def test_unpaired_supervised_and_messages(self, write):
        path = write(
            {"prompt": "p", "completion": "a", "label": True},
            {"prompt": [user("p")], "completion": [assistant("a")], "label": False},
            {"messages": [user("q"), assistant("b")], "label": True},
        )
        rows, _ = read(sources.trl, path)
        assert [row.desirable for row in rows] == [(True,), (False,), (True,)]
        assert rows[2].prompt == (Message("user", "q"),)
        path = write({"prompt": "p", "completion": "a"}, {"messages": [user("q"), assistant("b")]})
        rows, _ = read(sources.trl, path)
        assert [(row.responses, row.desirable) for row in rows] == [(("a",), ()), (("b",), ())]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"prompt": "p", "chosen": "a", "rejected": "b", "ref_chosen_logps": -1.0},
             "column 'ref_chosen_logps' is not supported"),
            ({"prompt": "p", "chosen": "a", "rejected": "b", "tools": [1]}, "field 'tools'"),
            ({"prompt": "p", "chosen": "a", "rejected": None}, "'rejected' is missing or null"),
            ({"prompt": "p", "chosen": "a"}, "field 'rejected' is missing"),
            ({"prompt": "p", "chosen": True, "rejected": True}, "'chosen': wanted text, found"),
            ({"chosen": [{"role": "usr", "content": "x"}], "rejected": []},
             r"'chosen\[0\].role': wanted one of .*, found 'usr'.*did you mean 'user'"),
            ({"chosen": [{"role": "user"}], "rejected": []}, r"'chosen\[0\]' has no 'content'"),
        ],
    )  # fmt: skip
    def test_bad_rows_stop_with_file_line_and_field(self, write, row, message):
        with pytest.raises(DataError, match=rf"d\.jsonl:1: .*{message}"):
            read(sources.trl, write(row))

    def test_real_kto_file(self, data_dir):
        path = str(data_dir / "llamafactory_demos" / "kto_en_demo.json")
        _, report = read(sources.trl, path)
        assert report.labels == {"desirable": 150, "undesirable": 150}


class TestLists:
    def test_scores_ranks_and_nulls(self, write):
        path = write(
            {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, None, 0.5]},
            {"prompt": "q", "responses": ["a", "b"], "scores": [None, None]},
        )
        (row,), report = read(sources.lists, path)
        assert (row.responses, row.scores) == (("a", "c"), ((1.0,), (0.5,)))
        assert row.objectives == ("scores",)
        assert report.warned == {"removed_null_scores": 1}
        assert report.dropped == {"no_scores": 1}

        path = write({"q": "p", "completions": ["a", "b"], "ranks": [1, 2], "kind": "k"})
        (row,), _ = read(
            sources.lists, path, prompt="q", responses="completions", scores="ranks",
            larger_is_better=False, chat=True, domain="kind",
        )  # fmt: skip
        assert row.scores == ((-1.0,), (-2.0,))
        assert (row.prompt, row.domain) == ((Message("user", "p"),), "k")

    def test_several_objectives(self, write):
        path = write(
            {"prompt": "p", "responses": ["a", "b"], "scores": [{"x": 1, "y": 2}, {"y": 4, "x": 3}]}
        )
        (row,), _ = read(sources.lists, path)
        assert (row.objectives, row.scores) == (("x", "y"), ((1.0, 2.0), (3.0, 4.0)))
        (row,), _ = read(sources.lists, path, objectives=("y",))
        assert row.scores == ((2.0,), (4.0,))
        with pytest.raises(DataError, match=r"'scores\[0\]' has no objective 'yy'.*mean 'y'"):
            read(sources.lists, path, objectives=("yy",))

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ([1], r"'scores' has 1 entries for 2 responses"),
            (["1", "2"], r"'scores\[0\]': wanted a number, found text"),
            ([True, 2], r"'scores\[0\]': wanted a number, found bool"),
            ([10**400, 2], r"'scores\[0\]' is too large"),
            ([1, float("nan")], "wanted a finite number, .* found nan"),
            ({"a": 1}, "'scores': wanted a list, found object"),
        ],
    )
    def test_bad_scores(self, write, scores, message):
        with pytest.raises(DataError, match=message):
            read(sources.lists, write({"prompt": "p", "responses": ["a", "b"], "scores": scores}))

    def test_shuffled_order_is_by_row_and_keeps_scores_with_responses(self, write):
        texts = [f"r{i}" for i in range(8)]
        path = write(
            *({"prompt": f"p{i}", "responses": texts, "scores": list(range(8))} for i in range(20))
        )
        rows, _ = read(sources.lists, path, order_seed=0)
        assert rows == read(sources.lists, path, order_seed=0)[0]
        assert len({row.responses for row in rows}) > 15
        assert all(
            f"r{int(s)}" == t for r in rows for t, (s,) in zip(r.responses, r.scores, strict=True)
        )
        assert rows != read(sources.lists, path, order_seed=1)[0]

    def test_real_best_of_16_file(self, data_dir):
        path = str(data_dir / "alpacaeval_bon16_tulu2" / "bon16.jsonl.gz")
        keywords = dict(scores="judge_preference", domain="dataset", chat=True)
        rows, report = read(sources.lists, path, order_seed=0, **keywords)
        assert report.rows_in == 648
        assert report.dropped == {"identical_pair": 5}  # all sixteen responses are the same
        assert report.warned == {"removed_null_scores": 648, "removed_repeated_responses": 21}
        assert {row.domain for row in rows} == {"helpful_base", "oasst", "selfinstruct", "vicuna"}

        def length_of_place(rows, place):
            return sum(len(row.responses[place]) for row in rows if len(row.responses) == 11)

        ordered, _ = read(sources.lists, path, **keywords)
        assert length_of_place(ordered, 10) > 1.25 * length_of_place(ordered, 0)
        assert length_of_place(rows, 10) < 1.25 * length_of_place(rows, 0)


def test_pku(write):
    row = {"prompt": "p", "response_0": "a", "response_1": "b",
           "better_response_id": 0, "safer_response_id": 1}  # fmt: skip
    assert read(sources.pku, write(row))[0][0].responses == ("a", "b")
    safer = read(sources.pku, write(row), preference="safer", chat=False)[0][0]
    assert (safer.prompt, safer.responses) == ("p", ("b", "a"))
    with pytest.raises(DataError, match="'better_response_id': wanted 0 or 1, found 2"):
        read(sources.pku, write({**row, "better_response_id": 2}))
    with pytest.raises(DataError, match="preference: wanted 'better' or 'safer', found 'best'"):
        read(sources.pku, write(row), preference="best")


def test_persona_real_files(data_dir):
    folder = data_dir / "model_written_evals_persona"
    rows, report = read(sources.persona, str(folder / "risk-*.jsonl.gz"))
    assert report.rows_in == len(rows) == 2000
    assert {row.domain for row in rows} == {"risk-averse", "risk-seeking"}
    assert {row.responses for row in rows} == {(" Yes", " No"), (" No", " Yes")}


def test_unpaired_real_file(data_dir):
    path = str(data_dir / "halueval_general" / "general_data.jsonl.gz")
    keywords = dict(prompt="user_query", response="chatgpt_response", label="hallucination")
    rows, report = read(
        sources.unpaired, path, desirable="no", undesirable="yes", chat=True, **keywords
    )
    assert len(rows) == 4507
    assert report.labels == {"desirable": 3692, "undesirable": 815}
    assert "4.5 to 1" in report.render()
    with pytest.raises(
        DataError, match=r"'hallucination': wanted True \(desirable\) .*, found 'no'"
    ):
        read(sources.unpaired, path, **keywords)


def test_unpaired_labels_may_be_numbers(write):
    rows = [{"prompt": "p", "completion": str(i), "label": i} for i in (0, 1)]
    found, _ = read(sources.unpaired, write(*rows))
    assert [row.desirable for row in found] == [(False,), (True,)]
    with pytest.raises(DataError, match=r"'label': wanted True .*, found '1'"):
        read(sources.unpaired, write({**rows[0], "label": "1"}))
    found, _ = read(sources.unpaired, write(*rows), desirable=1, undesirable=0)
    assert [row.desirable for row in found] == [(False,), (True,)]


@pytest.mark.parametrize(("language", "kept", "doubled"), [("en", 294, 5), ("zh", 289, 11)])
def test_sharegpt_real_files(data_dir, language, kept, doubled):
    path = str(data_dir / "llamafactory_demos" / f"dpo_{language}_demo.json")
    rows, report = read(sources.sharegpt, path)
    assert len(rows) == kept
    assert report.dropped == {"duplicate": doubled}
    assert all(row.prompt[-1].role == "user" for row in rows)
    assert any(row.prompt[0].role == "system" for row in rows)


def test_sharegpt_needs_assistants_on_both_sides(write):
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "human", "value": "b"},
    }
    _, report = read(sources.sharegpt, write(row))
    assert report.dropped == {"no_assistant_turn": 1}


class TestRated:
    def test_rows_of_one_prompt_become_a_list(self, write):
        path = write(
            {"source": "a", "said": "x", "scores": {"good": 1, "short": 2.5, "other": 0}},
            {"source": "b", "said": "x", "scores": {"good": 0, "short": 1, "other": 0}},
            {"source": "a", "said": "y", "scores": {"good": 3, "short": 1, "other": 0}},
            {"source": "a", "said": "z", "scores": {"good": None, "short": 1, "other": 0}},
            {"source": "b", "said": "y", "scores": {"good": 0, "short": 2, "other": 0}},
            {"source": "c", "said": "y", "scores": {"good": None, "short": 2, "other": 0}},
        )
        names = dict(prompt="source", response="said", before="Say: ", after="\n")
        (a, b), report = read(sources.rated, path, objectives=("short", "good"), **names)
        assert (a.id, a.prompt, a.responses) == ("d.jsonl:1", "Say: a\n", ("x", "y"))
        assert a.scores == ((2.5, 1.0), (1.0, 3.0))
        assert b.scores == ((1.0, 0.0), (2.0, 0.0))
        assert a.objectives == ("short", "good")
        assert report.rows_in == 3
        assert report.warned == {"removed_null_scores": 1}
        assert report.dropped == {"no_scores": 1}

    def test_an_objective_that_is_missing_is_named(self, write):
        path = write({"prompt": "a", "response": "x", "scores": {"good": 1}})
        with pytest.raises(DataError, match=r"has no objective 'god' \(did you mean 'good'\?\)"):
            read(sources.rated, path, objectives=("god",))

    def test_the_restaurants_of_unieval(self, data_dir):
        path = str(data_dir / "unieval_multidim" / "sfres.json")
        names = dict(prompt="source", response="system_output")
        rows, report = read(sources.rated, path, **names)
        assert report.rows_in == 580
        assert rows[0].objectives == ("informativeness", "naturalness", "overall")
        assert sum(len(row.responses) for row in rows) + sum(report.dropped.values()) > 1000
