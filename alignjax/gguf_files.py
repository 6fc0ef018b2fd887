"""Opens GGUF files, the one-file format of llama.cpp, with the package ``gguf``, an extra.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import os
from typing import Any

from alignjax.errors import UserError

ENDING = ".gguf"


def is_gguf(path: Any) -> bool:
    """Whether a path names a GGUF file and not a folder."""
    return str(path).endswith(ENDING)


def read(path: str) -> tuple[dict[str, Any], list[Any]]:
    """The metadata of a file by key, and its tensors, whose data are mapped and not read.

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
    del changed, size  # they tell one file from what it is replaced by
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path}: needs the package gguf: pip install gguf==0.19.0") from None
    try:
        reader: Any = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # of many kinds: the package checks little
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable GGUF file ({reason:.200})") from None
    return fields, list(reader.tensors)


def dequantize(path: str, tensor: Any) -> Any:
    """A tensor's numbers, float32, in the order of rows and columns that transformers has.

    Raises:
      UserError: it is quantised in a way that the package cannot decode.
    """
    import gguf
    import numpy as np

    try:
        # What comes first in the file's shape varies fastest.
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: tensor {tensor.name!r}: quantised as {tensor.tensor_type.name}, which the "
            f"package gguf does not decode ({error})"
        ) from None
    return np.asarray(values, np.float32).reshape([int(x) for x in tensor.shape[::-1]])
