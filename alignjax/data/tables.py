"""Reads rows from parquet, Arrow, CSV and TSV files; opens zstd streams."""

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from alignjax.data.records import DataError

TABLES = (".parquet", ".arrow", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def arrow_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Yields (1-based number, row) of a parquet or Arrow file, as JSON data.

    In these files all objects of a column have the same fields, null if a row has no value. Nulls
    are removed within tools and arguments, because templates would print them. An Arrow file is a
    stream, as `datasets` saves it, or has an index at its end.
    """
    import pyarrow

    count = 0
    try:
        for batch in _batches(path):
            for value in batch.to_pylist():
                count += 1
                yield count, _without_nulls(value)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read after row {count} ({what})") from None


_TOOLS = ("tools", "functions", "arguments", "parameters")


def _without_nulls(value: Any, within: bool = False) -> Any:
    """Removes null fields of objects within tools and arguments of calls."""
    if isinstance(value, list):
        return [_without_nulls(item, within) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_nulls(item, within or key in _TOOLS)
        for key, item in value.items()
        if item is not None or not within
    }


def _batches(path: str) -> Iterator[Any]:
    import pyarrow

    if path.endswith(".parquet"):
        from pyarrow import parquet

        yield from parquet.ParquetFile(path).iter_batches(batch_size=256)
        return
    from pyarrow import ipc

    with pyarrow.memory_map(path) as file:
        indexed = file.read(6) == b"ARROW1"
        file.seek(0)
        if not indexed:
            yield from ipc.open_stream(file)
            return
        reader = ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def text_rows(path: str, file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (1-based line, row) of a CSV or TSV file whose first line names the columns.

    Values are texts, empty cells null. The line is the row's first; cells may have line breaks.
    """
    dialect = csv.excel_tab if ".tsv" in path[-8:] else csv.excel
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    line = 1
    try:
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as content:
            reader = csv.reader(content, dialect, strict=True)
            names = next(reader, [])
            if len(set(names)) < len(names) or "" in names:
                raise DataError(f"{path}:1: wanted different column names, found {names}")
            line = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(names):
                    raise DataError(
                        f"{path}:{line}: wanted {len(names)} cells as in line 1, found {len(cells)}"
                    )
                if cells:
                    yield line, {n: x or None for n, x in zip(names, cells, strict=True)}
                line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not valid CSV ({error})") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{line}: invalid UTF-8 at or after this line ({error.reason})"
        ) from None
    except (EOFError, OSError) as error:
        raise DataError(f"{path}:{line}: cannot be read ({error})") from None


def open_zstd(path: str) -> BinaryIO:
    """Opens a zstd file as a decompressed stream."""
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream))
