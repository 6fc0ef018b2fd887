"""Reading files strictly: every kind of damage is one line that says where."""

import gzip
import json
import os
import subprocess
import sys

import pytest

from alignjax.data import files, places
from alignjax.data.files import read_rows
from alignjax.data.records import DataError

GOOD = b'{"a": "x"}\n{"a": "y"}\n'


def write(tmp_path, content: bytes, name: str = "d.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def read(path: str) -> list[str]:
    return [row.text("a") for row in read_rows(path)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", GOOD + b'{"a": "z', r"d\.jsonl:3: JSON ends early \(file truncated\?\)"),
        ("d.jsonl", GOOD + b'{"a": ', r"d\.jsonl:3: JSON ends early"),
        ("d.jsonl", b'{"a": "x",}\n' + GOOD, r"d\.jsonl:1: not valid JSON \(.* character 1"),
        ("d.jsonl", b'{"a": "x\n"}\n', r"d\.jsonl:1: not valid JSON"),
        ("d.jsonl", b"[1]\n", r"d\.jsonl:1: row: wanted an object, found list"),
        ("d.jsonl", b"", r"d\.jsonl: holds no rows \(empty file\)"),
        ("d.jsonl", b"\n \n", r"d\.jsonl: holds no rows"),
        (
            "d.jsonl",
            GOOD + b'{"a": "\xff"}\n',
            r"d\.jsonl:3: invalid UTF-8, byte 0xff at offset 29",
        ),
        ("d.jsonl", '{"a": "x"}\n'.encode("utf-16"), r"offset 0 \(the file looks like UTF-16\)"),
        ("d.jsonl", b'{"a": "x\0"}\n', r"d\.jsonl:1: NUL byte at offset 8"),
        ("d.jsonl", b'{"a": "x\\u0000"}\n', r"d\.jsonl:1: field 'a' holds a NUL character"),
        ("d.jsonl", b'{"a": "x\\ud800"}\n', r"d\.jsonl:1: .* the lone surrogate \\ud800 .* 1"),
        ("d.jsonl", b"[" * 100_000, r"d\.jsonl:1: JSON is nested too deeply"),
        ("d.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r"d\.jsonl:1: not usable JSON"),
        (
            "d.jsonl",
            GOOD + b'{"a": "x", "b": {"c": 1, "c": 2}}',
            r"d\.jsonl:3: .*'c' appears twice",
        ),
        ("d.json", b'[{"a": "x", "a": "y"}]', r"d\.json:1: .*key 'a' appears twice"),
        ("d.json", b'[{"a": "x"},\n {"a": "y"}', r"d\.json:2: JSON ends early"),
        ("d.json", b'[{"a": "x"},\n {"a": "y', r"d\.json:2: JSON ends early"),
        ("d.json", b'[{"a": "x"},\n]', r"d\.json:2: not valid JSON"),
        ("d.json", b'[{"a": "x"}\n {"a": "y"}]', r"d\.json:2: wanted ',' or '\]', found '\{'"),
        ("d.json", b'[{"a": "x"}]\n[]', r"d\.json:2: text after the end of the JSON list"),
        ("d.json", b'[{"a": "\xff"}]', r"d\.json:1: invalid UTF-8, byte 0xff at offset 8"),
        ("d.json", b"[]", r"d\.json: holds no rows"),
        ("d.jsonl.gz", gzip.compress(GOOD, mtime=0)[:-6], r"gzip data end early, after \d+ bytes"),
        ("d.jsonl.gz", gzip.compress(GOOD, mtime=0) + b"junk", r"damaged gzip data after 22 bytes"),
        ("d.jsonl.gz", GOOD, r"is named \.gz but is not gzip data"),
        ("d.jsonl.gz", b"", r"holds no rows"),
        ("d.txt", GOOD, r"wanted a file ending in one of \.jsonl, "),
    ],
)
def test_damage_is_named(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path, content, name))
    assert "\n" not in str(caught.value)


def test_flipped_byte_in_gzip_is_found(tmp_path):
    content = bytearray(gzip.compress(GOOD * 1000))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(DataError, match=r"damaged gzip|ends? early|UTF-8|JSON"):
        read(write(tmp_path, bytes(content), "d.jsonl.gz"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b"\xef\xbb\xbf" + GOOD),
        ("d.jsonl", b"\n" + GOOD.replace(b"\n", b"\r\n") + b"\n\n"),
        ("d.jsonl", GOOD.rstrip()),
        ("d.jsonl.gz", gzip.compress(GOOD[:11], mtime=0) + gzip.compress(GOOD[11:], mtime=0)),
        ("d.jsonl", gzip.compress(GOOD, mtime=0)),
        ("d.json", b' [\n{"a": "x"} , {"a": "y"} ] \n'),
        ("d.json", GOOD),
    ],
)
def test_harmless_variants_are_read(tmp_path, name, content):
    assert read(write(tmp_path, content, name)) == ["x", "y"]


def test_line_separators_within_text_do_not_split_rows(tmp_path):
    texts = ["a\u2028b", "c\u2029d\x85e", "f\x0bg\x1ch"]
    content = "".join(json.dumps({"a": t}, ensure_ascii=False) + "\n" for t in texts[:2])
    content += json.dumps({"a": texts[2]}) + "\n"
    assert read(write(tmp_path, content.encode())) == texts


