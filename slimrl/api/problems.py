"""Data as Python gives it: rows in memory, files, data sets of the Hub, and the tasks that SlimRL knows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from slimrl.api.settings import Place
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.runs.reader import DATA, TEST_DATA

Rows = Iterable[Mapping[str, Any]]
Data = Place | Rows
"""Rows, as a list of dictionaries, a `datasets.Dataset` or a DataFrame of pandas; a file; a data set on the Hub; or the name of a
task, as `gsm8k`."""
TASKS = frozenset(get_args(TaskConfig.model_fields["name"].annotation)) - {"jsonl"}


@dataclass(frozen=True)
class Given:
    """Data as settings, and the files that are to be written for them."""

    settings: dict[str, Any] = field(default_factory=dict)
    """The section `task`, in which a file to be written has its bare name."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Text by name."""


def read_data(data: Data | None, test_data: Data | None = None) -> Given:
    """The settings of training and held-out data; raises DataError for rows that no file can hold, SettingsError for what is no
    data.
    """
    settings: dict[str, Any] = {}
    files: dict[str, str] = {}
    for key, name, given in (("path", DATA, data), ("test_path", TEST_DATA, test_data)):
        if given is None:
            continue
        place = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
        if place in TASKS and key == "path":
            settings["name"] = place
        elif place in TASKS:
            raise SettingsError(f"test_data={place!r} is the name of a task; give its held-out rows, or a file")
        elif place:
            settings[key] = place
            if key == "path":
                settings["name"] = "jsonl"
        elif isinstance(given, str):
            raise SettingsError(
                f"{'data' if key == 'path' else 'test_data'} is an empty text; give rows, a file or a task"
            )
        else:
            files[name] = jsonl(given, "data" if key == "path" else "test_data")
            settings |= {key: name, "name": "jsonl"}
    return Given(settings, files)


def jsonl(rows: Any, what: str) -> str:
    """Rows as one JSON object a line; raises DataError, which names the row."""
    if isinstance(rows, Mapping):
        if parts := [key for key, part in rows.items() if hasattr(part, "features")]:  # datasets.DatasetDict
            raise DataError(
                f"{what} has the splits {', '.join(map(str, parts))}; give one of them, as {what}[{str(parts[0])!r}]"
            )
        raise DataError(f"{what} is one mapping and no rows; give a list of dictionaries, one for each problem")
    if hasattr(rows, "to_dicts"):  # polars
        rows = rows.to_dicts()
    elif hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # pandas
        rows = rows.to_dict(orient="records")
    if not isinstance(rows, Iterable):
        raise DataError(
            f"{what} is a {type(rows).__name__}; give a list of dictionaries, a Dataset, a DataFrame or a path"
        )
    lines = [_line(row, f"{what}[{index}]") for index, row in enumerate(rows)]
    if not lines:
        raise DataError(
            f"{what} has no rows; give at least a few problems, each a dictionary with a question and an answer"
        )
    return "".join(lines)


def _line(row: object, where: str) -> str:
    if not isinstance(row, Mapping):
        raise DataError(
            f'{where} is a {type(row).__name__} and no dictionary like {{"question": ..., "answer": ...}}; correct it'
        )
    try:
        plain = {str(key): _value(value) for key, value in row.items()}
        line = json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"
        line.encode()  # half of a surrogate pair
        return line
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} holds what JSON does not have ({error}); change or remove that column") from None


def _value(value: Any) -> Any:
    """A value as JSON has it: a missing one of pandas is null, numbers of NumPy are Python's, dates are text."""
    if isinstance(value, Mapping):
        return {str(key): _value(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # of NumPy, one or many
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_value(inner) for inner in value]
    if (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else value


def as_given(sentence: str, folder: Place) -> str:
    """A sentence on a file of rows, in the words of what was given: its line 3 is `data[2]`."""
    for name, what in ((DATA, "data"), (TEST_DATA, "test_data")):
        file = os.path.join(os.fspath(folder), name)
        head, *rest = sentence.split(f"{file}:")
        for part in rest:
            digits = part[: len(part) - len(part.lstrip("0123456789"))]
            head += f"{what}[{int(digits) - 1}]{part[len(digits) :]}" if digits else f"{what}:{part}"
        sentence = head.replace(file, what)
    return sentence
