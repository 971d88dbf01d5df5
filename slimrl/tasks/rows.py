"""Rows of local JSONL and JSON files, read so that nothing changes on the way and every complaint names file:line.

Strings stay strings ("007", "1.50"); a number keeps the spelling that the file has, for where it is an answer. Other
readers guess column types, turn 1.50 into 1.5, take the last of two equal keys and NaN for a number; this one refuses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from slimrl.errors import DataError


@dataclass(frozen=True)
class Spelled:
    """A JSON number as the file spells it."""

    text: str

    def value(self) -> int | float:
        """As a Python number; ValueError where it has no finite value."""
        if self.text.lstrip("-").isdigit():
            return int(self.text)
        number = float(self.text)
        if not math.isfinite(number):
            raise ValueError(f"{self.text} is too large")
        return number


@dataclass(frozen=True)
class Row:
    """One object of a data file; the accessors raise DataError with the place and the way out."""

    where: str
    """`file:line`, or the Hub's name and row."""
    fields: Mapping[str, object]

    def fail(self, what: str) -> NoReturn:
        """Refuse this row; `what` goes on from the place."""
        raise DataError(f"{self.where}: {what}")

    def text(self, *names: str, blank: bool = False) -> str:
        """The first of the fields that is there, which must be a string (not blank, unless `blank`)."""
        name = self._present(*names)
        value = self.fields[name]
        if not isinstance(value, str):
            self.fail(f"field {name!r} must be a string, but is {_kind(value)}; put it in quotes")
        if not blank and not value.strip():
            self.fail(f"field {name!r} is empty; fill it in or remove the row")
        return value

    def answer(self, *names: str) -> str:
        """As `text`, but a number is taken too, as it is spelt."""
        name = self._present(*names)
        value = self.fields[name]
        if isinstance(value, Spelled):
            return value.text
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            self.fail(f"field {name!r} must be a string or a number, but is {_kind(value)}")
        return self.text(name)

    def optional_text(self, *names: str) -> str:
        """As `text`; empty where no such field is there, or null."""
        name = self._first(*names)
        return "" if name is None or self.fields[name] is None else self.text(name, blank=True)

    def number(self, *names: str) -> float:
        """A number, or 0 where no such field is there, or null."""
        name = self._first(*names)
        value = None if name is None else plain(self.fields[name])
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"field {name!r} must be a number, but is {_kind(value)}")
        return float(value)

    def rest(self, *used: str) -> dict[str, object]:
        """Every other field, numbers as Python numbers, for reward functions."""
        reserved = {"prompts", "completions", "completion_ids"} & self.fields.keys()
        if reserved:
            self.fail(f"field {min(reserved)!r} is a name that reward functions receive from SlimRL; rename it")
        return {name: plain(value) for name, value in self.fields.items() if name not in used}

    def _first(self, *names: str) -> str | None:
        return next((name for name in names if name in self.fields), None)

    def _present(self, *names: str) -> str:
        name = self._first(*names)
        if name is None:
            wanted = " or ".join(repr(n) for n in names)
            has = ", ".join(sorted(self.fields)[:8]) or "none"
            self.fail(f"the row has no field {wanted} (it has: {has}); add it, or set task.name to the file's kind")
        return name


def plain(value: object) -> Any:
    """A parsed JSON value with numbers as Python numbers."""
    if isinstance(value, Spelled):
        return value.value()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def read_rows(file: str) -> list[Row]:
    """Rows of a JSONL file, or of a JSON file that holds one array; blank lines and a byte-order mark are skipped.

    Raises DataError, naming file:line, for what is not UTF-8, not JSON, not an object, has a key twice, or is empty.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check the path") from None
    text = _decode(file, data)
    rows = list(_array(file, text) if text.lstrip()[:1] == "[" else _lines(file, text))
    if not rows:
        raise DataError(f"{file} has no rows; give a file with one JSON object a line")
    return rows


def _decode(file: str, data: bytes) -> str:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None


def _lines(file: str, text: str) -> Iterator[Row]:
    # only \n ends a line: U+2028 and its like may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file}:{number}"
            value, end = _parse(where, line, len(line) - len(line.lstrip()))
            if line[end:].strip():
                raise DataError(f"{where}: more than one JSON value on the line; write one object a line")
            yield _row(where, value)


def _array(file: str, text: str) -> Iterator[Row]:
    position, line, counted = text.index("[") + 1, 1, 0
    expected = "value or end"
    while True:
        position = _skip_space(text, position)
        line, counted = line + text.count("\n", counted, position), position
        where = f"{file}:{line}"
        character = text[position : position + 1]
        if character == "]" and expected != "value":
            break
        if expected == "comma or end":
            if character != ",":
                raise DataError(f"{where}: the array is not valid JSON, expected ',' or ']'; was the file cut short?")
            position, expected = position + 1, "value"
        else:
            value, position = _parse(where, text, position)
            yield _row(where, value)
            expected = "comma or end"
    if text[position + 1 :].strip():
        raise DataError(f"{where}: something follows the array; a file holds one array, or one object a line")


def _skip_space(text: str, position: int) -> int:
    found = re.compile(r"\S").search(text, position)
    return found.start() if found else len(text)


def _row(where: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{where}: expected an object like {{"question": ..., "answer": ...}}, found {_kind(value)}')
    return Row(where, value)


def _parse(where: str, text: str, start: int) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
        plain(value)  # numbers without a finite value
        json.dumps(value, default=vars, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}); write one object a line, or one array") from None
    except UnicodeEncodeError:
        raise DataError(f"{where}: a string holds half of a surrogate pair; save the file as UTF-8") from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply; flatten the row") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}; change the row") from None
    return value, end


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
    if twice is not None:
        raise ValueError(f"key {twice!r} is there twice")
    return dict(pairs)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON knows")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Spelled, parse_float=Spelled, parse_constant=_refuse_constant
)


def _kind(value: object) -> str:
    names = {"NoneType": "null", "bool": "a boolean", "list": "a list", "dict": "an object", "str": "a string"}
    return names.get(type(value).__name__, "a number")
