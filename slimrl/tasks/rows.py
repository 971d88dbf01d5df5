"""Rows of local JSONL and JSON files, with values unchanged and errors that name file:line.

Strings stay strings ("007", "1.50"), and a number keeps its spelling, since it may be an answer. NaN and two equal keys,
which other readers accept, make a row bad. All rows are read, and the caller decides what happens to the bad ones.
"""

import json
import math
import re
import sys
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slimrl.errors import DataError
from slimrl.records import Rejected
from slimrl.tasks.formats import CONVERT, LENIENT, described, looks_like_python, refuse_binary, refuse_layout, wrapped

KEPT = 2000  # characters of a bad row that are kept
PLACES = 4  # bad rows that an error names after the first
FIELDS = 8  # fields of a row that an error lists


class RowError(DataError):
    """A bad row; the rows around it may be good."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Spelled:
    """A JSON number as the file spells it."""

    text: str

    def value(self) -> int | float:
        """The number for Python. Raises ValueError if it has no finite value."""
        try:
            number = int(self.text) if self.text.lstrip("-").isdigit() else float(self.text)
        except ValueError:  # Python reads no integer of more than 4,300 digits
            number = math.inf
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"{_short(self.text)} is too large")
        return number


@dataclass(frozen=True)
class Row:
    """One object of a data file; the accessors raise RowError with the place and the way out."""

    where: str
    """`file:line`, or the Hub's name and row."""
    fields: Mapping[str, object]
    source: str = ""
    """Its first `KEPT` characters as the file has them; empty for rows of the Hub."""

    def fail(self, what: str) -> NoReturn:
        """Refuse this row; `what` follows the place in the sentence."""
        raise RowError(self.where, what)

    def rejected(self, reason: str) -> Rejected:
        """The record of this row as left out."""
        source = self.source or json.dumps({name: plain(value) for name, value in self.fields.items()}, default=str)
        return Rejected(self.where, reason, source[:KEPT])

    def text(self, *names: str, blank: bool = False) -> str:
        """The first field of these names that the row has, which must be a string (not blank, unless `blank`)."""
        name, value = self._present(*names)
        if not isinstance(value, str):
            way_out = "write it as one text" if isinstance(value, list | dict) else "put it in quotes"
            self._unfit(f"field {name!r} must be a string, but is {_kind(value)}; {way_out}", names)
        if not blank and not value.strip():
            self.fail(f"field {name!r} is empty; fill it in or remove the row")
        return value

    def answer(self, *names: str) -> str:
        """As `text`, but also a number, in its spelling."""
        name, value = self._present(*names)
        if isinstance(value, Spelled):
            return value.text
        if not isinstance(value, str):
            self._unfit(f"field {name!r} must be a string or a number, but is {_kind(value)}", names)
        return self.text(name)

    def optional_text(self, *names: str) -> str:
        """As `text`; empty if the row has no such field, or null."""
        name, value = self._first(*names)
        return "" if value is None else self.text(name, blank=True)

    def number(self, *names: str) -> float:
        """A number; 0 if the row has no such field, or null."""
        name, spelled = self._first(*names)
        value = plain(spelled)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"field {name!r} must be a number, but is {_kind(value)}")
        if not abs(value) <= sys.float_info.max:  # infinite, not a number, or a longer integer
            self.fail(f"field {name!r} is not a finite number; correct it")
        return float(value)

    def rest(self, *used: str) -> dict[str, object]:
        """Every other field, numbers as Python numbers, for reward functions."""
        reserved = {"prompts", "completions", "completion_ids"} & self.fields.keys()
        if reserved:
            self.fail(f"field {min(reserved)!r} is a name that reward functions receive from SlimRL; rename it")
        return {name: plain(value) for name, value in self.fields.items() if name not in used}

    def _first(self, *names: str) -> tuple[str, object]:
        """The first of these fields that the row has, with its value; ("", None) if it has none."""
        return next(((name, self.fields[name]) for name in names if name in self.fields), ("", None))

    def _unfit(self, sentence: str, names: Sequence[str]) -> NoReturn:
        """Refuse this row with the sentence, or with a description if it holds rows instead of being one."""
        found = described(self.fields, names)
        self.fail(f"{found}; {CONVERT}" if found else sentence)

    def _has(self) -> str:
        """Its first fields, for a sentence."""
        names = [_short(name) if name.isprintable() else repr(_short(name)) for name in sorted(self.fields)]
        return ", ".join([*names[:FIELDS], *(["..."] if len(names) > FIELDS else [])]) or "none"

    def _present(self, *names: str) -> tuple[str, object]:
        """As `_first`, but refuses a row without any of the fields."""
        if self.fields.keys().isdisjoint(names):
            wanted = " or ".join(repr(n) for n in names)
            self._unfit(
                f"the row has no field {wanted} (it has: {self._has()}); add it, or rename the field that holds it",
                names,
            )
        return self._first(*names)


