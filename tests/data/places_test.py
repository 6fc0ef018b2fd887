"""Files that are no JSON, folders with splits, and ids of the Hub."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from alignjax.data import places, sources
from alignjax.data.files import read_rows
from alignjax.data.records import DataError, DataReport, check

ROWS = [
    {"prompt": f"p{i}", "chosen": [{"role": "assistant", "content": "é\n"}], "rejected": f"b{i}"}
    for i in range(3)
]


def written(folder, name, rows=ROWS):
    """A file of the kind that its name says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pa.Table.from_pylist([{k: json.dumps(v) for k, v in row.items()} for row in rows])
    if rows is ROWS:
        table = pa.Table.from_pylist(rows)
    if name.endswith(".zst"):
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
            file.write(lines)
    elif name.endswith(".parquet"):
        parquet.write_table(table, path, row_group_size=2)
    elif name.endswith("indexed.arrow"):
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    elif name.endswith(".arrow"):
        with pa.ipc.new_stream(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    else:
        path.write_bytes(lines)
    return str(path)


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.jsonl.zst", "d.json.zst", "d.parquet", "d.arrow", "indexed.arrow"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    found = list(read_rows(written(tmp_path, name)))
    assert [row.fields for row in found] == ROWS
    assert [row.id for row in found] == [f"{name}:{i}" for i in (1, 2, 3)]
    assert {row.stem for row in found} == {name.split(".")[0]}


@pytest.mark.parametrize(("name", "comma"), [("d.csv", ","), ("d.tsv", "\t")])
def test_tables_of_text(tmp_path, name, comma):
    path = tmp_path / name
    cells = [["prompt", "response", "score"], ["p", '"say ""é"",\nthen"', "1.5"], ["p", "b", "N/A"],
             ["p", "c", "2"]]  # fmt: skip
    path.write_text("﻿" + "\r\n".join(comma.join(x) for x in cells), encoding="utf-8")
    assert [row.origin for row in read_rows(str(path))] == [f"{path}:{i}" for i in (2, 4, 5)]
    report = DataReport()
    (record,) = check(sources.auto(report, path=str(path)), report)
    assert (record.prompt, record.scores) == ("p", ((1.5,), (2.0,)))
    assert record.responses == ('say "é",\nthen', "c")
    assert report.dropped == {"no_scores": 1}
    path.write_text(f"prompt{comma}response\np{comma}a{comma}b\n")
    with pytest.raises(DataError, match=rf"{name}:2: wanted 2 cells as in line 1, found 3"):
        list(read_rows(str(path)))
    path.write_text(f'prompt{comma}response\np{comma}"a\n')
    with pytest.raises(DataError, match=rf"{name}:2: not valid CSV"):
        list(read_rows(str(path)))


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.jsonl.zst"])
def test_damaged_files_are_refused_in_one_line(tmp_path, name):
    path = written(tmp_path, name)
    with open(path, "r+b") as file:
        file.truncate(40)
    with pytest.raises(DataError, match=rf"{name}: cannot be read") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


def test_tables_do_not_add_arguments(tmp_path):
    """Parquet gives all objects of a column the same fields; a call has those of its own."""
    calls = [{"function": {"name": "f", "arguments": x}} for x in ({"a": 1}, {"b": {"c": [2]}})]
    rows = [{"messages": [{"role": "user", "content": "Hi", "tool_calls": None},
                          {"role": "assistant", "content": None, "tool_calls": [call]}]}
            for call in calls]  # fmt: skip
    path = str(tmp_path / "d.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), path)
    records = list(sources.auto(DataReport(), path=path))
    found = [json.loads(record.responses[0])["arguments"] for record in records]
    assert found == [{"a": 1}, {"b": {"c": [2]}}]


def prompts(path, split=""):
    return [row.fields["prompt"] for row in read_rows(places.resolve(str(path), split))]


def test_folders_that_datasets_saved(tmp_path):
    for split in ("train", "test"):
        written(tmp_path, f"both/{split}/data-00000-of-00002.arrow", ROWS[:2])
        written(tmp_path, f"both/{split}/data-00001-of-00002.arrow", ROWS[2:])
        written(tmp_path, f"both/{split}/cache-0123.arrow")
        (tmp_path / "both" / split / "state.json").write_text("{}")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    names = [json.dumps(f"p{i}") for i in range(3)]
    assert prompts(tmp_path / "both" / "train") == names
    assert prompts(tmp_path / "both", "test") == names
    with pytest.raises(DataError, match=r"data\.split: .* has train, test; choose one: --set"):
        prompts(tmp_path / "both")
    with pytest.raises(DataError, match=r"found 'tran' \(did you mean 'train'\?\)"):
        prompts(tmp_path / "both", "tran")


def test_folders_of_files(tmp_path):
    written(tmp_path, "set/data/train-00000-of-00002.parquet")
    written(tmp_path, "set/data/train-00001-of-00002-0123456789abcdef.parquet")
    written(tmp_path, "set/data/test_prefs-00000-of-00001.parquet")
    (tmp_path / "set" / "README.md").write_text("A set.")
    assert prompts(tmp_path / "set", "train") == ["p0", "p1", "p2"] * 2
    assert prompts(tmp_path / "set", "test_prefs") == ["p0", "p1", "p2"]
    written(tmp_path, "one/validation/0000.parquet")
    assert prompts(tmp_path / "one") == prompts(tmp_path / "one", "validation")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: holds no data files"):
        prompts(tmp_path / "none")
    with pytest.raises(DataError, match="is a file and has no splits"):
        places.resolve(written(tmp_path, "d.jsonl"), "train")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data\.path: no file or folder no/set, and .*Hub") as e:
        places.resolve("no/set", "")
    assert "hf download no/set --repo-type dataset" in str(e.value)
    assert "\n" not in str(e.value)
