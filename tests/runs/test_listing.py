"""Runs in a folder: state, steps, accuracy and age, and the one that was interrupted last."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimrl.runs.listing import Listed, list_runs, newest_interrupted


def write(folder: Path, status: str, *, steps: int = 2, age: float = 0.0, verb: str = "train", owner: str = "") -> None:
    """A run as a run directory has it."""
    (folder / "evals").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"verb": verb, "status": status}))
    (folder / "config.yaml").write_text("steps: 10\n")
    (folder / "metrics.jsonl").write_text("{}\n" * steps)
    (folder / "evals" / "step-00000000.json").write_text(json.dumps({"test": {"accuracy": 0.25}}))
    (folder / "evals" / "step-00000002.json").write_text(json.dumps({"test": {"accuracy": 0.75}}))
    (folder / "lock").write_text(owner)
    for name in ("run.json", "metrics.jsonl"):
        now = (folder / name).stat().st_mtime
        os.utime(folder / name, (now - age, now - age))


def gone() -> str:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return str(process.pid)


def by_name(folder: Path) -> dict[str, Listed]:
    return {Path(listed.run).name: listed for listed in list_runs(folder)}


def test_states_steps_accuracy_and_age(tmp_path: Path) -> None:
    write(tmp_path / "done", "finished", age=300)
    write(tmp_path / "alive", "running", owner=str(os.getpid()), age=5)
    write(tmp_path / "killed", "running", owner=gone(), age=100)
    write(tmp_path / "study" / "runs" / "base-0", "preempted", age=50)
    (tmp_path / "empty").mkdir()
    found = by_name(tmp_path)
    assert list(found) == ["alive", "base-0", "killed", "done"]  # the newest first
    assert {name: listed.state for name, listed in found.items()} == {
        "alive": "running", "base-0": "preempted", "killed": "interrupted", "done": "finished",
    }  # fmt: skip
    assert list(by_name(tmp_path / "study")) == ["base-0"]
    done = found["done"]
    assert (done.steps, done.of, done.before, done.after) == (2, 10, 0.25, 0.75)
    assert done.age == pytest.approx(300, abs=60)
    assert [name for name, listed in found.items() if listed.can_go_on] == ["base-0", "killed"]


def test_what_is_missing_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "run.json").write_text('{"status": "running"}')
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    (tmp_path / "torn" / "config.yaml").write_text("steps: [")
    found = by_name(tmp_path)
    assert (found["new"].state, found["torn"].state) == ("interrupted", "damaged")
    assert math.isnan(found["new"].before)
    assert found["new"].table()["before"] is None
    assert (found["torn"].steps, found["torn"].of) == (0, 0)
    assert list_runs(tmp_path / "nowhere") == []


def test_the_newest_interrupted_run_of_a_verb(tmp_path: Path) -> None:
    write(tmp_path / "older", "interrupted", age=200)
    write(tmp_path / "newer", "preempted", age=100)
    write(tmp_path / "sft", "interrupted", verb="sft", age=10)
    write(tmp_path / "done", "finished")
    write(tmp_path / "diverged", "diverged")
    write(tmp_path / "study" / "runs" / "base-0", "interrupted")
    newest = newest_interrupted(tmp_path, "train")
    assert newest is not None
    assert Path(newest.run).name == "newer"
    assert newest_interrupted(tmp_path / "nowhere", "train") is None
