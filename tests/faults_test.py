"""Random faults: what is judged to be bad, and that a number draws one trial."""

import contextlib
import json
import random

import pytest

from alignjax import digests
from alignjax.runtime import artifacts, metrics, storage
from tests import faults


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNJAX_DIGESTS_FOLDER", str(tmp_path))
    return str(tmp_path / "log")


def told(log, text):
    with open(f"{log}.err", "w", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("kind", "code", "text", "outcome"),
    [
        ("kill", -9, "half a li", ""),
        ("term", 143, "alignjax: SIGTERM: saved step 3 in /w", ""),
        ("flip", 3, "a line\nalignjax: /w/x.json: damaged\n", "alignjax: /w/x.json: damaged"),
        ("full", 2, "[1] alignjax: /w: cannot be written\n", "alignjax: /w: cannot be written"),
        ("flip", None, "Thread 0x1\n", "HANG"),
        ("kill", -9, "Traceback (most recent call last):\n", "TRACEBACK"),
        ("flip", 1, "ValueError: x\n", "TRACEBACK"),
        ("kill", -11, "", "TRACEBACK"),
        ("int", 143, "alignjax: SIGTERM\n", "TRACEBACK"),
        ("full", 3, "alignjax: no space\n", "UNNAMED"),
        ("full", 3, "alignjax: /w/x: no space\nand more\n", "UNNAMED"),
    ],
)
def test_how_a_program_may_end(log, kind, code, text, outcome):
    told(log, text)
    if outcome.isupper():
        with pytest.raises(faults.BadError) as caught:
            faults.judge(kind, code, log)
        assert caught.value.args[0] == outcome
    else:
        assert faults.judge(kind, code, log) == outcome


def test_one_bit_of_one_file_is_flipped(log, tmp_path):
    run = tmp_path / "disk" / "run"
    run.mkdir(parents=True)
    for name in ("a", "b"):
        (run / name).write_bytes(bytes(8))
    path, before, after = faults.flip({"file": 0.6, "place": 0.99, "bit": 7})
    assert (path, before) == (run / "b", bytes(8))
    assert path.read_bytes() == after == bytes(7) + b"\x80"
    assert (run / "a").read_bytes() == bytes(8)


def test_who_reads_a_flipped_file_is_told(tmp_path):
    storage.keep_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "b.json").write_text("{}")
    with contextlib.closing(metrics.Writer(tmp_path, after_step=0, names=())) as writer:
        writer.write(1, {"loss": 0.5})
    lines = tmp_path / "metrics.jsonl"
    assert not any(faults.is_told(p) for p in (tmp_path / "a.json", tmp_path / "b.json", lines))
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("1", "3"))
    lines.write_text(lines.read_text().replace("loss", "lost"))
    assert faults.is_told(tmp_path / "a.json")
    assert faults.is_told(lines)


def test_who_reads_a_flipped_file_of_an_artifact_or_a_sealed_folder_is_told(tmp_path):
    cache = tmp_path / ("0f" * 16)
    artifacts.reuse(cache, "key", lambda scratch: make(scratch / cache.name), lambda path: None)
    sealed = tmp_path / "exported"
    make(sealed)
    digests.seal(sealed)
    files = [cache / "length.npy", sealed / "length.npy"]
    assert not any(faults.is_told(path) for path in files)
    for path in files:
        path.write_bytes(b"\x01" + bytes(7))
    assert all(faults.is_told(path) for path in files)


def make(folder):
    folder.mkdir()
    (folder / "length.npy").write_bytes(bytes(8))


def test_a_seed_and_a_number_draw_the_same_faults():
    drawn = [json.dumps(faults.draw_fault(random.Random("1 7"))) for _ in range(2)]
    assert drawn[0] == drawn[1] != json.dumps(faults.draw_fault(random.Random("1 8")))
