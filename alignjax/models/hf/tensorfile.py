"""Reads and writes safetensors files, one tensor at a time.

The format: 8 bytes, little-endian, the length of the header; the header, a JSON object of tensor
names with ``dtype``, ``shape`` and ``data_offsets`` (begin and end within what follows); the
tensors' bytes, row-major, without gaps. https://github.com/huggingface/safetensors#format

Files are not trusted. A header is checked before anything is allocated: sizes must match the
file's, offsets must cover it exactly, and no name may occur twice.
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
    decode: Callable[[], np.ndarray] | None = None  # for files that are not safetensors: GGUF

    def open(self) -> np.ndarray:
        """Maps the tensor (only the parts that are copied are read), or decodes it."""
        if self.decode is not None:
            return self.decode()
        dtype, count = DTYPES[self.dtype], math.prod(self.shape)
        if not count:  # an empty range cannot be mapped
            return np.zeros(self.shape, dtype)
        view = np.memmap(self.file, dtype, "r", offset=self.offset, shape=(count,))
        return view.reshape(self.shape)


def read_header(file: pathlib.Path) -> dict[str, Tensor]:
    """Reads the places of a file's tensors, and checks that each lies within the file.

    Raises:
      UserError: the header is damaged, or an entry does not fit the file.
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
            fault = "overlaps another tensor" if begin < covered else "leaves a gap before it"
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
    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                raise UserError(f"{file}: tensor {key!r}: is in the header twice")
            entries[key] = value
        return entries

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=to_dict)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: header: invalid UTF-8 at byte {8 + error.start}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: header: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: header: wanted a JSON object, found {type(content).__name__}")
    return content


def _entry(where: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Checks an entry of the header; returns its dtype, shape, begin and end."""

    def are_sizes(value: Any, most: int) -> bool:
        # ``type``, because isinstance(True, int) holds.
        short = isinstance(value, list) and len(value) <= most
        return short and all(type(x) is int and x >= 0 for x in value)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(f"{where}: wanted dtype, shape and data_offsets, found {found}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{where}: dtype: wanted one of {', '.join(DTYPES)}, found {_short(dtype)}")
    if not are_sizes(shape, 8):
        raise UserError(f"{where}: shape: wanted at most 8 sizes, found {_short(shape)}")
    if not are_sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where}: data_offsets: wanted begin <= end, found {_short(offsets)}")
    wanted = DTYPES[dtype].itemsize * math.prod(shape)
    begin, end = offsets
    if end - begin != wanted:
        raise UserError(
            f"{where}: {dtype} {shape} takes {wanted} bytes, data_offsets span {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _short(value: Any) -> str:
    return reprlib.repr(value)  # values of a header may be very long


Source = tuple[str, np.dtype, tuple[int, ...], Callable[[], np.ndarray]]  # name, dtype, shape, get


def write(file: pathlib.Path, sources: Iterable[Source]) -> None:
    """Writes a file; calls each ``get`` in turn, so that memory holds one tensor at a time.

    Args:
      file: written in place; the caller renames it.
      sources: with dtypes of `DTYPES`.
    """
    sources = list(sources)
    code = {dtype: name for name, dtype in DTYPES.items()}
    # transformers refuses a file without the framework of its layout.
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
