"""What a run writes, after a kill too, its averages, and the stop on steps that are not finite."""

import contextlib
import json

import jax.numpy as jnp
import pytest

from alignjax.errors import CheckpointError, NumericalError
from alignjax.runtime import distributed, metrics
from alignjax.runtime.loggers import bars
from alignjax.runtime.metrics import Meter, Writer


def steps_in(path):
    return [line["step"] for line in metrics.read(path)]


def test_lines_are_whole_and_in_order(tmp_path):
    writer = Writer(tmp_path / "run", after_step=0)
    writer.write(1, {"loss": 0.5, "rewards/margins": -1.0})
    assert metrics.read(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "rewards/margins": -1.0}
    ]  # before it is closed: a kill loses no line
    writer.close()
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("main", [True, False])
def test_the_first_process_alone_writes_and_shows_a_line(tmp_path, monkeypatch, caplog, main):
    caplog.set_level("INFO", "alignjax")
    monkeypatch.setattr(distributed, "is_main", lambda: main)
    writer = Writer(tmp_path / "run", after_step=0)
    writer.write(1, {"loss": 0.5})
    writer.close()
    with bars.progress("steps", 1) as advance:
        advance(loss=0.5)
    assert (tmp_path / "run").exists() == main
    assert ("steps 1/1: loss 0.5" in caplog.text) == main


def test_lines_of_steps_that_run_again_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": n}) + "\n" for n in (2, 4, 6)))
    writer = Writer(tmp_path, after_step=4)
    writer.write(6, {"loss": 60})
    writer.close()
    assert metrics.read(path) == [
        {"step": 2, "loss": 2},
        {"step": 4, "loss": 4},
        {"step": 6, "loss": 60},
    ]


def test_a_line_with_a_changed_bit_is_counted_and_said(tmp_path, caplog):
    writer, path = Writer(tmp_path, after_step=0), tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        writer.write(step, {"loss": 0.125 * step, "kl": 1.5})
    writer.close()
    whole, wanted = path.read_bytes(), metrics.read(path)
    assert [line["step"] for line in wanted] == [1, 2, 3]
    assert not caplog.records
    for place in range(len(whole)):  # whatever bit it is, no number is read that was not written
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        caplog.clear()
        found = metrics.read(path)
        assert [line for line in found if line not in wanted] == []
        assert len(found) == 3 or "lines cannot be read and are left out" in caplog.text
    path.write_bytes(whole[:5] + whole[6:])
    Writer(tmp_path, after_step=9).close()
    assert steps_in(path) == [2, 3]


@pytest.mark.parametrize("half", ['{"step": 4, "los', "{", '{"loss": 1.0}', "null", "17", '"a"'])
def test_half_lines_are_removed(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 2}) + "\n" + half)
    Writer(tmp_path, after_step=4).close()
    assert steps_in(path) == [2]


def scalars(loss, weight=1.0, skipped=0):
    values = dict(loss=loss, grad_norm=2.0, num_tokens=10, weight=weight, skipped=skipped)
    return {name: jnp.asarray(x) for name, x in values.items()}


def test_averages_weigh_each_step_by_its_rows():
    meter = Meter(max_skipped=3)
    assert meter.add(1, scalars(1.0, weight=8.0))["loss"] == 1.0
    meter.add(2, scalars(4.0, weight=4.0))
    found = meter.averages(2.0)
    assert found["loss"] == pytest.approx((8 * 1.0 + 4 * 4.0) / 12)
    assert found["skipped"] == 0
    assert found["prompts_per_second"] == pytest.approx(6.0)
    assert found["tokens_per_second"] == pytest.approx(10.0)
    assert found["step_seconds"] == pytest.approx(1.0)
    meter.add(3, scalars(7.0))
    assert meter.averages(3.0)["loss"] == pytest.approx(7.0)  # a window forgets the one before


def test_steps_that_were_skipped_are_counted_and_not_averaged():
    meter = Meter(max_skipped=3)
    meter.add(1, scalars(1.0))
    meter.add(2, scalars(float("nan"), skipped=1))
    meter.add(3, scalars(float("inf"), skipped=1))
    meter.add(4, scalars(3.0))
    found = meter.averages(1.0)
    assert found["loss"] == pytest.approx(2.0)
    assert found["skipped"] == 2
    assert meter.averages(1.0) == {}  # no step, nothing to tell


def test_too_many_in_a_row_stop_the_run_with_one_line():
    meter = Meter(max_skipped=3)
    bad = scalars(float("nan"), skipped=1)
    for step in (1, 2):
        meter.add(step, bad)
    meter.add(3, scalars(1.0))  # one good step: counting starts again
    for step in (4, 5):
        meter.add(step, bad)
    with pytest.raises(NumericalError) as error:
        meter.add(6, bad)
    assert error.value.exit_code == 4
    assert "3 steps in a row (4 to 6; loss nan, gradient norm 2.0)" in str(error.value)
    assert "\n" not in str(error.value)


class Full:
    """A file on a disk that is full from some byte on, for a while."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, content):
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = content[: self.room]
        self.room -= len(taken)
        return self.file.write(taken)

    def flush(self):
        pass

    def close(self):
        self.file.close()


def test_a_full_disk_stops_no_training_and_loses_no_line_that_fits_later(tmp_path, caplog):
    writer = Writer(tmp_path, after_step=0)
    writer._file = full = Full(writer._file, room=30)
    for step in (1, 2):
        writer.write(step, {"loss": 0.5})
    assert "2 line(s) not written yet ([Errno 28]" in caplog.text
    full.room = 10**6
    writer.write(3, {"loss": 0.25})
    writer.close()
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3]


def test_a_full_tensorboard_folder_stops_and_hangs_nothing(tmp_path, caplog):
    writer = Writer(tmp_path, after_step=0)
    board = writer._loggers[0].write.__self__
    records = board._file._py_recordio_writer
    records._writer = Full(records._writer, room=0)
    for step in range(1, 30):  # more than the library's queue takes
        writer.write(step, {"loss": 0.5})
    writer.close()
    assert caplog.text.count("tensorboard: not written any more ([Errno 28]") == 1
    assert steps_in(tmp_path / "metrics.jsonl") == list(range(1, 30))


def test_a_full_disk_at_the_end_hides_no_error(tmp_path, caplog):
    writer = Writer(tmp_path, after_step=0)
    writer._file = Full(writer._file, room=0)
    writer.write(1, {"loss": 0.5})
    with pytest.raises(CheckpointError, match="the first"), contextlib.closing(writer):
        raise CheckpointError("the first")
    assert "No space left" in caplog.text
