"""A row of data, wherever it was read: values unchanged, and errors that name its place.

Strings stay strings ("007", "1.50"), and a number keeps its spelling, since it may be an answer. All rows are read, and the
caller decides what happens to the bad ones.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn

from slimrl.errors import DataError
from slimrl.records import Answer, Rejected
from slimrl.tasks.formats import CONVERT, described

KEPT = 2000  # characters of a bad row that are kept
PLACES = 4  # bad rows that an error names after the first
FIELDS = 8  # fields of a row that an error lists


class Missing(Enum):
    """The value of a field that a row does not have, which is not null."""

    MISSING = "missing"


MISSING = Missing.MISSING


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
            raise ValueError(f"{short(self.text)} is too large")
        return number


@dataclass(frozen=True)
class Row:
    """One row of data; the accessors raise RowError with the place and the way out.

    A field's name may be a path, `reward_model.ground_truth` or `labels.text.0`; a field that is spelled so itself comes first.
    """

    where: str
    """`file:line`, or the name of a file without lines, or of the Hub's data set, and the row, counted from 0."""
    fields: Mapping[str, object]
    source: str = ""
    """Its first `KEPT` characters as the file has them; empty where it is no text."""

    def at(self, path: str) -> object:
        """The value of a field; MISSING where the row does not have it."""
        if path in self.fields:
            return self.fields[path]
        value: object = self.fields
        for part in path.split("."):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return MISSING
        return value

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
            self._unfit(f"field {name!r} must be a string, but is {kind_of(value)}; {way_out}", names)
        if not blank and not value.strip():
            self.fail(f"field {name!r} is empty; fill it in or remove the row")
        return value

    def answer(self, *names: str) -> str:
        """As `text`, but also a number, in its spelling."""
        name, value = self._present(*names)
        if isinstance(value, Spelled):
            return value.text
        if not isinstance(value, str):
            self._unfit(f"field {name!r} must be a string or a number, but is {kind_of(value)}", names)
        return self.text(name)

    def answers(self, *names: str) -> str:
        """As `answer`, but also a list of such, of which the first is the text and all are right, none of them twice.

        A boolean is also an answer: yes and true are right, or no and false.
        """
        name, value = self._present(*names)
        if isinstance(value, bool):
            return Answer("yes", ["true"]) if value else Answer("no", ["false"])
        if not isinstance(value, list):
            return self.answer(name)
        first, *others = dict.fromkeys(self.answer(f"{name}.{i}") for i in range(len(value))) or [""]
        if not first:
            self.fail(f"field {name!r} is an empty list; fill it in or remove the row")
        return Answer(first, others) if others else first

    def optional_text(self, *names: str) -> str:
        """As `text`; empty if the row has no such field, or null."""
        name, value = self._first(*names)
        return "" if value is None else self.text(name, blank=True)

    def number(self, *names: str, way_out: str = "correct it") -> float:
        """A number, which a table may hold as text; 0 if the row has no such field, or null or no text."""
        name, spelled = self._first(*names)
        value = plain(spelled)
        if value is None or value == "":
            return 0.0
        if isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"field {name!r} must be a number, but is {kind_of(value)}; {way_out}")
        if not abs(value) <= sys.float_info.max:  # infinite, not a number, or a longer integer
            self.fail(f"field {name!r} is not a finite number; correct it")
        return float(value)

    def rest(self, *used: str) -> dict[str, object]:
        """Every field that is not used, numbers as Python numbers, for reward functions."""
        reserved = {"prompts", "completions", "completion_ids"} & self.fields.keys()
        if reserved:
            self.fail(f"field {min(reserved)!r} is a name that reward functions receive from SlimRL; rename it")
        return {name: plain(value) for name, value in self.fields.items() if name not in used}

    def _first(self, *names: str) -> tuple[str, object]:
        """The first of these fields that the row has, with its value; ("", None) if it has none."""
        return next(((name, value) for name in names if (value := self.at(name)) is not MISSING), ("", None))

    def _unfit(self, sentence: str, names: Sequence[str]) -> NoReturn:
        """Refuse this row with the sentence, or with a description if it holds rows instead of being one."""
        found = described(self.fields, names)
        self.fail(f"{found}; {CONVERT}" if found else sentence)

    def names(self) -> str:
        """Its first fields, for a sentence."""
        names = [short(name) if name.isprintable() else repr(short(name)) for name in sorted(self.fields)]
        return ", ".join([*names[:FIELDS], *(["..."] if len(names) > FIELDS else [])]) or "none"

    def _present(self, *names: str) -> tuple[str, object]:
        """As `_first`, but refuses a row without any of the fields."""
        if all(self.at(name) is MISSING for name in names):
            self.missing(names)
        return self._first(*names)

    def missing(self, names: Sequence[str], more: str = "") -> NoReturn:
        """Refuse this row for having none of these fields; `more` ends the sentence."""
        wanted = " or ".join(repr(n) for n in names)
        way_out = f"add it, or rename the field that holds it{more}"
        self._unfit(f"the row has no field {wanted} (it has: {self.names()}); {way_out}", names)


def spelled(value: object) -> object:
    """A value of a library's reader as that of a row: finite numbers are `Spelled`, dates are text."""
    if isinstance(value, list):
        return [spelled(item) for item in value]
    if isinstance(value, dict):
        return {str(key): spelled(item) for key, item in value.items()}
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        return Spelled(str(value))
    return value


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


def short(text: str) -> str:
    """At most 60 characters of a text."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: object) -> str:
    """The type of a value in words: `a list`, `null`."""
    names = {
        "NoneType": "null",
        "bool": "a boolean",
        "list": "a list",
        "dict": "an object",
        "str": "a string",
        "bytes": "bytes",
    }
    # numbers of a row are `Spelled`, save NaN and infinities of libraries
    return names.get(type(value).__name__, "not finite" if isinstance(value, float) else "a number")
