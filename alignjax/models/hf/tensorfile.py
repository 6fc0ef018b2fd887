"""Safetensors files: a header checked before anything is allocated, tensors read one at a time.

The format: 8 bytes, little-endian, the length of the header; the header, a JSON object of tensor
names with ``dtype``, ``shape`` and ``data_offsets`` (begin and end within what follows); the
tensors' bytes, row-major, without gaps. https://github.com/huggingface/safetensors#format

Files come from strangers. Nothing a header claims is believed: sizes are compared with the file's,
offsets have to cover it exactly, and no name occurs twice.
"""

import dataclasses
import json
import math
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignjax.errors import UserError, naming_file

MAX_HEADER = 2 * 2**20  # bytes; 1,000 tensors take 0.1 MiB

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype("?"),
    **{f"{kind}{8 * n}": np.dtype(f"<{kind.lower()}{n}") for kind in "IU" for n in (1, 2, 4, 8)},
}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """The place of a tensor in a file."""

    file: pathlib.Path
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    decode: Callable[[], np.ndarray] | None = None  # of a file that stores something else

    def open(self) -> np.ndarray:
        """The tensor as a view of the file: only what is copied from it is read; or decoded."""
        if self.decode is not None:
            return self.decode()
        dtype, count = DTYPES[self.dtype], math.prod(self.shape)
        if not count:  # nothing can be mapped
            return np.zeros(self.shape, dtype)
        view = np.memmap(self.file, dtype, "r", offset=self.offset, shape=(count,))
        return view.reshape(self.shape)


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file by name, each known to lie within it.

    Raises:
      UserError: names the file, and the tensor where it is one tensor's fault.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise UserError(
                    f"{file}: header: wanted 8 + {length} bytes, found a file of {size} (cut off?)"
                )
            if length > MAX_HEADER:
                raise UserError(
                    f"{file}: header: wanted at most {MAX_HEADER} bytes, found {length}"
                )
            text = opened.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    content = _parse(file, text)
    content.pop("__metadata__", None)
    data = size - 8 - length
    tensors, places = {}, []
    for name, entry in content.items():
        dtype, shape, begin, end = _entry(f"{file}: tensor {name!r}", entry)
        tensors[name] = Tensor(file, dtype, shape, 8 + length + begin)
        places.append((begin, end, name))
    covered = 0
    for begin, end, name in sorted(places):
        if begin != covered or end > data:
            fault = "overlaps another" if begin < covered else "leaves a gap before it"
            fault = "ends after the file" if end > data else fault
            raise UserError(
                f"{file}: tensor {name!r}: bytes {begin} to {end} of {data}: {fault}; wanted it "
                f"to begin at {covered}"
            )
        covered = end
    if covered != data:
        last = f" after tensor {max(places)[2]!r}" if places else ""
        raise UserError(f"{file}: {data - covered} bytes{last} belong to no tensor")
    return tensors


def _parse(file: pathlib.Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{file}: tensor {key!r}: is in the header twice")
            found[key] = value
        return found

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: header: invalid UTF-8 at byte {8 + error.start}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: header: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: header: wanted a JSON object, found {type(content).__name__}")
    return content


def _entry(where: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """dtype, shape, begin and end of a header's entry, each of the right type and in agreement."""

    def sizes(value: Any, most: int) -> bool:
        # By type: a bool is an int to Python.
        few = isinstance(value, list) and len(value) <= most
        return few and all(type(x) is int and x >= 0 for x in value)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(f"{where}: wanted dtype, shape and data_offsets, found {found}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{where}: dtype: wanted one of {', '.join(DTYPES)}, found {_short(dtype)}")
    if not sizes(shape, 8):
        raise UserError(f"{where}: shape: wanted sizes of 8 axes at most, found {_short(shape)}")
    if not sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where}: data_offsets: wanted begin <= end, found {_short(offsets)}")
    wanted = DTYPES[dtype].itemsize * math.prod(shape)
    begin, end = offsets
    if end - begin != wanted:
        raise UserError(
            f"{where}: {dtype} {shape} takes {wanted} bytes, data_offsets have {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _short(value: Any) -> str:
    return reprlib.repr(value)  # what a header holds may be long


Source = tuple[str, np.dtype, tuple[int, ...], Callable[[], np.ndarray]]  # name, dtype, shape, get


def write(file: pathlib.Path, sources: Iterable[Source]) -> None:
    """Writes a file; each tensor is asked for when it is its turn, so that one is held at a time.

    Args:
      file: written in place; the caller renames.
      sources: dtypes are those of `DTYPES`.
    """
    sources = list(sources)
    code = {dtype: name for name, dtype in DTYPES.items()}
    # transformers refuses a file that does not say which framework's layout it has.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, _ in sources:
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": code[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    with naming_file(file), file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for _, dtype, shape, get in sources:
            array = np.asarray(get(), dtype, order="C")
            assert array.shape == shape
            opened.write(array.reshape(-1).view(np.uint8).data)
        opened.flush()
        os.fsync(opened.fileno())
