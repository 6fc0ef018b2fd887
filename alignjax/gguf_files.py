"""Opens and writes GGUF files, llama.cpp's one-file format, with the optional package ``gguf``.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from alignjax.errors import UserError

ENDING = ".gguf"
KINDS = {"f16": 1, "q8_0": 7}  # kind of a file -> llama.cpp's number
BLOCK = 32  # weights of a row that Q8_0 stores together

Source = tuple[str, tuple[int, ...], Callable[[], Any]]  # name, rows and columns, the numbers


def is_gguf(path: Any) -> bool:
    """Tells whether a path is of a GGUF file, not of a folder."""
    return str(path).endswith(ENDING)


def read(path: str) -> tuple[dict[str, Any], list[Any]]:
    """Reads the metadata of a file by key, and its tensors; their data are mapped, not read.

    Raises:
      UserError: the package is not installed; the file is missing or damaged.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int, size: int) -> tuple[dict[str, Any], list[Any]]:
    del changed, size  # only part of the cache's key, in case the file is replaced
    gguf = _package(path)
    try:
        reader: Any = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of any type, because the package checks little
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable GGUF file ({reason:.200})") from None
    return fields, list(reader.tensors)


def dequantize(path: str, tensor: Any) -> Any:
    """Decodes a tensor to float32, in transformers' order of rows and columns.

    Raises:
      UserError: the package cannot decode its quantisation.
    """
    import gguf
    import numpy as np

    try:
        # The first axis of the file's shape varies fastest.
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: tensor {tensor.name!r}: wanted a quantisation that the package gguf decodes, "
            f"found {tensor.tensor_type.name} ({error})"
        ) from None
    return np.asarray(values, np.float32).reshape([int(x) for x in tensor.shape[::-1]])


def _package(path: str) -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path}: needs the package gguf: pip install gguf==0.19.0") from None
    return gguf


def write(path: str, fields: dict[str, Any], sources: Sequence[Source], kind: str) -> None:
    """Writes a file, one tensor at a time.

    Args:
      path: of the file, which is written in place; the caller renames it.
      fields: metadata by key, including ``general.architecture``.
      sources: matrices are stored as ``kind``, other tensors as float32.
      kind: f16 | q8_0; with q8_0, matrices whose rows are not whole blocks are stored as f16.

    Raises:
      UserError: the package is not installed, or a number is too large for f16.
    """
    import numpy as np

    gguf = _package(path)
    types = gguf.GGMLQuantizationType
    fields = {**fields, "general.file_type": KINDS[kind]}
    writer: Any = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for key, value in {**fields, "general.quantization_version": 2}.items():
        is_count = type(value) is int  # llama.cpp reads counts and ids as unsigned
        value_type = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if is_count else value_type)
    stored = []
    for name, shape, get in sources:
        how = types.F32
        if len(shape) > 1:
            how = types.Q8_0 if kind == "q8_0" and shape[-1] % BLOCK == 0 else types.F16
        block, size = gguf.GGML_QUANT_SIZES[how]
        nbytes = math.prod(shape) // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), nbytes, raw_dtype=how)
        stored.append((name, how, get))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, how, get in stored:
        values = np.ascontiguousarray(get(), np.float32)
        with np.errstate(over="ignore"):
            packed = gguf.quantize(values, how)
        if how == types.F16 and np.isinf(packed).any():
            raise UserError(
                f"{path}: tensor {name!r}: wanted numbers below 65,520, which f16 can hold, found "
                f"{np.abs(values).max():g}"
            )
        writer.write_tensor_data(packed)
    writer.close()
