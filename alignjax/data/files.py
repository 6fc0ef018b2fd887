"""Reads rows from JSON files (``.jsonl``, ``.json``, compressed or not) and tables, strictly.

An error names file, line and field. Files are streamed: memory holds one row of JSON lines, or a
JSON list of at most ``MAX_DOCUMENT``.
"""

import glob
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from alignjax.data.records import DataError
from alignjax.data.tables import TABLES, arrow_rows, open_zstd, text_rows
from alignjax.errors import did_you_mean

MIB = 2**20
MAX_EXPANDED = 512 * MIB  # a file that expands past this size ...
MAX_RATIO = 100  # ... and past this many times its compressed size is refused as a bomb
MAX_ROW = 64 * MIB  # bytes of one line
MAX_DOCUMENT = 512 * MIB  # bytes of a .json file, which is held in memory

SUFFIXES = (
    *(f"{kind}{packed}" for kind in (".jsonl", ".json") for packed in ("", ".gz", ".zst")),
    *TABLES,
)


@dataclass(frozen=True)
class Row:
    """One JSON object and its place."""

    fields: Mapping[str, Any]
    origin: str  # "path:line", for messages; "path:line[n]" if n rows precede it in its line
    id: str  # the row's own field "id", or "file:line", "file:line[n]"
    stem: str  # file name without folder and suffix

    def get(self, key: str) -> Any:
        """Returns a field's value, which must be present and not null."""
        if key not in self.fields:
            known = ", ".join(map(repr, self.fields)) or "no fields"
            hint = did_you_mean(key, self.fields)
            raise DataError(f"{self.origin}: field {key!r} is missing{hint}; the row has {known}")
        value = self.fields[key]
        if value is None:
            raise DataError(f"{self.origin}: field {key!r} is null")
        return value

    def text(self, key: str) -> str:
        return text(self.get(key), key, self.origin)

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def items(self, key: str) -> list[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, value, "a list")
        return value

    def wrong(self, key: str, value: object, wanted: str) -> DataError:
        return DataError(f"{self.origin}: field {key!r}: wanted {wanted}, found {kind(value)}")


def kind(value: object) -> str:
    """Returns the name of a JSON value's type, for messages."""
    names = {bool: "bool", int: "number", float: "number", str: "text", list: "list"}
    return names.get(type(value), "null" if value is None else "object")


def text(value: object, key: str, origin: str) -> str:
    """Checks that a value is text that every tokenizer and file format accepts.

    Raises:
      DataError: the value is not text, or contains a NUL or a lone surrogate.
    """
    if not isinstance(value, str):
        raise DataError(f"{origin}: field {key!r}: wanted text, found {kind(value)}")
    if "\0" in value:
        raise DataError(
            f"{origin}: field {key!r} holds a NUL character at position {value.index(chr(0))}"
        )
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            raise DataError(
                f"{origin}: field {key!r} holds the lone surrogate \\u{code:04x} at position "
                f"{error.start}"
            ) from None
    return value


