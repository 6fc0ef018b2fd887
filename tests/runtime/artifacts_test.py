"""Artifacts: reused when whole, made again when damaged or of another key, never half.

Here is tested for all of them what a kill at any line, damage or a full disk may do.
"""

import contextlib
import dataclasses
import errno
import hashlib
import inspect
import json
import logging
import math
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from alignjax import cli, digests
from alignjax.data import store
from alignjax.errors import UserError
from alignjax.evaluation import plots, statistics
from alignjax.models.hf import tensorfile
from alignjax.runtime import artifacts, faults, storage, workdirs
from alignjax.sampling.generate import Sample
from tests import runs

KEY = {"of": "this", "sizes": [1, 2]}


def make_folder(scratch, parts=3):
    """A folder of two files, from parts that are there or made."""
    made = [artifacts.part(scratch, f"part-{i}", lambda i=i: {"value": i}) for i in range(parts)]
    folder = scratch / "folder"
    storage.write_json(folder / "all.json", made)
    storage.write(folder / "below" / "rest.bin", bytes(range(100)))


def make_file(scratch):
    storage.write_json(scratch / "file.json", [artifacts.part(scratch, "part-0", lambda: 1)])


def content(path):
    """Every file at a path, or below it."""
    files = (p for p in (path, *path.rglob("*")) if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def folder(top, key=KEY, make=make_folder):
    return artifacts.reuse(top / "folder", key, make, content)


def unasked(scratch):
    pytest.fail("made although it is there and whole")


WHOLE = ["all.json", "below/rest.bin"]


def test_it_is_made_once_and_then_loaded(tmp_path):
    made = folder(tmp_path)
    assert sorted(made) == WHOLE
    assert json.loads(made["all.json"]) == [{"value": i} for i in range(3)]
    assert folder(tmp_path, make=unasked) == made
    assert folder(tmp_path, {"sizes": (1, 2), "of": "this"}, unasked) == made  # the same JSON
    assert artifacts.is_whole(tmp_path / "folder", KEY)
    assert not artifacts.is_whole(tmp_path / "folder", "other")
    assert sorted(os.listdir(tmp_path)) == [".artifacts", "folder"]
    assert os.listdir(tmp_path / ".artifacts") == ["folder.manifest.json"]


def test_json_files_hold_no_nan_and_are_read_as_if_they_did(tmp_path):
    """Null instead, also in a key; intervals and samples read it as NaN."""
    nan = float("nan")
    made = []

    def make(scratch):
        made.append(scratch)
        return {"half": statistics.Interval(0.5, nan, 1).as_dict(), "more": (nan, [float("inf")])}

    for _ in range(2):
        found = artifacts.reuse_json(tmp_path / "a.json", {"rate": nan, "of": (1, nan)}, make)
    assert len(made) == 1
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["more"] == [None, [None]]
    assert str(statistics.Interval(**found["half"])) == "0.500 ± nan"
    fields = {name: None if name in ("reference", "kl") else 1 for name in
              (x.name for x in dataclasses.fields(Sample))}  # fmt: skip
    assert math.isnan(Sample(**fields).reference)
    assert math.isnan(Sample(**fields).kl)


def test_another_key_makes_another_content(tmp_path):
    folder(tmp_path)
    made = folder(tmp_path, "other", lambda scratch: make_folder(scratch, parts=1))
    assert json.loads(made["all.json"]) == [{"value": 0}]
    assert not artifacts.is_whole(tmp_path / "folder", KEY)


def test_a_json_file_holds_its_key(tmp_path):
    path, calls = tmp_path / "x.json", []

    def make(scratch):
        calls.append(scratch)
        return {"x": artifacts.part(scratch, "part", lambda: len(calls))}

    for key, wanted in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        assert artifacts.reuse_json(path, key, make) == {"key": key, "x": wanted}
    assert len(calls) == 2


SCRIPT = f"""
import pathlib, sys
from alignjax.runtime import artifacts, storage

{inspect.getsource(make_folder)}
{inspect.getsource(make_file)}
def make(scratch):
    print("making", flush=True)
    (make_folder if name == "folder" else make_file)(scratch)

top, name, key = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
artifacts.reuse(top / name, key, make, lambda path: None)
"""
PLACES = {"part": "part-0", "made": "", "sealed": "", "moving": "", "moved": "", "kept": ""}
STEPS = {"step", "logged", "saving", "evaluated"}  # of a loop, tested with it


def program(top, name, key="new", fault=""):
    """A program of its own that makes an artifact; what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(top), name, key],
        cwd=runs.ROOT,
        env=runs.environment(ALIGNJAX_FAULT=fault),
        capture_output=True,
        text=True,
    )
    assert done.returncode == (-signal.SIGKILL if fault else 0), done.stderr
    return done.stdout


def test_every_fault_point_is_one_that_is_tested():
    assert set(PLACES) | STEPS == set(faults.PHASES)


@pytest.mark.parametrize("name", ["folder", "file.json"])
@pytest.mark.parametrize("phase", PLACES)
def test_killed_anywhere_it_ends_with_the_same_bits(phase, name, tmp_path):
    """What is there meanwhile is the old content, the new one, or nothing, never a mixture."""
    make = {"folder": make_folder, "file.json": make_file}[name]
    clean, killed = (tmp_path / x for x in ("clean", "killed"))
    wanted = artifacts.reuse(clean / name, "new", make, content)
    artifacts.reuse(
        killed / name, "old", lambda scratch: storage.write(scratch / name, b"old"), content
    )
    old = content(killed / name)
    program(killed, name, fault=f"{phase}:{PLACES[phase] or name}=kill")
    meanwhile = content(killed / name)
    assert meanwhile in ({}, old, wanted)
    assert bool(meanwhile) or phase == "moving"
    assert artifacts.is_whole(killed / name, "new") == (phase == "kept")
    again = program(killed, name)
    assert ("making" in again) == (phase in ("part", "made"))  # else the content was complete
    assert content(killed) == content(clean)


def test_a_killed_maker_goes_on_with_its_parts(tmp_path):
    program(tmp_path, "folder", "k", fault="part:part-1=kill")
    scratch = tmp_path / ".artifacts" / "folder.scratch"
    assert sorted(p.name for p in scratch.glob("part-*")) == ["part-0.json", "part-1.json"]
    storage.keep_json(scratch / "part-0.json", "as it was left")
    made = json.loads(folder(tmp_path, "k")["all.json"])
    assert made == ["as it was left", {"value": 1}, {"value": 2}]


def test_parts_of_another_key_are_removed(tmp_path, caplog):
    program(tmp_path, "folder", "k", fault="part:part-1=kill")
    storage.write_json(tmp_path / ".artifacts" / "folder.scratch" / "part-0.json", "of k")
    made = json.loads(folder(tmp_path, "other")["all.json"])
    assert made[0] == {"value": 0}
    assert "was started with another config" in caplog.text


@pytest.mark.parametrize("name", [*WHOLE, ".artifacts/folder.manifest.json"])
def test_one_flipped_bit_in_any_file_is_found(name, tmp_path, caplog):
    wanted = folder(tmp_path)
    file = tmp_path / ("" if name.startswith(".") else "folder") / name
    whole = file.read_bytes()
    for place in range(0, 8 * len(whole), 8 * len(whole) // 23):
        broken = bytearray(whole)
        broken[place // 8] ^= 1 << place % 8
        file.write_bytes(broken)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert folder(tmp_path) == wanted
        assert file.read_bytes() == whole
        if name in WHOLE:
            assert f"{file} has changed since it was written: recomputing folder" in caplog.text
            assert caplog.text.count("WARNING") == 1


@pytest.mark.parametrize("trouble", ["gone", "more", "cut", "all gone"])
def test_files_that_are_gone_cut_or_new_are_found(trouble, tmp_path):
    wanted = folder(tmp_path)
    file = tmp_path / "folder" / "all.json"
    if trouble == "gone":
        file.unlink()
    elif trouble == "more":
        file.with_name("more").touch()
    elif trouble == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (tmp_path / "folder").rename(tmp_path / "elsewhere")
    assert not artifacts.is_whole(tmp_path / "folder", KEY)
    assert folder(tmp_path) == wanted


def test_without_digests_damage_gets_through(tmp_path, monkeypatch):
    """The control of the two tests above."""
    folder(tmp_path)
    monkeypatch.setattr(artifacts, "_digests", lambda path: {})
    folder(tmp_path, "other")
    (tmp_path / "folder" / "all.json").write_bytes(b"damaged")
    assert folder(tmp_path, "other", unasked)["all.json"] == b"damaged"


def test_the_digests_of_an_earlier_version_are_compared_too(tmp_path, caplog):
    whole = folder(tmp_path)
    manifest = tmp_path / ".artifacts" / "folder.manifest.json"
    older = {n: hashlib.sha256(x).hexdigest() for n, x in whole.items()}
    manifest.write_text(json.dumps({"key": KEY, "sha256": older}))
    assert folder(tmp_path, make=unasked) == whole
    (tmp_path / "folder" / "all.json").write_bytes(b"damaged")
    assert folder(tmp_path) == whole
    assert "all.json has changed since it was written" in caplog.text


def full_disk(scratch):
    artifacts.part(scratch, "part-0", lambda: {"value": 0})
    pathlib.Path("/dev/full").write_bytes(b"x" * 10**6)


def test_a_full_disk_leaves_nothing_visible(tmp_path):
    message = rf"^{tmp_path}/folder: cannot be written \(.*No space left"
    with pytest.raises(UserError, match=message) as caught:
        folder(tmp_path, make=full_disk)
    assert caught.value.exit_code == 3  # as any file of a run that cannot be written
    assert os.listdir(tmp_path) == [".artifacts"]
    made = folder(tmp_path)  # with its part
    with pytest.raises(UserError, match="No space left"):
        folder(tmp_path, "other", full_disk)
    assert content(tmp_path / "folder") == made
    assert folder(tmp_path, make=unasked) == made


@contextlib.contextmanager
def small_files(size):
    """No file may have more bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


ROWS = np.ones((100, 100), np.float32)
WRITERS = {
    "config.json": lambda file: storage.write_json(file, {"rows": ROWS.tolist()}),
    ".lock": lambda file: contextlib.ExitStack().enter_context(workdirs.owned(file.parent)),
    "digests.json": lambda file: digests.seal(file.parent),
    "report.png": lambda file: plots._save(plots._figure(1, 1, (2, 2))[0], file),
    "model.safetensors": lambda file: tensorfile.write(
        file, [("w", ROWS.dtype, ROWS.shape, lambda: ROWS)]
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_s_error_names_the_file(tmp_path, name):
    (tmp_path / "file").write_bytes(b"x")
    with small_files(0), pytest.raises(OSError, match="too large") as caught:
        WRITERS[name](tmp_path / name)
    assert pathlib.Path(caught.value.filename).name.startswith(name)
    assert (
        cli.full_disk(caught.value) == f"{caught.value.filename}: cannot be written: File too large"
    )


def test_an_array_that_a_full_disk_stops_ends_in_the_system_s_error(tmp_path):
    """`np.save` raises one without a number, and the exit code would be another."""
    content = store.npy(ROWS)
    with small_files(4096), pytest.raises(OSError, match="too large") as caught:
        (tmp_path / "a.npy").write_bytes(content)
    assert caught.value.errno == errno.EFBIG
    (tmp_path / "a.npy").write_bytes(content)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), ROWS)


def test_a_maker_that_fails_is_as_one_that_was_killed(tmp_path):
    def fail(scratch):
        make_folder(scratch)
        raise KeyError("x")

    with pytest.raises(KeyError):
        folder(tmp_path, make=fail)
    assert os.listdir(tmp_path) == [".artifacts"]
    assert sorted(folder(tmp_path)) == WHOLE


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path}/file/x: cannot be written"):
        artifacts.reuse(tmp_path / "file" / "x", KEY, unasked, content)


