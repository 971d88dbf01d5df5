"""Formats of data files: tables and columns are known by their shape, and what is not read is named with the way out.

Binary formats are recognized by their first bytes, text formats by their shape.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence

from slimrl.errors import DataError

CONVERT = "convert it to JSONL, one JSON object a line"
UNPACK = "unpack it first, and give the file inside"
UTF8 = "save the file as UTF-8"
SAVE = "save its sheet as CSV"
WORKBOOK = ("an Excel workbook (xlsx)", SAVE)
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\xfd7zXZ\x00", "xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "Zstandard (zst)", UNPACK),
    (b"\x04\x22\x4d\x18", "LZ4", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", UNPACK),
    (b"ARROW1\x00\x00", "Arrow (Feather)", CONVERT),
    (b"FEA1", "Feather", CONVERT),
    (b"\xff\xff\xff\xff", "an Arrow stream", CONVERT),
    (b"ORC", "ORC", CONVERT),
    (b"Obj\x01", "Avro", CONVERT),
    (b"\x89HDF\r\n\x1a\n", "HDF5", CONVERT),
    (b"SQLite format 3\x00", "an SQLite database", CONVERT),
    (b"\x93NUMPY", "a NumPy array", CONVERT),
    *((bytes((0x80, protocol)), "a Python pickle", CONVERT) for protocol in range(2, 6)),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (xls)", SAVE),
    (b"%PDF", "PDF", CONVERT),
    (b"\xff\xfe\x00\x00", "UTF-32 text", UTF8),
    (b"\x00\x00\xfe\xff", "UTF-32 text", UTF8),
    (b"\xff\xfe", "UTF-16 text", UTF8),
    (b"\xfe\xff", "UTF-16 text", UTF8),
    (b"version https://git-lfs", "a Git LFS pointer and not the data", "fetch the file itself (git lfs pull)"),
)
"""First bytes, the format's name, and the way out; no JSON text begins with any of them."""
COLUMN = re.compile(r"[^\W\d][\w .-]{0,39}")  # a name in the first line of a text that may be a table
NAMED_COLUMN = re.compile(r"[^\W\d][\w .:/()%#&'-]{0,59}")  # the same in a file that is named as one
TABLE_ROWS = 5  # lines of a table that must have as many cells as its first
DELIMITERS = ",\t;|"
SHOWN = 6  # names of columns that a sentence lists
LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)
"""Reads any JSON value, numbers as text; finds the end of one that is refused."""


def refuse_binary(file: str, data: bytes) -> None:
    """Raises DataError, naming the format, for a file whose bytes cannot be JSON in UTF-8."""
    name, way_out = _binary(data)
    if way_out == UTF8:  # text has lines
        raise DataError(f"{file}:1: this is {name}; {way_out}")
    if name:
        raise DataError(f"{file} is {name}, which is not read; {way_out}")


def _binary(data: bytes) -> tuple[str, str]:
    for magic, name, way_out in MAGIC:
        if data.startswith(magic):
            return WORKBOOK if b"xl/workbook.xml" in data else (name, way_out)
    if data[257:262] == b"ustar":
        return "a tar archive", UNPACK
    # JSON begins with two ASCII characters, so zeros among its first bytes tell a wider encoding
    zeros = [not byte for byte in data[:4]]
    if zeros in ([True, True, True, False], [False, True, True, True]):
        return "UTF-32 text", UTF8
    if zeros in ([True, False, True, False], [False, True, False, True]):
        return "UTF-16 text", UTF8
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page (HTML)", "download the data file itself"
    return ("XML", CONVERT) if start.startswith(b"<") else ("", "")


def refuse_layout(file: str, text: str) -> None:
    """Raises DataError, naming the format, for a text without a single row of JSON whose shape is known."""
    start = text.lstrip()
    first, end = _first_object(start)
    name = ""
    if looks_like_python(text):
        name = "holds Python dictionaries, which are not JSON (json.dumps writes them as JSON)"
    elif first and "\n" in start[:end]:
        spread = f"holds JSON objects spread over several lines (the first with the fields {_listed(list(first))})"
        name = described(first, ()).removeprefix("this ") or spread
    elif re.match(r"(---\s*\n\s*)?(- )?[A-Za-z_]\w*:(\s|$)", start):
        name = "looks like YAML"
    if name:
        raise DataError(f"{file} {name}; {CONVERT}")


