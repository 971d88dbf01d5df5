"""The records of a run are read as far as they can be, and without torch."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from slimrl.errors import DataError
from slimrl.runs.files import as_line
from slimrl.runs.reader import (
    ENDED,
    called_by_a_program,
    read_answers,
    read_chosen,
    read_metrics,
    read_state,
    read_status,
    read_summaries,
    way_to_resume,
)


def test_reading_and_writing_need_no_torch() -> None:
    code = "import sys, slimrl.runs.reader, slimrl.runs.files, slimrl.runs.lock; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_study_and_its_report_need_no_torch() -> None:
    code = "import sys, slimrl.study.plan, slimrl.report.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("left", [None, "", "{", "7", "[]"])
def test_a_state_that_cannot_be_read_is_empty(left: str | None, tmp_path: Path) -> None:
    if left is not None:
        (tmp_path / "run.json").write_text(left)
    assert (read_state(tmp_path), read_status(tmp_path), read_chosen(tmp_path)) == ({}, "", {})


def test_a_state_is_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "diverged", "chosen": {"rollout.max_new_tokens": 32}}))
    assert read_status(tmp_path) in ENDED
    assert read_chosen(tmp_path) == {"rollout.max_new_tokens": 32}


def test_metrics_come_back_without_a_line_that_was_cut_off(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    rows = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": math.nan}]
    (tmp_path / "metrics.jsonl").write_text("".join(map(as_line, rows)) + '{"step": 3, "k')
    first, second = read_metrics(tmp_path)
    assert first == rows[0]
    assert math.isnan(second["kl"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged"):
        read_metrics(tmp_path)


def test_evaluations_come_back_by_step(tmp_path: Path) -> None:
    assert read_summaries(tmp_path) == {}
    (tmp_path / "evals").mkdir()
    for step in (0, 12):
        (tmp_path / "evals" / f"step-{step:08d}.json").write_text(json.dumps({"test": {"accuracy": step / 100}}))
    (tmp_path / "evals" / "step-00000012.jsonl").write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_summaries(tmp_path) == {0: {"test": {"accuracy": 0.0}}, 12: {"test": {"accuracy": 0.12}}}
    assert read_answers(tmp_path, 12) == [{"text": "a\u2028b"}]
    assert read_answers(tmp_path, 0) == []


def test_a_run_with_functions_of_a_program_is_resumed_there(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"verb": "sft"}))
    assert way_to_resume(tmp_path) == f"slimrl sft --resume {tmp_path}", "config.yaml may be gone"
    (tmp_path / "run.json").write_text(json.dumps({"verb": "train"}))
    for spec, way in (
        ("rewards.py:brief", f"slimrl train --resume {tmp_path}"),
        ("__main__:brief", f'slimrl.train(resume="{tmp_path}", rewards=[...])'),
    ):
        (tmp_path / "config.yaml").write_text(f"rewards:\n  custom:\n    {spec}: 0.5\n")
        assert way_to_resume(tmp_path) == way
        force = ", force=True)" if way.endswith(")") else " --force"
        assert way_to_resume(tmp_path, force=True) == way.removesuffix(")") + force


def test_a_program_is_told_the_call_that_resumes_a_run() -> None:
    run = Path("runs/a b")
    assert way_to_resume(run) == "slimrl train --resume 'runs/a b'"
    with called_by_a_program():
        assert way_to_resume(run) == 'slimrl.train(resume="runs/a b")'
        assert way_to_resume(run, force=True) == 'slimrl.train(resume="runs/a b", force=True)'
    assert way_to_resume(run, force=True) == "slimrl train --resume 'runs/a b' --force"


@pytest.mark.parametrize("name", ["a b", "it's", 'so "called"', "back\\new", "two\nlines", "für"])
def test_the_call_that_resumes_a_run_is_valid_python(name: str, tmp_path: Path) -> None:
    with called_by_a_program():
        call = ast.parse(way_to_resume(tmp_path / name), mode="eval").body
    assert isinstance(call, ast.Call)
    assert ast.literal_eval(call.keywords[0].value) == str(tmp_path / name)