def two_at_once(top):
    """Two that want one artifact; how often it was made, and what each has."""
    makes, found = [], []
    begun, other_waits = threading.Event(), threading.Event()

    def make(scratch):
        makes.append(scratch)
        begun.set()
        other_waits.wait(1)
        make_folder(scratch)

    first = threading.Thread(target=lambda: found.append(folder(top, make=make)))
    first.start()
    begun.wait(10)
    second = threading.Thread(target=lambda: found.append(folder(top, make=make)))
    second.start()
    second.join(0.3)
    other_waits.set()
    for thread in (first, second):
        thread.join()
    return makes, found


def test_the_second_of_two_runs_waits_and_uses_the_firsts(tmp_path):
    makes, found = two_at_once(tmp_path)
    assert len(makes) == 1
    assert len(found) == 2
    assert found[0] == found[1]
    assert os.listdir(tmp_path / ".artifacts") == ["folder.manifest.json"]


def test_without_the_lock_both_make_it(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_locked", lambda path: contextlib.nullcontext())
    monkeypatch.setattr(threading, "excepthook", lambda error: None)  # they get in each other's way
    makes, _ = two_at_once(tmp_path)
    assert len(makes) == 2


def test_a_lock_that_its_owner_removed_keeps_nobody_out_of_the_next(tmp_path):
    """The file that a waiting process locks in the end may be gone from its folder."""
    path = tmp_path / "x"
    with artifacts._lock(path):
        lock = tmp_path / ".artifacts" / "x.lock"
        stale = lock.open("a")
    with stale, artifacts._lock(path):
        assert lock.exists()
        assert not os.path.samestat(os.fstat(stale.fileno()), lock.stat())


def test_a_stage_that_was_begun_under_another_key_begins_again(tmp_path, caplog):
    stage = tmp_path / "stage"
    artifacts.begin(stage, {"loss": "a"})
    (stage / "step").touch()
    artifacts.begin(stage, {"loss": "a"})
    assert (stage / "step").is_file()
    artifacts.begin(stage, {"loss": "b"})
    assert not (stage / "step").exists()
    assert "was started with another config" in caplog.text


@pytest.mark.parametrize("new", [artifacts.new_folder, artifacts.new_file])
def test_what_a_killed_program_left_beside_a_new_file_is_removed(tmp_path, new):
    killed = f"""
import os, signal
from alignjax.runtime import artifacts
with artifacts.{new.__name__}({str(tmp_path / "[a]")!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", killed], cwd=runs.ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    with new(str(tmp_path / "[a]")) as made:  # this one is alive: nobody else removes its folder
        (made / "x" if new is artifacts.new_folder else made).write_bytes(b"x")
        with pytest.raises(KeyError), new(str(tmp_path / "[a]")):
            raise KeyError
    assert os.listdir(tmp_path) == ["[a]"]


def test_a_new_folder_appears_when_it_is_full(tmp_path):
    def fail(to):
        with artifacts.new_folder(str(to)) as made:
            (made / "x").touch()
            raise KeyError("x")

    to = tmp_path / "a" / "b"
    with pytest.raises(KeyError):
        fail(to)
    assert not os.listdir(tmp_path / "a")
    with artifacts.new_folder(str(to)) as made:
        (made / "x").touch()
        assert not to.exists()
    assert os.listdir(to) == ["x"]
    with pytest.raises(UserError, match=f"^{to}: exists already"), artifacts.new_folder(str(to)):
        pass
