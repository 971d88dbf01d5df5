"""What a run directory says, as a study needs it: one frozen record of a run, as far as it came."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from slimrl.errors import DataError
from slimrl.study.spec import Arm

Status = Literal["finished", "diverged", "failed", "missing"]
DIVERGED_VALUE = 0.0
"""A run that diverged is worth nothing to who needs a model, so it counts as no answer right; it is never left out."""
CURVES = {
    "accuracy": "accuracy",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
    "kl": "kl",
    "reward": "reward",
}
"""Curves of a run by the key of metrics.jsonl."""
DECLARED = "declared.json"
LONGEST_NAME = 56


@dataclass(frozen=True)
class Run:
    """One run of an arm, as far as it came."""

    arm: str
    index: int
    seed: int
    status: Status
    reason: str
    folder: str
    """Within the study's."""
    steps: int
    tokens: int
    """Sampled in training."""
    seconds: float
    """Training without set-up and evaluation."""
    weights: str
    """SHA-256 of the trained weights."""
    before: Mapping[str, float]
    """Held-out measures of the untrained model: see `after`."""
    after: Mapping[str, float]
    """`test/sampled`, `test/greedy` and so on (strict accuracy), and of sampled test completions `lenient`, `format`,
    `truncated` (shares), `mean_length` (tokens), `right`, `right_out_of_form`, `wrong_in_form`, `wrong_out_of_form`."""
    items: Mapping[str, float]
    """Share right of the primary measure, by problem."""
    curves: Mapping[str, Sequence[float]]
    """Per step: `step`, `tokens`, `seconds` so far, and CURVES; NaN where a step had none."""
    held_out: Sequence[tuple[float, float, float]]
    """Tokens and seconds so far, and the primary measure, at every evaluation."""
    inert: Sequence[str]
    """What the run itself found inert."""
    confounded: Sequence[str]
    """What it found to act as something else too."""

    @property
    def counts(self) -> bool:
        """Whether it is a result."""
        return self.status in ("finished", "diverged")


def run_folder(folder: Path, arm: str, index: int) -> Path:
    """Where a run lies within its study's folder; a long name keeps its beginning and gets a hash."""
    name = arm.replace("+", ".")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return folder / "runs" / f"{name}-{index}"


def read_chosen(folder: Path) -> Mapping[str, Any]:
    """Numbers that a run chose where its settings say `auto`, by dotted key."""
    chosen: Mapping[str, Any] = read_json(folder / "run.json").get("chosen", {})
    return chosen


def read_run(folder: Path, arm: Arm, index: int, primary: str) -> Run:
    """One run directory; one that is not there, or broke off, has no measures."""
    state = _json(folder / "run.json") or {}
    recorded = state.get("status", "missing")
    status: Status = recorded if recorded in ("finished", "diverged", "failed") else "missing"
    history = read_json_lines(folder / "metrics.jsonl") if status in ("finished", "diverged") else []
    summary = state.get("summary", {})
    evaluations = sorted((folder / "evals").glob("step-*.json")) if status in ("finished", "diverged") else []
    points_of_curve = {int(row["step"]): (row["num_tokens"], row["time/total"]) for row in history}
    held_out = []
    for path in evaluations:
        measured = _measures(_json(path) or {})
        tokens, seconds = points_of_curve.get(int(path.stem.partition("-")[2]), (0.0, 0.0))
        held_out.append((float(tokens), float(seconds), measured.get(primary, math.nan)))
    rows = read_json_lines(evaluations[-1].with_suffix(".jsonl")) if status == "finished" else []
    return Run(
        arm=arm.name,
        index=index,
        seed=arm.seed(index),
        status=status,
        reason=str(state.get("reason", "")),
        folder=f"runs/{folder.name}",
        steps=len(history),
        tokens=int(history[-1]["num_tokens"]) if history else 0,
        seconds=float(history[-1]["time/total"]) if history else 0.0,
        weights=str(summary.get("weights", "")),
        before=_measures(_json(evaluations[0]) or {}) if evaluations else {},
        after=_measures(_json(evaluations[-1]) or {}) | _form(rows) if status == "finished" else {},
        items=_items(rows, primary),
        curves={
            "step": [float(row["step"]) for row in history],
            "tokens": [float(row["num_tokens"]) for row in history],
            "seconds": [float(row["time/total"]) for row in history],
            **{name: [_number(row.get(key)) for row in history] for name, key in CURVES.items()},
            "no_signal": [_number(row.get("sampling/no_signal")) for row in history],
        },
        held_out=held_out,
        inert=summary.get("inert", []),
        confounded=summary.get("confounded", []),
    )


def _measures(summaries: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for split, summary in summaries.items():
        found[f"{split}/sampled"] = summary["accuracy"]
        if "greedy" in summary:
            found[f"{split}/greedy"] = summary["greedy"]
    for key in ("lenient", "format", "truncated", "mean_length"):
        if "test" in summaries:
            found[key] = summaries["test"][key]
    return found


def _form(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sampled test completions by whether the answer is right (leniently read) and whether its form is."""
    drawn = [row for row in rows if row["split"] == "test" and row["mode"] == "sampled"]
    if not drawn:
        return {}
    right = np.array([row["lenient"] or row["strict"] for row in drawn], dtype=bool)
    form = np.array([row["well_formed"] for row in drawn], dtype=bool)
    cells = {
        "right": right & form,
        "right_out_of_form": right & ~form,
        "wrong_in_form": ~right & form,
        "wrong_out_of_form": ~right & ~form,
    }
    return {name: float(cell.mean()) for name, cell in cells.items()}


def _items(rows: Sequence[Mapping[str, Any]], primary: str) -> dict[str, float]:
    split, mode = primary.split("/")
    verdicts: dict[str, list[float]] = {}
    for row in rows:
        if (row["split"], row["mode"]) == (split, mode):
            verdicts.setdefault(row["id"], []).append(float(row["strict"]))
    return {problem: fmean(values) for problem, values in verdicts.items()}


def value(run: Run, primary: str) -> float:
    """A run's primary measure."""
    if run.status == "diverged":
        return DIVERGED_VALUE
    if primary not in run.after:
        raise DataError(
            f"{run.folder} is finished and has no measure {primary}; remove that folder and run the study again"
        )
    return run.after[primary]


def read_declaration(folder: Path) -> dict[str, Any]:
    """What a study declared before its first run; empty where none has begun."""
    return read_json(folder / DECLARED)


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file; empty where there is none, or nothing that can be read."""
    found = _json(path)
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        # only \n ends a line: U+2028 and its like may stand inside a JSON string
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        return []
