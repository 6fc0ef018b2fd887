"""Safetensors files from strangers: what each lie of a header leads to, and how quickly."""

import json
import re
import time
import tracemalloc

import numpy as np
import pytest

from alignjax.errors import UserError
from alignjax.models.hf import tensorfile

BIG = 2**40


def raw(header, data=b"", length=None):
    """A file's bytes; the header as an object, as text or as bytes."""
    if isinstance(header, dict):
        header = json.dumps(header)
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HOSTILE = {  # name -> (bytes, what the message says of it)
    "length of 2^63": (raw({}, length=2**63), "wanted 8 \\+ 9223372036854775808 bytes"),
    "length above the limit": (raw("", b"\0" * (tensorfile.MAX_HEADER + 1), 2097153), "at most"),
    "length beyond the file": (raw({"x": entry()}, length=500), "cut off"),
    "fewer than 8 bytes": (b"\0\0\0", "found a file of 3"),
    "data cut off": (raw({"x": entry()}, b"\0" * 4), "tensor 'x'.*ends after the file"),
    "overlap": (
        raw({"a": entry(), "x": entry(begin=4, end=12)}, b"\0" * 12),
        "tensor 'x'.*overlaps another",
    ),
    "hole": (
        raw({"a": entry(), "x": entry(begin=12, end=20)}, b"\0" * 20),
        "tensor 'x'.*leaves a gap before it; wanted it to begin at 8",
    ),
    "bytes of no tensor": (raw({"x": entry()}, b"\0" * 9), "1 bytes after tensor 'x'"),
    "negative size": (raw({"x": entry(shape=(-2,))}, b"\0" * 8), "tensor 'x': shape"),
    "negative offset": (raw({"x": entry(begin=-8, end=0)}, b"\0" * 8), "tensor 'x': data_offsets"),
    "end before begin": (raw({"x": entry(begin=8, end=0)}, b"\0" * 8), "tensor 'x': data_offsets"),
    "name twice": (
        raw(f'{{"x": {json.dumps(entry())}, "x": {json.dumps(entry())}}}', b"\0" * 8),
        "tensor 'x': is in the header twice",
    ),
    "wrong size for the type": (
        raw({"x": entry("F64")}, b"\0" * 8),
        "tensor 'x': F64 \\[2\\] takes 16 bytes, data_offsets span 8",
    ),
    "shape whose product overflows": (
        raw({"x": entry(shape=(BIG, BIG), end=0)}),
        "tensor 'x': F32.*takes",
    ),
    "terabytes in an empty file": (
        raw({"x": entry("U8", (BIG,), 0, BIG)}),
        "tensor 'x': bytes 0 to 1099511627776 of 0: ends after the file",
    ),
    "unknown type": (raw({"x": entry("F4")}, b"\0" * 8), "tensor 'x': dtype: wanted one of"),
    "type that is no text": (raw({"x": entry(["F32"])}, b"\0" * 8), "tensor 'x': dtype"),
    "fractional size": (raw({"x": entry(shape=(2.0,))}, b"\0" * 8), "tensor 'x': shape"),
    "boolean size": (raw({"x": entry(shape=(True, 2))}, b"\0" * 8), "tensor 'x': shape"),
    "too many axes": (raw({"x": entry(shape=(1,) * 10**5)}, b"\0" * 8), "tensor 'x': shape"),
    "entry of another form": (raw({"x": [1, 2]}, b"\0" * 8), "tensor 'x': wanted dtype, shape"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "invalid UTF-8 at byte 10"),
    "not JSON": (raw("{'x': 1}"), "not valid JSON"),
    "JSON of another kind": (raw("[1]"), "wanted a JSON object, found list"),
    "nested without end": (raw("[" * 10**5), "not valid JSON"),
    "a number of a million digits": (raw('{"x": ' + "9" * 10**6 + "}"), "not valid JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_quickly_and_without_memory(case, tmp_path):
    content, said = HOSTILE[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: .*{said}"):
        tensorfile.read_header(file)  # measured below without what tracing costs
    start = time.process_time()
    with pytest.raises(UserError):
        tensorfile.read_header(file)
    assert time.process_time() - start < 0.1  # of this process: other work on the machine is not it
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            tensorfile.read_header(file)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_the_largest_header_that_is_read_costs_bounded_memory_and_time(tmp_path):
    entries = {str(i): entry(shape=(0,), end=0) for i in range(25_000)}
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw(entries))
    assert 0.7 * tensorfile.MAX_HEADER < file.stat().st_size < tensorfile.MAX_HEADER
    assert len(tensorfile.read_header(file)) == 25_000


@pytest.mark.parametrize("dtype", tensorfile.DTYPES)
def test_writing_and_reading_back_is_exact(dtype, tmp_path):
    rng = np.random.default_rng(0)
    size = tensorfile.DTYPES[dtype].itemsize
    array = rng.integers(0, 2 if dtype == "BOOL" else 128, (3, 5, size), np.uint8)
    array = array.view(tensorfile.DTYPES[dtype])[..., 0]
    empty = np.zeros((0, 4), array.dtype)
    file = tmp_path / "some.safetensors"
    sources = [("a", array), ("empty", empty), ("scalar", array[0, 0]), ("turned", array.T)]
    tensorfile.write(file, [(n, x.dtype, x.shape, lambda x=x: x) for n, x in sources])
    found = tensorfile.read_header(file)
    assert list(found) == [name for name, _ in sources]
    for name, wanted in sources:
        assert found[name].dtype == dtype
        opened = found[name].open()
        assert opened.shape == wanted.shape
        assert opened.tobytes() == wanted.tobytes()