def test_lines_are_counted_from_one_in_both_formats(tmp_path):
    rows = read_rows(write(tmp_path, b'\n{"a": 1}\n\n{"a": 2}\n'))
    assert [row.id for row in rows] == ["d.jsonl:2", "d.jsonl:4"]
    rows = read_rows(write(tmp_path, b'[\n{"a":\n1}\n,\n{"a": 2}]', "d.json"))
    assert [row.id for row in rows] == ["d.json:2", "d.json:5"]


def test_ids_are_the_rows_own_and_tell_files_apart(tmp_path):
    one = write(tmp_path, b'{"id": 7}\n{"id": "x"}\n{"id": true}\n')
    assert [row.id for row in read_rows(one)] == ["7", "x", "d.jsonl:3"]
    (tmp_path / "sub").mkdir()
    write(tmp_path, b'{"id": 7}\n', "sub/d.jsonl")
    rows = read_rows(str(tmp_path / "**" / "*.jsonl"))
    assert [row.id for row in rows] == ["d.jsonl:7", "d.jsonl:x", "d.jsonl:3", "sub/d.jsonl:7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"b": "x"}', r"d\.jsonl:1: field 'a' is missing; the row has 'b'"),
        (b'{"aa": "x"}', r"field 'a' is missing \(did you mean 'aa'\?\)"),
        (b'{"a": null}', r"d\.jsonl:1: field 'a' is null"),
        (b'{"a": true}', r"d\.jsonl:1: field 'a': wanted text, found bool"),
        (b'{"a": 1.5}', r"field 'a': wanted text, found number"),
        (b'{"a": ["x"]}', r"field 'a': wanted text, found list"),
        (b'{"a": {}}', r"field 'a': wanted text, found object"),
    ],
)
def test_fields_are_named_with_their_type(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, content))


def test_missing_files_are_named_with_the_nearest_name(tmp_path):
    write(tmp_path, GOOD, "train.jsonl.gz")
    with pytest.raises(DataError, match=r"no such file \(did you mean 'train\.jsonl\.gz'\?\)"):
        read(str(tmp_path / "train.jsonl"))
    with pytest.raises(DataError, match="no file matches this pattern"):
        read(str(tmp_path / "eval*.jsonl"))
    with pytest.raises(DataError, match="no folder"):
        read(str(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read(str(tmp_path))


@pytest.mark.parametrize("folder", ["[1]", "a*b", "x?"])
def test_names_that_look_like_patterns_are_names_where_they_are_there(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "d.jsonl").write_bytes(b'{"a": "other"}')
    wanted = write(tmp_path / folder, b'{"a": "x"}', "d[0].jsonl")
    assert read(wanted) == read(str(tmp_path / folder / "*.jsonl")) == ["x"]
    assert read(places.resolve(str(tmp_path / folder), "")) == ["x"]


def test_what_is_no_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    os.symlink("gone", tmp_path / "link.jsonl")
    for name, said in (
        ("pipe", "is not a regular file"),
        ("link", "is a link to gone, which does not exist"),
    ):
        for path in (tmp_path / f"{name}.jsonl", tmp_path / f"{name}*"):
            with pytest.raises(DataError, match=f"{name}.jsonl: {said}"):
                read(str(path))


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = write(tmp_path, GOOD)
    rows = read_rows(path)
    next(rows)
    with open(path, "ab") as file:
        file.write(b'{"a": "z"}\n')
    with pytest.raises(DataError, match=rf"{path}: changed while it was read"):
        list(rows)


def test_decompression_bombs_are_stopped(tmp_path, monkeypatch):
    bomb = write(tmp_path, gzip.compress(GOOD * 50_000), "d.jsonl.gz")
    assert len(read(bomb)) == 100_000  # the same file is fine under the limit
    monkeypatch.setattr(files, "MAX_EXPANDED", files.MIB)
    with pytest.raises(DataError, match=r"expands past 1 MiB \(ratio \d+:1\)"):
        read(bomb)
    with pytest.raises(DataError, match="expands past"):
        read(write(tmp_path, gzip.compress(b"[" + b" " * 4 * files.MIB + b"]"), "d.json.gz"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_one_endless_line_does_not_fill_memory(tmp_path):
    bomb = tmp_path / "d.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(80):
            file.write(b"x" * files.MIB)
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from alignjax.data.files import read_rows\n"
        "from alignjax.data.records import DataError\n"
        f"try: list(read_rows({str(bomb)!r}))\n"
        # Not ru_maxrss, which starts at the size of the process that this one was forked from.
        "except DataError as e: print(e, open('/proc/self/status').read().split('VmHWM:')[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "d.jsonl.gz:1: row is longer than 64 MiB" in done.stdout
    peak = int(done.stdout.split("64 MiB")[1].split()[0])
    assert peak < 400_000  # KiB


def test_fingerprint_follows_content_and_names(tmp_path):
    first = files.fingerprint(write(tmp_path, GOOD))
    assert first == files.fingerprint(write(tmp_path, GOOD))
    assert first != files.fingerprint(write(tmp_path, GOOD, "e.jsonl"))
    assert first != files.fingerprint(write(tmp_path, GOOD + b"\n"))