def expand(path: str) -> list[str]:
    """Lists the files of a path or glob, sorted.

    Raises:
      DataError: no such file (suggests a similar name in the folder), or a glob without a match.
    """
    if os.path.isfile(path):
        return [path]
    if os.path.lexists(path) and not os.path.isdir(path):
        raise _unreadable(path)
    if os.pathsep in path:  # several paths from `places.resolve`
        return [name for part in path.split(os.pathsep) for name in expand(part)]
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; give a file or a pattern such as {path}/*.jsonl")
    folder, name = os.path.split(path)
    # The name of an existing folder is literal, even if it contains *, ? or [.
    pattern = os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else path
    files = sorted(x for x in glob.glob(pattern, recursive=True) if not os.path.isdir(x))
    for file in files:
        if not os.path.isfile(file):
            raise _unreadable(file)
    if files:
        return files
    if not os.path.isdir(folder or ".") and not glob.has_magic(folder):
        raise DataError(f"{path}: no folder {folder}")
    if glob.has_magic(path):
        raise DataError(f"{path}: no file matches this pattern")
    beside = [entry for entry in os.listdir(folder or ".") if entry.endswith(SUFFIXES)]
    raise DataError(f"{path}: no such file{did_you_mean(name, beside)}")


def _unreadable(path: str) -> DataError:
    if not os.path.exists(path):
        return DataError(f"{path}: is a link to {os.readlink(path)}, which does not exist")
    return DataError(f"{path}: is not a regular file (a pipe, socket or device); copy it to a file")


def fingerprint(path: str) -> str:
    """Returns the hex sha256 of the names (without folder) and bytes of all files of a glob."""
    total = hashlib.sha256()
    for name in expand(path):
        with open(name, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        total.update(os.path.basename(name).encode() + b"\0" + content)
    return total.hexdigest()


def read_rows(path: str) -> Iterator[Row]:
    r"""Yields the rows of a file, or of all files of a glob, sorted by name.

    Lines end at ``\n`` only, so U+2028 in a text does not split a row. Blank lines and a UTF-8 byte
    order mark are skipped. A ``.json`` file may hold one list of objects, or JSON lines.

    Raises:
      DataError: a file is damaged (after its rows before the damage), or a row is no JSON object.
    """
    files = expand(path)
    shared = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in files])
    for name in files:
        if not name.endswith(SUFFIXES):
            raise DataError(f"{name}: wanted a file ending in one of {', '.join(SUFFIXES)}")
        short = os.path.relpath(os.path.abspath(name), shared)
        suffix = max((s for s in SUFFIXES if name.endswith(s)), key=len)
        stem = os.path.basename(name).removesuffix(suffix)
        before = _stamp(name)
        rows, first = 0, (0, 0)  # first: a line, and the number of its first row
        for line, value in _values(name):
            first = first if line == first[0] else (line, rows)
            place = f"{line}" if rows == first[1] else f"{line}[{rows - first[1]}]"
            if not isinstance(value, dict):
                raise DataError(f"{name}:{place}: row: wanted an object, found {kind(value)}")
            rows += 1
            yield Row(value, f"{name}:{place}", _id(value, short, place, len(files)), stem)
        if not rows:
            raise DataError(f"{name}: holds no rows (empty file)")
        if _stamp(name) != before:
            raise DataError(f"{name}: changed while it was read; start again once it is complete")


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _id(value: Mapping[str, Any], short: str, place: str, files: int) -> str:
    own = value.get("id")
    if isinstance(own, bool) or not isinstance(own, (str, int)) or own == "":
        return f"{short}:{place}"
    return text(str(own), "id", f"{short}:{place}") if files == 1 else f"{short}:{own}"


def _values(path: str) -> Iterator[tuple[int, Any]]:
    """Yields (1-based line, JSON value) for every row; in a table, the row's number."""
    if path.endswith((".parquet", ".arrow")):
        yield from arrow_rows(path)
        return
    if path.removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from text_rows(path, _open(path))
        return
    if path.removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        document, start = _document(path)
        if document[start : start + 1] == "[":
            yield from _list_items(path, document, start + 1)
            return
        del document
    for line, content, ended in _lines(path):
        if content.strip():
            yield line, _parse(path, line, content, ended)


def _open(path: str) -> BinaryIO:
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
        if path.endswith(".zst") and magic:
            return open_zstd(path)
        if magic == b"\x1f\x8b":
            return cast(BinaryIO, gzip.open(path, "rb"))
        if path.endswith(".gz") and magic:
            raise DataError(f"{path}: is named .gz but is not gzip data")
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: str) -> Iterator[tuple[int, str, bool]]:
    """Yields (1-based line, its text, whether the line ends in a newline)."""
    compressed = os.path.getsize(path)
    offset, line = 0, 0
    with _open(path) as file:
        while True:
            raw = _read(path, file, MAX_ROW + 1, offset, line_only=True)
            if not raw:
                return
            line += 1
            if len(raw) > MAX_ROW:
                raise DataError(f"{path}:{line}: row is longer than {MAX_ROW // MIB} MiB")
            _check_expansion(path, offset + len(raw), compressed)
            yield line, _decode(path, line, raw, offset), raw.endswith(b"\n")
            offset += len(raw)


def _document(path: str) -> tuple[str, int]:
    """Reads a file at once; returns its text and the position of its first non-blank character."""
    compressed = os.path.getsize(path)
    parts, size = [], 0
    with _open(path) as file:
        while part := _read(path, file, MIB, size, line_only=False):
            size += len(part)
            _check_expansion(path, size, compressed)
            if size > MAX_DOCUMENT:
                raise DataError(
                    f"{path}: a .json list may have at most {MAX_DOCUMENT // MIB} MiB; convert it "
                    "to JSON lines (.jsonl), which are streamed"
                )
            parts.append(part)
    content = _decode(path, None, b"".join(parts), 0)
    return content, len(content) - len(content.lstrip())


def _read(path: str, file: BinaryIO, size: int, offset: int, *, line_only: bool) -> bytes:
    try:
        return file.readline(size) if line_only else file.read(size)
    except EOFError:
        raise DataError(
            f"{path}: gzip data end early, after {offset} bytes of content (file truncated?)"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip data after {offset} bytes of content ({error})"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_expansion(path: str, size: int, compressed: int) -> None:
    if size > MAX_EXPANDED and size > MAX_RATIO * compressed:
        ratio = size // max(compressed, 1)
        raise DataError(
            f"{path}: expands past {MAX_EXPANDED // MIB} MiB (ratio {ratio}:1); refused as a "
            "decompression bomb"
        )


def _decode(path: str, line: int | None, raw: bytes, offset: int) -> str:
    if offset == 0 and raw.startswith(b"\xef\xbb\xbf"):
        raw, offset = raw[3:], 3
    try:
        content = raw.decode()
    except UnicodeDecodeError as error:
        bad = error.start
        if line is None:
            line = raw.count(b"\n", 0, bad) + 1
        utf16 = " (the file looks like UTF-16)" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{path}:{line}: invalid UTF-8, byte 0x{raw[bad]:02x} at offset {offset + bad}{utf16}"
        ) from None
    nul = content.find("\0")
    if nul >= 0:
        at = offset + len(content[:nul].encode())
        if line is None:
            line = content.count("\n", 0, nul) + 1
        raise DataError(f"{path}:{line}: NUL byte at offset {at}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; refuses a key that appears twice, with two values to choose from."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} appears twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _parse(path: str, line: int, content: str, ended: bool) -> Any:
    try:
        return _DECODER.decode(content)
    except json.JSONDecodeError as error:
        raise _json_error(path, line, error, content, last=not ended) from None
    except RecursionError:
        raise DataError(f"{path}:{line}: JSON is nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits, or a repeated key
        raise DataError(f"{path}:{line}: not usable JSON ({error})") from None


def _json_error(
    path: str, line: int, error: json.JSONDecodeError, content: str, *, last: bool
) -> DataError:
    unfinished = error.msg.startswith("Unterminated string")
    if last and (unfinished or error.pos >= len(content.rstrip())):
        return DataError(f"{path}:{line}: JSON ends early (file truncated?)")
    return DataError(f"{path}:{line}: not valid JSON ({error.msg} at character {error.colno})")


_BLANK = re.compile(r"[ \t\r\n]*")


def _list_items(path: str, document: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yields (line, value) for the items of a JSON list whose ``[`` ends at ``start``."""

    def skip(position: int) -> int:
        match = _BLANK.match(document, position)
        return match.end() if match else position

    line, counted = 1, 0
    position = skip(start)
    expect_item = document[position : position + 1] != "]"
    while expect_item:
        line += document.count("\n", counted, position)
        counted = position
        try:
            value, position = _DECODER.raw_decode(document, position)
        except json.JSONDecodeError as error:
            raise _json_error(path, error.lineno, error, document, last=True) from None
        except RecursionError:
            raise DataError(f"{path}:{line}: JSON is nested too deeply") from None
        except ValueError as error:
            raise DataError(f"{path}:{line}: not usable JSON ({error})") from None
        yield line, value
        position = skip(position)
        follows = document[position : position + 1]
        if follows not in (",", "]"):
            here = document.count("\n", 0, position) + 1
            problem = "JSON ends early (file truncated?)"
            if follows:
                problem = f"wanted ',' or ']', found {follows!r}"
            raise DataError(f"{path}:{here}: {problem}")
        expect_item = follows == ","
        position = skip(position + 1) if expect_item else position
    rest = skip(position + 1)
    if rest != len(document):
        here = document.count("\n", 0, rest) + 1
        raise DataError(f"{path}:{here}: text after the end of the JSON list")