def by_column(text: str) -> bool:
    """True for one object of lists, {"question": [...], "answer": [...]}, which are no lists of rows or chat messages."""
    fields, end = _first_object(text)
    lists = [field for field in fields.values() if isinstance(field, list)]
    if not lists or len(lists) < len(fields) or text[end:].strip() or all(map(_are_objects, lists)):
        return False
    return not any(map(are_messages, lists))


def are_messages(value: object) -> bool:
    """True for a list of chat messages, `{"role": "user", "content": "..."}` or `{"from": "human", "value": "..."}`, of which one
    that calls tools may have no content.
    """
    if not isinstance(value, list) or not value:
        return False
    forms = ({"role", "content"}, {"from", "value"}, {"role", "tool_calls"})
    return all(isinstance(m, dict) and any(m.keys() >= form for form in forms) for m in value)


def described(fields: Mapping[str, object], wanted: Sequence[str]) -> str:
    """The description of an object that holds rows instead of being one, as the start of a sentence; empty if it may be a row.

    `wanted` are the names of a field that a row must have.
    """

    def holds_rows(field: object) -> bool:
        return isinstance(field, list) and any(isinstance(item, dict) and item.keys() & {*wanted} for item in field)

    values = fields.values()
    holding = [name for name, field in fields.items() if holds_rows(field)]
    if holding and not fields.keys() & {*wanted}:
        apart = ", each of which needs a file of its own (task.path, task.test_path)" if len(holding) > 1 else ""
        return f"this is no row but holds rows in {_listed(holding)}{apart}"
    if fields and all(isinstance(field, dict) for field in values):
        return f"this is no row but an object of objects ({_listed(list(fields))})"
    return ""


def wrapped(text: str) -> int:
    """The place of the array in a text that is {"data": [{...}, {...}]}, with any name; 0 for any other text."""
    fields, end = _first_object(text)
    (held,) = fields.values() if len(fields) == 1 else ([],)
    if not _are_objects(held) or are_messages(held) or text[end:].strip():
        return 0
    opening = re.match(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*', text)
    return opening.end() if opening else 0


def looks_like_python(text: str) -> bool:
    """True if a text begins as the repr of a dictionary, or of a list of them: with a key in single quotes."""
    return bool(re.match(r"\s*[\[(]?\s*\{\s*u?'", text))


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _first_object(text: str) -> tuple[dict[str, object], int]:
    """The JSON object that a text begins with, after blanks, and the place of its end; empty if there is none."""
    try:
        value, end = LENIENT.raw_decode(text, len(text) - len(text.lstrip()))
    except (ValueError, RecursionError):
        return {}, 0
    return (value, end) if isinstance(value, dict) else ({}, 0)


def find_table(text: str, name: re.Pattern[str] = COLUMN) -> str:
    """The delimiter of a text whose first line names columns, each like `name`, and whose next ones have as many cells; empty for
    other texts.
    """
    for delimiter in DELIMITERS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            rows = [row for row, _ in zip(reader, range(TABLE_ROWS + 1), strict=False) if row]
        except csv.Error:
            continue
        names = column_names(rows[0], name) if len(rows) > 1 else []
        if len(names) > 1 and all(len(row) == len(names) for row in rows):
            return delimiter
    return ""


def delimiter_of(text: str, default: str) -> str:
    """The delimiter of a file that is named as a table: what separates the names of its columns."""
    return find_table(text, NAMED_COLUMN) or default


def column_names(header: Sequence[str], name: re.Pattern[str] = NAMED_COLUMN) -> list[str]:
    """The names of columns in a table's first line, each like `name`, of which the first may be empty, being a row's number; none
    if they are no names.
    """
    names = [cell.strip() for cell in header]
    named = names if names[:1] != [""] else names[1:]
    return names if named and all(name.fullmatch(one) for one in named) else []


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) <= 40 else repr(name[:40]) for name in names[:SHOWN])
    return shown + (", ..." if len(names) > SHOWN else "")
