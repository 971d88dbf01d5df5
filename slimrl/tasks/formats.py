"""Data files that are neither JSONL nor one JSON array: the sentence that names the format and the way to a readable file.

Binary formats are recognized by their first bytes, text formats by their shape. A text format is only looked for if no
row could be read, so a file with a few broken lines is never taken for another format.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimrl.errors import DataError

CONVERT = "convert it to JSONL, one JSON object a line"
UNPACK = "unpack it first, and give the file inside"
UTF8 = "save the file as UTF-8"
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "Parquet", CONVERT),
    (b"\x1f\x8b", "gzip", UNPACK),
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
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (xls)", CONVERT),
    (b"%PDF", "PDF", CONVERT),
    (b"\xff\xfe\x00\x00", "UTF-32 text", UTF8),
    (b"\x00\x00\xfe\xff", "UTF-32 text", UTF8),
    (b"\xff\xfe", "UTF-16 text", UTF8),
    (b"\xfe\xff", "UTF-16 text", UTF8),
    (b"version https://git-lfs", "a Git LFS pointer and not the data", "fetch the file itself (git lfs pull)"),
)
"""First bytes, the format's name, and the way out; no JSON text begins with any of them."""
COLUMN = re.compile(r"[^\W\d][\w .-]{0,39}")  # a name in the first line of a table
TABLE_ROWS = 5  # lines of a table that must have as many cells as its first
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
            return name, way_out
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
    elif columns := _table(start):
        delimiter, names = columns
        kind = {",": "CSV", "\t": "TSV (tab-separated)", ";": "CSV with semicolons", "|": "a table with |"}[delimiter]
        name = f"is {kind} with the columns {_listed(names)}"
    elif Path(file).suffix.lower() in (".csv", ".tsv"):
        name = f"is {Path(file).suffix[1:].upper()}"
    elif re.match(r"(---\s*\n\s*)?(- )?[A-Za-z_]\w*:(\s|$)", start):
        name = "looks like YAML"
    if name:
        raise DataError(f"{file} {name}; {CONVERT}")


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
    if fields and all(isinstance(field, list) for field in values) and not all(map(_are_objects, values)):
        return f"this is JSON by column, with the lists {_listed(list(fields))}"
    if fields and all(isinstance(field, dict) for field in values):
        return f"this is no row but an object of objects ({_listed(list(fields))})"
    return ""


def wrapped(text: str) -> int:
    """The place of the array in a text that is {"data": [{...}, {...}]}, with any name; 0 for any other text."""
    fields, end = _first_object(text)
    if len(fields) != 1 or not all(map(_are_objects, fields.values())) or text[end:].strip():
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


def _table(text: str) -> tuple[str, list[str]] | None:
    """Delimiter and column names of a text whose first line names columns and whose next ones have as many cells."""
    for delimiter in ",\t;|":
        try:
            reader = csv.reader(text.split("\n"), delimiter=delimiter, strict=True)
            rows = [row for row, _ in zip(reader, range(TABLE_ROWS + 1), strict=False) if row]
        except csv.Error:
            continue
        names = [cell.strip() for cell in rows[0]] if rows else []
        named = [name for name in names if name]  # the first may have no name, being a row's number
        if len(rows) < 2 or len(names) < 2 or not named or not all(COLUMN.fullmatch(name) for name in named):
            continue
        if all(len(row) == len(names) for row in rows):
            return delimiter, named
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name if name.isprintable() and len(name) <= 40 else repr(name[:40]) for name in names[:SHOWN])
    return shown + (", ..." if len(names) > SHOWN else "")
