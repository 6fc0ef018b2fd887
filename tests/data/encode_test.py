"""Records as token rows, and these on disk: content, truncation, damage, dropped rows."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re

import numpy as np
import pytest

from alignjax.data import sources, store
from alignjax.data.encode import Reading, encode, encode_all, enforce
from alignjax.data.records import DataError, DataReport, Message, Record, check
from alignjax.data.tokenizer import load, training
from alignjax.errors import UserError


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("sp") / "t.model")
    texts = [f"number {i} is a fine number, he said\n" for i in range(100)]
    training.train_sentencepiece(texts, vocab_size=400, path=path)
    return load.load(path)


def pairs(count: int) -> list[Record]:
    return [
        Record(
            id=f"r{i}",
            prompt=f"number {i}:",
            responses=(f" {i} is fine", " he said" * (1 + i % 3)),
            domain=f"d{i % 2}",
        )
        for i in range(count)
    ]


def make(rows, tok, folder, *, prompt=64, response=64, report=None):
    """The rows as a dataset, from the disk."""
    report = report or DataReport(rows_in=len(rows))
    limits = dict(max_prompt_tokens=prompt, max_response_tokens=response)
    path = folder / f"rows-{len(list(folder.iterdir()))}"
    store.write(encode(rows, tok, report=report, **limits), path, report)
    return store.open_dataset(path)


def test_rows_come_back_in_order_with_ids_and_text(tok, tmp_path):
    rows = pairs(20)
    report = DataReport(rows_in=20)
    dataset = make(rows, tok, tmp_path, report=report)
    assert len(dataset) == report.kept == 20
    assert not report.unaccounted
    assert not report.warned
    assert dataset.objectives == ()
    assert dataset.response_length.dtype == dataset.prompt_length.dtype == np.int32
    for i, row in enumerate(rows):
        example = dataset[i]
        assert (example.id, example.domain) == (row.id, row.domain)
        assert (example.prompt, example.responses) == (row.prompt, row.responses)
        assert example.scores is None
        assert example.desirable is None
        encoded = tok.encode(row.prompt, row.responses)
        np.testing.assert_array_equal(example.prompt_ids, encoded.prompt_ids)
        assert dataset.prompt_length[i] == len(encoded.prompt_ids)
        for k, ids in enumerate(encoded.response_ids):
            np.testing.assert_array_equal(example.response_ids[k], ids)
            assert example.response_ids[k].dtype == np.int32
            assert dataset.response_length[i, k] == len(ids)
    for index in (-1, 20):
        with pytest.raises(IndexError):
            dataset[index]


def test_lists_labels_and_dialogues(tok, tmp_path):
    lists = [
        Record(
            id=str(k),
            prompt=(Message("user", "number"),),
            responses=tuple(f"he{i}" for i in range(k)),
            scores=tuple((float(i), 0.1) for i in range(k)),
            objectives=("good", "short"),
        )
        for k in (2, 4, 3)
    ]
    dataset = make(lists, tok, tmp_path)
    assert dataset.objectives == ("good", "short")
    assert dataset.response_length.shape == (3, 4)
    assert (dataset.response_length > 0).sum(axis=1).tolist() == [2, 4, 3]
    example = dataset[1]
    assert example.prompt == "User: number\nAssistant:"
    assert example.scores.dtype == np.float32
    np.testing.assert_array_equal(example.scores, np.float32([[i, 0.1] for i in range(4)]))
    # Squared deviations within the lists: 0.5, 5 and 2, of 1 + 3 + 2 degrees of freedom.
    np.testing.assert_allclose(dataset.score_sd, [np.sqrt(7.5 / 6), 0.0], rtol=1e-12)

    labels = [
        Record(id=str(i), prompt="number", responses=(f" {i}",), desirable=(i > 0,)) for i in (0, 1)
    ]
    dataset = make(labels, tok, tmp_path)
    assert [dataset[i].desirable.tolist() for i in (0, 1)] == [[False], [True]]
    assert dataset[0].desirable.dtype == bool
    assert dataset.score_sd == ()

    with pytest.raises(DataError, match="0: is of another kind than the rows before it"):
        make([*pairs(1), labels[0]], tok, tmp_path)


def test_truncation_keeps_the_prompts_end_and_the_responses_start(tok, tmp_path):
    rows = [Record(id="a", prompt="number 1, " * 9 + "he said:", responses=(" is " * 9, " fine"))]
    report = DataReport(rows_in=1)
    example = make(rows, tok, tmp_path, prompt=6, response=4, report=report)[0]
    whole = tok.encode(rows[0].prompt, rows[0].responses)
    assert example.prompt_ids.tolist() == [tok.bos_id, *whole.prompt_ids[-5:]]
    np.testing.assert_array_equal(example.response_ids[0], whole.response_ids[0][:4])
    assert tok.eos_id not in example.response_ids[0]
    assert example.response_ids[1][-1] == tok.eos_id
    assert report.warned == {"truncated_prompt": 1, "truncated_response": 1}


def test_a_reward_model_from_elsewhere_reads_to_its_last_token_and_to_its_length(tok):
    """All that the template writes, to the last token that is not padding; cuts are counted."""
    chatml = (
        "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>' }}{{ '\\n\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
    )
    chat = dataclasses.replace(tok, chat_template=chatml)
    end, after = tok.specials["</s>"], tok.encode_text("\n\n", False)
    turns = (Message("user", "number 12 is a fine number"),)
    record = Record(id="a", prompt=turns, responses=("he said number 7", "fine"))
    limits = dict(max_prompt_tokens=64, max_response_tokens=64)

    def read(reading, **changes):
        report = DataReport()
        (row,) = encode_all([record], chat, report=report, reading=reading, **{**limits, **changes})
        return row, report

    ours, _ = read(None)
    whole, report = read(Reading(longest=64, padding=None))
    assert not report.warned
    assert whole.prompt_ids.tolist() == ours.prompt_ids.tolist()
    for one, other in zip(whole.response_ids, ours.response_ids, strict=True):
        assert one.tolist() == [*other.tolist(), *after]
        assert other[-1] == end
    padded, _ = read(Reading(longest=64, padding=after[-1]))
    assert padded.response_ids[1].tolist() == ours.response_ids[1].tolist()
    longest = max(map(len, whole.response_ids))
    short, report = read(Reading(longest=longest + 3, padding=None))
    assert len(short.prompt_ids) == 3
    assert report.warned == {"truncated_prompt": 1}
    _, report = read(Reading(longest=64, padding=None), max_response_tokens=longest - 1)
    assert report.warned == {"truncated_response": 1}


def test_what_truncation_makes_identical_is_dropped(tok, tmp_path):
    same = " he said" * 8
    rows = [
        *pairs(1),
        Record(id="cut", prompt="number", responses=(same + " fine", same + " 1")),
    ]
    report = DataReport(rows_in=2)
    dataset = make(rows, tok, tmp_path, response=6, report=report)
    assert [dataset[i].id for i in range(len(dataset))] == ["r0"]
    assert report.dropped == {"identical_after_truncation": 1}
    assert report.ids["identical_after_truncation"] == ["cut"]

    scores = dict(scores=((1.0,), (2.0,), (3.0,)), objectives=("q",))
    rows = [Record(id="l", prompt="p", responses=(same + "a", same + "b", " x"), **scores)]
    report = DataReport(rows_in=1)
    example = make(rows, tok, tmp_path, response=6, report=report)[0]
    assert example.responses == (same + "a", " x")
    assert example.scores.tolist() == [[1.0], [3.0]]
    assert report.warned["removed_identical_after_truncation"] == 1
    draws = [dataclasses.replace(row, repeats=True) for row in rows]
    draws += [dataclasses.replace(draws[0], id="m", responses=(same + "a", same + "b", same + "c"))]
    report = DataReport(rows_in=2)
    dataset = make(draws, tok, tmp_path, response=6, report=report)
    assert [dataset[i].responses for i in range(len(dataset))] == [rows[0].responses]
    assert "removed_identical_after_truncation" not in report.warned
    assert report.dropped == {"identical_after_truncation": 1}


def test_truncation_of_the_real_file_is_accounted_for(tok, tmp_path, data_dir):
    path = str(data_dir / "hh_harmless_base_test" / "test.jsonl.gz")
    report = DataReport()
    rows = check(sources.hh(report, path=path), report)
    dataset = make(rows, tok, tmp_path, prompt=64, response=4, report=report)
    assert report.rows_in == 2312
    assert report.dropped["identical_after_truncation"] > 50
    assert not report.unaccounted
    assert dataset.response_length.min() >= 1
    assert dataset.response_length.max() == 4
    assert dataset.prompt_length.max() == 64
    with pytest.raises(DataError, match=r"of 2312 rows dropped .* identical_after_truncation \d+"):
        enforce(report, max_drop_fraction=0.01)


def test_special_and_lossy_text_is_noted(tok, tmp_path):
    rows = [
        Record(id="a", prompt="number</s>", responses=(" 1", " 2")),
        Record(id="b", prompt="number", responses=(" 1", " 2")),
    ]
    report = DataReport(rows_in=2)
    make(rows, tok, tmp_path, report=report)
    assert report.ids == {"special_token_text": ["a"]}

    deaf = dataclasses.replace(tok, decode_ids=lambda ids: "", digest="deaf")
    report = DataReport(rows_in=2)
    make(rows, deaf, tmp_path, report=report)
    assert report.warned["lossy_encoding"] == 2


def test_content_digest_sees_ids_scores_and_order(tok, tmp_path):
    rows = pairs(3)
    digests = {
        make(variant, tok, tmp_path).digest
        for name, variant in {
            "same": rows,
            "order": rows[::-1],
            "swap": [Record(id="r0", prompt="number 0:", responses=rows[0].responses[::-1])],
            "one": rows[:1],
        }.items()
    }
    assert len(digests) == 4


def test_errors_in_records_pass_through_unchanged(tok, tmp_path):
    def broken():
        yield from pairs(2)
        raise DataError("data.jsonl:3: field 'x': wanted text, found bool")

    with pytest.raises(DataError, match=r"^data\.jsonl:3: field 'x': wanted text, found bool$"):
        make(broken(), tok, tmp_path, report=DataReport())


def test_dialogues_that_a_template_refuses_are_dropped(tok, tmp_path, caplog):
    template = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('why') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    refusing = dataclasses.replace(tok, chat_template=template, digest="refusing")
    rows = [
        Record(id=x, prompt=(Message("user", x),), responses=("y",), origin=f"f.jsonl:{i}")
        for i, x in enumerate(("yes", "no"), 1)
    ]
    report = DataReport(rows_in=2)
    dataset = make(rows, refusing, tmp_path, report=report)
    assert (len(dataset), report.dropped) == (1, {"template_refused": 1})
    assert report.ids["template_refused"] == ["no"]
    assert re.search(r"f\.jsonl:2: .* chat template refuses the dialogue: why", caplog.text)


def test_templates_see_tools_calls_and_reasoning_or_the_row_says_so(tok, tmp_path):
    tools = Message("tools", '[{"function": {"name": "f"}}]')
    call = '{"content": null, "tool_calls": [{"function": {"name": "f"}}]}'
    rows = [
        Record(id="tools", prompt=(tools, Message("user", "1")), responses=("2",)),
        Record(id="call", prompt=(Message("user", "3"),), responses=("f",), more=(call,)),
        Record(
            id="thought",
            prompt=(Message("user", "5"),),
            responses=("6",),
            more=('{"reasoning_content": "he said"}',),
        ),
    ]
    report = DataReport(rows_in=3)
    dataset = make(rows, tok, tmp_path, report=report)  # the plain template
    assert [dataset[i].id for i in range(len(dataset))] == ["thought"]
    assert report.dropped == {"template_without_tools": 1, "template_without_tool_calls": 1}
    assert report.warned == {"ignored_reasoning": 1}

    template = (
        "{% if tools %}{{ tools[0].function.name }}:{% endif %}{% for m in messages %}"
        "{% if m.reasoning %}({{ m.reasoning }}){% endif %}{{ 'CALL' if m.tool_calls }}"
        "{{ 'none' if m.content is none else m.content }};{% endfor %}"
    )
    reads = dataclasses.replace(tok, chat_template=template, digest="reads")
    report = DataReport(rows_in=3)
    (tmp_path / "read").mkdir()
    dataset = make(rows, reads, tmp_path / "read", report=report)
    assert (report.dropped, report.warned) == ({}, {})
    said = [
        dataset[i].prompt + reads.decode(dataset[i].response_ids[0]) for i in range(len(dataset))
    ]
    assert said == ["f:1;2;", "3;CALLnone;", "5;(he said)6;"]


def test_no_rows_left_is_an_error_with_the_data_report(tok, tmp_path):
    report = DataReport(rows_in=1)
    report.drop("empty_response", "f:1")
    with pytest.raises(DataError, match=r"all 1 rows were dropped: empty_response 1 \(f:1\)"):
        make([], tok, tmp_path, report=report)


@pytest.mark.parametrize("limits", [dict(prompt=1), dict(response=0)])
def test_limits_must_leave_room(tok, tmp_path, limits):
    with pytest.raises(UserError, match=r"wanted max_prompt_tokens >= 2"):
        make(pairs(1), tok, tmp_path, **limits)


@pytest.mark.parametrize("name", ["meta.json", "prompt_length.npy", "response_length.npy"])
def test_damage_is_found_when_opening(tok, tmp_path, name):
    dataset = make(pairs(3), tok, tmp_path)
    file = os.path.join(dataset.path, name)
    with open(file, "r+b") as opened:
        opened.truncate(os.path.getsize(file) // 2)
    with pytest.raises(DataError, match=r"damaged prepared data .* delete the folder"):
        store.open_dataset(dataset.path)
    os.unlink(file)
    with pytest.raises(DataError, match="damaged prepared data"):
        store.open_dataset(dataset.path)


def test_a_flipped_byte_in_the_rows_never_gives_other_numbers(tok, tmp_path):
    dataset = make(pairs(100), tok, tmp_path)
    wanted = [dataset[i].prompt_ids.tolist() for i in range(100)]
    (file,) = tmp_path.glob("*/rows/*.array_record*")
    content = file.read_bytes()
    detected = 0
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # most of a small file is padding
    for place in used[:: len(used) // 12]:
        broken = bytearray(content)
        broken[place] ^= 0x10
        file.write_bytes(broken)
        found = []
        try:
            opened = store.open_dataset(dataset.path)
            found.extend(opened[i].prompt_ids.tolist() for i in range(100))
        except DataError as error:
            assert "damaged prepared data" in str(error)  # noqa: PT017 (padding is not detected)
            detected += 1
        else:
            assert found == wanted
    assert detected >= 3


def test_the_same_rows_are_the_same_bytes(tok, tmp_path):
    first, second = (pathlib.Path(make(pairs(20), tok, tmp_path).path) for _ in range(2))
    first, second = (
        {str(x.relative_to(top)): x.read_bytes() for x in top.rglob("*") if x.is_file()}
        for top in (first, second)
    )
    assert first == second
    assert any("array_record" in name for name in first)


def test_threads_read_the_same_rows(tok, tmp_path):
    dataset = make(pairs(50), tok, tmp_path)
    wanted = [int(i) for i in np.random.default_rng(0).integers(0, 50, 400)]
    fresh = store.open_dataset(dataset.path)  # no reader is open yet when the threads start
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh.__getitem__, wanted))
    assert [example.id for example in found] == [f"r{i}" for i in wanted]
    assert all(
        len(e.prompt_ids) == dataset.prompt_length[i] for e, i in zip(found, wanted, strict=True)
    )


def test_enforce():
    report = DataReport(rows_in=100, kept=94, held_out=2)
    for i in range(4):
        report.drop("empty_response", f"f:{i}")
    enforce(report, max_drop_fraction=0.04)
    message = (
        r"4 of 100 rows dropped \(4.0%\), more than data.max_drop_fraction = 0.03 allows: "
        r"empty_response 4 \(f:0, f:1, f:2, \.\.\.\)"
    )
    with pytest.raises(DataError, match=message):
        enforce(report, max_drop_fraction=0.03)
    report.kept -= 1
    with pytest.raises(DataError, match="1 of 100 rows were neither kept, held out nor dropped"):
        enforce(report, max_drop_fraction=1.0)