def plain(value: object) -> Any:
    """A parsed JSON value with numbers as Python numbers."""
    if isinstance(value, Spelled):
        return value.value()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def bad_rows(rejected: Sequence[Rejected]) -> str:
    """The start of a sentence on bad rows: the reason of the first, the number of others, and the places of a few."""
    first, *more = rejected
    sentence = f"{first.where}: {first.reason}"
    if not more:
        return sentence
    places = ", ".join(row.where for row in more[:PLACES]) + (", ..." if len(more) > PLACES else "")
    return f"{sentence}; {len(more):,} more {'row is' if len(more) == 1 else 'rows are'} bad ({places})"


def read_rows(file: str) -> list[Row]:
    """As `scan_rows`, but raises DataError if any row is bad."""
    rows = scan_rows(file)
    rejected = [row for row in rows if isinstance(row, Rejected)]
    if rejected:
        raise DataError(bad_rows(rejected))
    return [row for row in rows if isinstance(row, Row)]


def scan_rows(file: str) -> list[Row | Rejected]:
    """Rows of a JSONL file, or of a JSON file that holds one array, bare or as the only field of an object.

    Blank lines and a byte-order mark are skipped, and a CR alone ends a line too. A row is rejected if it is not UTF-8, not
    JSON or not an object, or has a key twice or a number that JSON does not know. Raises DataError for a file in another
    format, naming it, and, naming file:line, for an array that is not UTF-8 or not JSON.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check the path") from None
    refuse_binary(file, data)
    # a byte that is not UTF-8 becomes half of a surrogate pair, which no UTF-8 holds, and spoils only its own line
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    text = re.sub(r"\r(?!\n)", "\n", text)  # no JSON string holds either
    rows = list(_rows(file, text))
    if not rows:
        raise DataError(f"{file} has no rows; give a file with one JSON object a line")
    if not any(isinstance(row, Row) for row in rows):
        refuse_layout(file, text)
    return rows


def _rows(file: str, text: str) -> Iterator[Row | Rejected]:
    if text.lstrip()[:1] == "[":
        if looks_like_python(text):
            refuse_layout(file, text)
        return _array(file, text, text.index("["))
    if start := wrapped(text):
        return _array(file, text, start, closing="}")
    # only \n ends a line: U+2028 and its like may stand inside a JSON string
    lines = enumerate(text.split("\n"), start=1)
    return (_line(f"{file}:{number}", line) for number, line in lines if line.strip())


def _require_utf8(where: str, text: str) -> None:
    if foreign := re.search("[\udc80-\udcff]", text):
        raise RowError(where, f"byte 0x{ord(foreign[0]) - 0xDC00:02x} is not UTF-8; save the file as UTF-8")


def _reject(where: str, error: RowError, source: str) -> Rejected:
    text = source[:KEPT].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Rejected(where, error.reason, text[:KEPT])


def _line(where: str, line: str) -> Row | Rejected:
    try:
        _require_utf8(where, line)
        value, end = _parse(where, line, len(line) - len(line.lstrip()))
        rest = line[end:].strip()
        if rest == ",":
            raise RowError(where, "a comma follows the object; remove it, or put all objects in one array, [ ... ]")
        if rest:
            raise RowError(where, "more than one JSON value on the line; write one object a line")
        return _row(where, value, line)
    except RowError as error:
        return _reject(where, error, line.strip())


def _array(file: str, text: str, start: int, closing: str = "") -> Iterator[Row | Rejected]:
    """The elements of the array that begins at `start` and is followed by `closing`."""
    for number, line in enumerate(text.split("\n"), start=1):
        _require_utf8(f"{file}:{number}", line)
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
        return _reject(where, error, text[start:end]), end


def _skip_space(text: str, position: int) -> int:
    found = _TEXT.search(text, position)
    return found.start() if found else len(text)


def _row(where: str, value: object, source: str) -> Row:
    if not isinstance(value, dict):
        raise RowError(where, f'expected an object like {{"question": ..., "answer": ...}}, found {_kind(value)}')
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
            raise ValueError(f"key {_short(key)!r} is there twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


_TEXT = re.compile(r"\S")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Spelled, parse_float=Spelled, parse_constant=_refuse_constant
)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: object) -> str:
    names = {"NoneType": "null", "bool": "a boolean", "list": "a list", "dict": "an object", "str": "a string"}
    # numbers of a row are `Spelled`, save the Hub's NaN and infinities
    return names.get(type(value).__name__, "not finite" if isinstance(value, float) else "a number")
