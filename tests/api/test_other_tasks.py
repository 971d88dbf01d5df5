"""A run is measured on tasks of other kinds than its own: what belongs to its task alone is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimrl.api.measuring import change_task
from slimrl.config.files import build, merge
from slimrl.config.schema import EvalConfig

RUNS: dict[str, dict[str, Any]] = {
    "code": {
        "task": {"name": "code", "path": "a.jsonl", "style": "code", "checker": "tests"},
        "sandbox": {"cpu_seconds": 2.0},
        "rewards": {"correct": 0.0, "tests_passed": 1.0},
    },
    "guess": {
        "task": {"name": "guess"},
        "environment": {"name": "guess", "turns": 5},
        "rewards": {"correct": 0.0, "environment": 1.0},
    },
    "gsm8k": {"task": {"name": "gsm8k", "style": "hashes"}},
}


@pytest.mark.parametrize("own", RUNS)
@pytest.mark.parametrize(
    "other",
    [
        {"task": {"name": "arithmetic"}},
        {"task": {"name": "code", "path": "b.jsonl"}},
        {"task": {"name": "guess"}, "environment": {"name": "guess"}},
    ],
)
def test_a_task_of_another_kind(own: str, other: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    base, name = merge({}, RUNS[own]), other["task"]["name"]
    change_task(base, name, tmp_path, other_data=True)
    config = build(EvalConfig, merge(base, other), "x.yaml")
    assert config.task.name == name
    assert config.task.style == ("code" if name == "code" else "hashes")
    assert config.environment.name == ("guess" if name == "guess" else "")
    assert not config.rewards.tests_passed
