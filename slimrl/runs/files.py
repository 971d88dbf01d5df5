"""The files of a run directory: whole or not there, and JSON that has no NaN."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimrl.algorithm.groups import Collected
from slimrl.algorithm.metrics import Metrics
from slimrl.errors import DataError
from slimrl.runs.durable import write_bytes

UNFINISHED = ".unfinished-"


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, and on the disk."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{path.name}-{os.getpid()}-{time.monotonic_ns()}")
    try:
        write_bytes(temporary, text.encode())
        temporary.replace(path)
    except OSError as error:
        if error.errno:
            error.filename, error.filename2 = str(path), None  # the name that a reader knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished_files(folder: Path) -> None:
    """What a killed process left of files that it was writing."""
    for file in folder.glob(f"{UNFINISHED}*"):
        file.unlink()


def read_state(path: Path) -> dict[str, Any]:
    """run.json of a run folder; empty where there is none that can be read."""
    try:
        state = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def read_metrics(path: Path) -> list[Metrics]:
    """The rows of metrics.jsonl; a last line that was cut off, as by a kill, is left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        return [{key: float(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"{path} is damaged; restore it, or start the run anew under another name") from None


def as_json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def as_line(row: Mapping[str, float]) -> str:
    return json.dumps({key: finite(value) for key, value in row.items()}) + "\n"


def rollout_rows(collected: Collected) -> list[dict[str, Any]]:
    """Every completion sampled for a step, and whether its group was trained on."""
    trained = {id(group) for group in collected.groups}
    fresh = {id(group) for group in collected.sampled}
    groups = [*collected.sampled, *(group for group in collected.groups if id(group) not in fresh)]
    return [
        {
            "id": rollout.problem.id,
            "question": rollout.problem.question,
            "answer": rollout.problem.answer,
            "sample": sample,
            "sampled_at": group.step + 1,
            "trained": id(group) in trained,
            "text": rollout.text,
            "correct": rollout.correct,
            "reward": finite(rollout.reward),
            "scores": {name: finite(value) for name, value in rollout.scores.items()},
            "unscorable": rollout.unscorable,
            "finish": rollout.completion.finish,
            "tokens": len(rollout.completion.token_ids),
        }
        for group in groups
        for sample, rollout in enumerate(group.rollouts)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    write_text(path, as_jsonl(rows))


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def finite(value: float) -> float | str:
    """JSON has no NaN: it is written as a string, never as a number that it is not."""
    return value if math.isfinite(value) else str(value)
