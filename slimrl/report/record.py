"""A run as its page shows it: everything that its directory holds, read once. Whatever is missing or damaged is empty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrl.config.files import read_yaml
from slimrl.errors import DataError, SlimError
from slimrl.results import Comparison, Evaluation, Summaries, compare
from slimrl.runs.lock import is_worked_on
from slimrl.runs.measured import read_evaluation
from slimrl.runs.reader import read_metrics, read_state, read_summaries

INTERVALS = {"accuracy": ("low", "high"), "greedy": ("greedy_low", "greedy_high"), "drop": ("drop_low", "drop_high")}
"""The ends of the interval of a measure in a summary."""


@dataclass(frozen=True)
class RunRecord:
    """One run."""

    path: Path
    state: str
    """A `Status` of slimrl.runs.reader; `interrupted` also for a run whose process is gone."""
    record: Mapping[str, Any]
    """run.json."""
    settings: Mapping[str, Any]
    """By dotted key."""
    history: Sequence[Mapping[str, float]]
    """The metrics of its steps."""
    measured: Mapping[int, Summaries]
    """The summaries of its evaluations, by step."""
    first: Evaluation | None
    last: Evaluation | None
    """The first and the last evaluation, where their completions can be read; `last` is None where there is one."""
    difference: Comparison
    """Paired changes from the first to the last evaluation; empty before there are two."""
    events: Sequence[Mapping[str, Any]]
    damaged: str = ""
    """The sentence on a file that cannot be read."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def summary(self) -> Mapping[str, Any]:
        """That of a finished run, as far as it is known."""
        found = self.record.get("summary")
        return found if isinstance(found, dict) else {}

    @property
    def steps(self) -> int:
        """Taken."""
        return int(self.history[-1]["step"]) if self.history else 0

    def total(self, key: str) -> float:
        """The sum of a metric over the steps; NaN where none has it."""
        values = [row[key] for row in self.history if math.isfinite(row.get(key, math.nan))]
        return sum(values) if values else math.nan


def read_run(path: Path) -> RunRecord:
    """Read a run, whatever its state."""
    record, damaged = _known(read_state(path)), ""
    state = str(record.get("status", "")) or "damaged"
    if state == "running" and not is_worked_on(path):
        state = "interrupted"
    try:
        history: Sequence[Mapping[str, float]] = [row for row in map(_numbers, read_metrics(path)) if "step" in row]
    except DataError as error:
        history, damaged = [], str(error)
    try:
        settings = _dotted(read_yaml(str(path / "config.yaml")))
    except SlimError:
        settings = {}
    measured = _summaries(path)
    first = read_evaluation(path, min(measured)) if measured else None
    last = read_evaluation(path, max(measured)) if len(measured) > 1 else None
    summary = record.get("summary")
    difference = _changes(summary.get("difference") if isinstance(summary, dict) else None)
    if not difference:
        difference = compare(first, last) if first is not None and last is not None else {}
    return RunRecord(path, state, record, settings, history, measured, first, last, difference, _events(path), damaged)


def _dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _events(path: Path) -> list[dict[str, Any]]:
    """The rows of events.jsonl; lines that are damaged are left out."""
    return [row for row in read_lines(path / "events.jsonl").values() if "event" in row]


def _numbers(table: Any) -> dict[str, float]:
    """The numbers of a table, without what is none."""
    return (
        {key: value for key, value in table.items() if type(value) in (int, float)} if isinstance(table, dict) else {}
    )


def _whole(table: Mapping[str, float]) -> dict[str, float]:
    """A summary without the measures whose interval is not whole."""
    lacking = {key for key, ends in INTERVALS.items() if not {*ends} <= table.keys()}
    rewards = (key for key in table if "rewards/" in key and key.count("/") == 1)
    lacking |= {key for key in rewards if not {f"{key}/{end}" for end in ("low", "high", "least")} <= table.keys()}
    return {key: value for key, value in table.items() if key not in lacking and key.rpartition("/")[0] not in lacking}


def _changes(difference: Any) -> Comparison:
    """The paired changes of a summary that have their interval."""
    splits = difference.items() if isinstance(difference, dict) else ()
    return {
        split: {
            name: _numbers(one)
            for name, one in measures.items()
            if _numbers(one).keys() >= {"change", "low", "high", "n"}
        }
        for split, measures in splits
        if isinstance(measures, dict)
    }


def _summaries(path: Path) -> dict[int, Summaries]:
    """The evaluations that have an accuracy of the test split."""
    found = {
        step: {split: _whole(_numbers(table)) for split, table in splits.items()}
        for step, splits in read_summaries(path).items()
    }
    return {step: splits for step, splits in found.items() if "accuracy" in splits.get("test", {})}


def _known(value: Any) -> Any:
    """A value without what is null in it, so that it counts as missing."""
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items() if inner is not None}
    return value


def read_lines(path: Path) -> dict[int, dict[str, Any]]:
    """The objects of a file of JSON lines, by line from 0; without lines that are cut off or damaged, and empty if it cannot be
    read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    found = {}
    for number, line in enumerate(lines):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            continue
        if isinstance(row, dict):
            found[number] = row
    return found
