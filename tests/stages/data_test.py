"""From records to bucketed rows: splits, tokenizers, reports."""

import dataclasses
import json
from functools import partial

import pytest

from alignjax.data import kept, sources
from alignjax.data.records import DataError, DataReport, Message, Record
from alignjax.errors import UserError
from alignjax.stages import data as prepared
from alignjax.world import sources as world
from tests import runs


def config(tmp_path, rows, eval_rows=None, **changes):
    base = runs.get_config()
    paths = {}
    for name, some in (("path", rows), ("eval_path", eval_rows)):
        if some is not None:
            file = tmp_path / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in some))
            paths[name] = str(file)
    data = dataclasses.replace(
        base.data, source=sources.trl, **{"max_drop_fraction": 0.5, **changes}, **paths
    )
    return dataclasses.replace(base, data=data)


def pair(i, **changes):
    row = {"prompt": f"Question {i}?", "chosen": f" Yes, {i}.", "rejected": f" No, not {i}."}
    return {**row, **changes}


def texts(bucketed):
    return {bucketed.dataset[i].prompt for i in range(len(bucketed.dataset))}


def test_the_split_is_by_prompt_and_every_row_is_accounted_for(tmp_path):
    rows = [pair(i // 2, chosen=f" Yes, {i}.") for i in range(80)]
    data = prepared.prepare_data(config(tmp_path, rows, eval_fraction=0.25), tmp_path)
    assert not texts(data.train) & texts(data.held_out)
    train, held_out = data.report["train"], data.report["held_out"]
    assert train["rows_in"] == 80
    assert train["kept"] == len(data.train.dataset)
    assert train["held_out"] == held_out["rows_in"] == held_out["kept"]
    assert train["kept"] + train["held_out"] == 80
    assert 8 <= held_out["kept"] <= 32
    assert json.loads((tmp_path / "data_report.json").read_text()) == data.report


def test_rows_given_as_held_out_are_all_of_them(tmp_path):
    made = config(tmp_path, [pair(i) for i in range(30)], [pair(i) for i in range(30, 36)])
    data = prepared.prepare_data(made, tmp_path)
    assert len(data.train.dataset) == 30
    assert texts(data.held_out) == {f"Question {i}?" for i in range(30, 36)}
    assert data.report["train"]["held_out"] == 0


def test_prompts_on_both_sides_are_refused(tmp_path, monkeypatch):
    made = config(tmp_path, [pair(i) for i in range(30)], [pair(i, chosen=" x") for i in (3, 40)])
    with pytest.raises(DataError, match=r"held-out|both|also") as caught:
        prepared.prepare_data(made, tmp_path)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(prepared, "check_no_overlap", lambda *a: None)
    data = prepared.prepare_data(made, tmp_path)
    assert texts(data.train) & texts(data.held_out)  # what the guard keeps out


def test_dropped_rows_are_counted_and_too_many_refused(tmp_path, monkeypatch):
    rows = [pair(i) for i in range(30)] + [pair(i, chosen="") for i in range(100, 110)]
    made = config(tmp_path, rows, max_drop_fraction=0.2)
    with pytest.raises(DataError, match=r"10 of 40 rows dropped \(25\.0%\).*empty_response 10"):
        prepared.prepare_data(made, tmp_path)
    monkeypatch.setattr(prepared, "enforce", lambda *a, **k: None)
    data = prepared.prepare_data(made, tmp_path)
    assert data.report["train"]["dropped"] == {"empty_response": 10}


def test_nothing_held_out_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"eval_fraction|held|out"):
        prepared.prepare_data(config(tmp_path, [pair(0)], eval_fraction=0.01), tmp_path)


def test_a_tokenizer_is_trained_once_on_the_training_rows(tmp_path):
    first = prepared.prepare_data(runs.get_config(), tmp_path)
    written = (tmp_path / "tokenizer.model").read_bytes()
    again = prepared.prepare_data(runs.get_config(), tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == written
    assert first.tokenizer.digest == again.tokenizer.digest
    assert first.train.dataset.digest == again.train.dataset.digest


def test_a_tokenizer_of_ones_own_is_used_as_it_is(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = prepared.prepare_data(runs.get_config(), tmp_path / "one")
    path = tmp_path / "one" / "tokenizer.model"
    other = runs.changed(f"tokenizer.path={path}", "data.source.seed=1")
    second = prepared.prepare_data(other, tmp_path / "two")
    assert second.tokenizer.digest == first.tokenizer.digest
    assert second.train.dataset.digest != first.train.dataset.digest
    assert not (tmp_path / "two" / "tokenizer.model").exists()


def test_more_ids_than_the_model_embeds_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.vocab_size: .* has 320 ids, the model embeds 319"):
        prepared.prepare_data(runs.changed("model.vocab_size=319"), tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        *("data.source.size=201", "data.source.seed=1", "data.max_prompt_tokens=31"),
        *("data.max_response_tokens=47", "train.seed=1", "data.eval_fraction=0.2"),
    ],
)
def test_what_changes_the_rows_changes_their_digest(override, tmp_path):
    digest = prepared.prepare_data(runs.get_config(), tmp_path).train.dataset.digest
    assert prepared.prepare_data(runs.changed(override), tmp_path).train.dataset.digest != digest


def test_a_changed_file_changes_the_digest(tmp_path):
    made = config(tmp_path, [pair(i) for i in range(30)])
    digest = prepared.prepare_data(made, tmp_path).train.dataset.digest
    rows = [pair(i) for i in range(29)] + [pair(29, chosen=" Perhaps.")]
    again = config(tmp_path, rows)
    assert prepared.prepare_data(again, tmp_path).train.dataset.digest != digest


def test_the_cache_may_lie_elsewhere(tmp_path):
    made = runs.changed(f"data.cache_dir={tmp_path / 'shared'}")
    (tmp_path / "w").mkdir()
    prepared.prepare_data(made, tmp_path / "w")
    assert any((tmp_path / "shared").iterdir())
    assert not (tmp_path / "w" / "cache").exists()


def test_lists_keep_their_scores(tmp_path):
    base = runs.get_config()
    source = partial(world.lists, size=60, seed=0, responses=4)
    data = dataclasses.replace(base.data, source=source)
    found = prepared.prepare_data(dataclasses.replace(base, data=data), tmp_path)
    assert found.train.dataset.response_length.shape[1] == 4
    assert found.train.dataset.objectives == ("true_score",)
    for i in range(5):
        example = found.train.dataset[i]
        assert example.scores.shape == (len(example.response_ids), 1)


def test_rows_are_prepared_once_and_their_report_is_restored(tmp_path):
    made = config(tmp_path, [pair(i) for i in range(30)])
    data = prepared.prepare_data(made, tmp_path)

    def unread():
        pytest.fail("records were read although the rows are there")
        yield

    def rows(records, report, **limits):
        changed = dataclasses.replace(made, data=dataclasses.replace(made.data, **limits))
        return prepared.rows_of(changed, tmp_path, records, data.tokenizer, report, "identity")

    records, reports = list(data.original_records.values()), [DataReport(), DataReport()]
    first = rows(records, reports[0])
    again = rows(unread(), reports[1])
    assert reports[0] == reports[1]
    assert first.dataset.digest == again.dataset.digest
    assert rows(records, DataReport(), max_response_tokens=3).dataset.digest != first.dataset.digest


def edited_source(report, answer):
    for i in range(30):
        report.rows_in += 1
        yield Record(id=str(i), prompt=f"Question {i}?", responses=(f" {answer}, {i}.", " Well."))


def test_rows_of_an_edited_source_are_prepared_again(tmp_path, monkeypatch):
    def source(report):
        return edited_source(report, answer)

    base = runs.get_config()
    shared = dataclasses.replace(base.data, source=source, cache_dir=str(tmp_path / "shared"))
    made = dataclasses.replace(base, data=shared)
    monkeypatch.setattr(prepared, "describe", lambda function: "the same name")
    for answer in ("Yes", "No"):
        found = prepared.prepare_data(made, tmp_path).train.dataset[0]
        assert found.responses[0].startswith(f" {answer}, ")


def test_a_run_whose_data_are_gone_has_its_rows(tmp_path, caplog):
    """Every field of the held-out records, and the digests of the rows; another config has none."""
    rows = [pair(i) for i in range(30)]
    for i, row in enumerate(rows[:10]):
        system = {"role": "system", "content": "Say \u2028 \ud7ff."}
        row["prompt"] = [system, {"role": "user", "content": f"Is {i} even?"}]
        row |= {
            side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")
        }
    made = config(tmp_path, rows, eval_fraction=0.3)
    first = prepared.prepare_data(made, tmp_path)
    (tmp_path / "path.jsonl").unlink()
    again = prepared.prepare_data(made, tmp_path)
    assert "path.jsonl: no longer exists" in caplog.text
    assert again.original_records == first.original_records
    assert any(isinstance(x.prompt, tuple) for x in again.original_records.values())
    assert again.report == first.report
    for side in ("train", "held_out"):
        ours, theirs = getattr(again, side), getattr(first, side)
        assert (ours.dataset.digest, ours.shapes) == (theirs.dataset.digest, theirs.shapes)
    other = dataclasses.replace(made, data=dataclasses.replace(made.data, max_prompt_tokens=31))
    with pytest.raises(DataError, match=r"path\.jsonl: no such file"):
        prepared.prepare_data(other, tmp_path)


def test_kept_records_are_the_records():
    record = Record(
        id="a",
        prompt=(Message("user", "x\ny", '{"weight": 0}'),),
        responses=("1", "2"),
        scores=((1.0, 0.1), (2.0, 1e-300)),
        objectives=("a", "b"),
        more=('{"tool_calls": []}', ""),
        root="r",
        repeats=True,
    )
    labelled = Record(id="b", prompt="\ud800", responses=("1",), desirable=(False,), domain="d")
    assert kept.read(kept.write([record, labelled])) == [record, labelled]
