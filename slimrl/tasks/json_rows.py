"""Rows of JSON text: one object a line, one array of objects, or one object of columns.

NaN and two equal keys, which other readers accept, make a row bad.
"""

import json
import re
from bisect import bisect
from collections.abc import Iterator
from typing import NoReturn

from slimrl.errors import DataError
from slimrl.records import Rejected
from slimrl.tasks.formats import LENIENT, looks_like_python, refuse_layout, wrapped
from slimrl.tasks.rows import KEPT, Row, RowError, Spelled, kind_of, plain, short


def json_rows(file: str, text: str) -> Iterator[Row | Rejected]:
    """Rows of JSONL, or of one array, bare or as the only field of an object.

    Blank lines are skipped. A row is rejected if it is not UTF-8, not JSON or not an object, or has a key twice or a number
    that JSON does not know. Raises DataError, naming file:line, for an array that is not UTF-8 or not JSON.
    """
    if text.lstrip()[:1] == "[":
        if looks_like_python(text):
            refuse_layout(file, text)
        return _array(file, text, text.index("["))
    if start := wrapped(text):
        return _array(file, text, start, closing="}")
    # only \n ends a line: U+2028 and its like may stand inside a JSON string
    lines = enumerate(text.split("\n"), start=1)
    return (_line(f"{file}:{number}", line) for number, line in lines if line.strip())


def column_rows(file: str, text: str) -> list[Row | Rejected]:
    """Rows of one object whose fields are lists, as `formats.by_column` knows it; raises DataError for one that is not JSON."""
    for number, line in enumerate(text.split("\n"), start=1):
        require_utf8(f"{file}:{number}", line)
    value, _ = _parse(f"{file}:1", text, len(text) - len(text.lstrip()))
    columns: dict[str, list[object]] = value  # type: ignore[assignment]
    sizes = {name: len(column) for name, column in columns.items()}
    if len({*sizes.values()}) > 1:
        listed = ", ".join(f"{short(name)} {size}" for name, size in sizes.items())
        raise DataError(f"{file} is JSON by column, and its lists have different lengths ({listed}); correct them")
    indices = range(next(iter(sizes.values())))
    return [Row(f"{file} row {i}", {name: column[i] for name, column in columns.items()}) for i in indices]


def require_utf8(where: str, text: str) -> None:
    """Raises RowError for a byte that is not UTF-8, which decoding made half of a surrogate pair."""
    if foreign := re.search("[\udc80-\udcff]", text):
        raise RowError(where, f"byte 0x{ord(foreign[0]) - 0xDC00:02x} is not UTF-8; save the file as UTF-8")


def reject(where: str, error: RowError, source: str) -> Rejected:
    """The record of a row that could not be read."""
    text = source[:KEPT].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Rejected(where, error.reason, text[:KEPT])


def _line(where: str, line: str) -> Row | Rejected:
    try:
        require_utf8(where, line)
        value, end = _parse(where, line, len(line) - len(line.lstrip()))
        rest = line[end:].strip()
        if rest == ",":
            raise RowError(where, "a comma follows the object; remove it, or put all objects in one array, [ ... ]")
        if rest:
            raise RowError(where, "more than one JSON value on the line; write one object a line")
        return _row(where, value, line)
    except RowError as error:
        return reject(where, error, line.strip())


def _array(file: str, text: str, start: int, closing: str = "") -> Iterator[Row | Rejected]:
    """The elements of the array that begins at `start` and is followed by `closing`."""
    for number, line in enumerate(text.split("\n"), start=1):
        require_utf8(f"{file}:{number}", line)
    line_ends = [found.end() for found in re.finditer("\n", text)]

    def where() -> str:
        return f"{file}:{bisect(line_ends, position) + 1}"

    position, comma = _skip_space(text, start + 1), False
    while comma or text[position : position + 1] != "]":
        row, position = _element(where(), text, position)
        yield row
        position = _skip_space(text, position)
        comma = text[position : position + 1] == ","
        if comma:
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise DataError(f"{where()}: the array is not valid JSON, expected ',' or ']'; was the file cut short?")
    if text[position + 1 :].strip() != closing:
        raise DataError(f"{where()}: something follows the array; a file holds one array, or one object a line")


def _element(where: str, text: str, start: int) -> tuple[Row | Rejected, int]:
    try:
        value, end = _parse(where, text, start)
        return _row(where, value, text[start:end]), end
    except RowError as error:
        try:
            _, end = LENIENT.raw_decode(text, start)
        except (ValueError, RecursionError):  # the end of the element is unknown
            raise error from None
        return reject(where, error, text[start:end]), end


def _skip_space(text: str, position: int) -> int:
    found = _TEXT.search(text, position)
    return found.start() if found else len(text)


def _row(where: str, value: object, source: str) -> Row:
    if not isinstance(value, dict):
        raise RowError(where, f'expected an object like {{"question": ..., "answer": ...}}, found {kind_of(value)}')
    return Row(where, value, source.strip()[:KEPT])


def _parse(where: str, text: str, start: int) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
        plain(value)  # numbers without a finite value
        if _SURROGATE.search(text, start, end):  # half of a pair cannot be written again
            json.dumps(value, default=vars, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise RowError(where, f"not valid JSON ({error.msg}); write one object a line, or one array") from None
    except UnicodeEncodeError:
        raise RowError(where, "a string holds half of a surrogate pair; save the file as UTF-8") from None
    except RecursionError:
        raise RowError(where, "nested too deeply; flatten the row") from None
    except ValueError as error:
        raise RowError(where, f"{error}; change the row") from None
    return value, end


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {short(key)!r} is there twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


_TEXT = re.compile(r"\S")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Spelled, parse_float=Spelled, parse_constant=_refuse_constant
)
