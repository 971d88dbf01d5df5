"""Gold answers of real data sets earn everything, on every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slimrl.config.rewards import RewardsConfig
from slimrl.config.task import TaskConfig
from slimrl.rewards import load_rewards
from slimrl.rewards.case_study import check_numbers_published
from slimrl.rewards.gold import check_gold
from slimrl.tasks import Task
from slimrl.tasks.answers import Grader
from slimrl.tasks.files import load
from slimrl.tasks.styles import STYLES, interchangeable

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data sets are not at {DATA}")

# task settings, rows of both splits
SETS: dict[str, tuple[dict[str, Any], int]] = {
    "gsm8k": ({"name": "gsm8k", "path": "gsm8k/train.jsonl", "test_path": "gsm8k/test.jsonl"}, 7473 + 1319),
    "aime to 2024": (
        {"name": "aime", "path": "aime/aime_1983_2023.json", "test_path": "aime/aime_2024.json"},
        975 + 30,
    ),
    "aime 2024, 2025": ({"name": "aime", "path": "aime/aime_2024_nemo.jsonl", "test_path": "aime/aime_2025.jsonl"}, 60),
    "svamp": ({"name": "svamp", "path": "svamp/SVAMP.json"}, 1000),
    "math-500": ({"name": "math", "path": "math/math500.jsonl", "checker": "symbolic"}, 500),
}
FOUR = {"match_format_exactly": 1.0, "match_format_approximately": 1.0, "check_answer": 1.0, "check_numbers": 1.0}


def _task(settings: dict[str, Any], style: str) -> Task:
    paths = {key: str(DATA / value) if key.endswith("path") else value for key, value in settings.items()}
    config = TaskConfig(style=style, **paths)  # type: ignore[arg-type]
    splits = load(config)
    return Task(config.name, splits.train, splits.test, (), STYLES[style], Grader(config.checker), "", {})


@pytest.mark.parametrize("style", sorted(interchangeable("hashes")))
@pytest.mark.parametrize("name", SETS)
def test_gold_earns_everything(name: str, style: str) -> None:
    settings, rows = SETS[name]
    if settings.get("checker") == "symbolic":
        pytest.importorskip("math_verify", reason="math-verify (extra `math`) is not installed")
    task = _task(settings, style)
    config = RewardsConfig(correct=1.0, format=1.0, **(FOUR if style == "tags" else {}))
    rewards = load_rewards(config, task, max_new_tokens=64)
    report = check_gold(task, [*task.train, *task.test], rewards)
    assert report.failures == ()
    assert report.n == rows
    assert report.maximum == (11.5 if style == "tags" else 2.0)
    grades = [task.grade(task.gold_text(problem), problem.answer) for problem in task.test]
    assert all(grade.lenient for grade in grades)
    task.grader.close()


def test_math_500_gold_is_itself_to_math_verify_too() -> None:
    """Without the shortcuts for numbers and equal text, which most gold answers take above."""
    pytest.importorskip("math_verify", reason="math-verify (extra `math`) is not installed")
    from slimrl.tasks.symbolic import SymbolicWorker

    task = _task(SETS["math-500"][0], "boxed")
    worker = SymbolicWorker()
    answers = {problem.answer for problem in (*task.train, *task.test)}
    assert [answer for answer in sorted(answers) if worker.same(answer, answer) is not True] == []
    worker.close()


def test_published_check_numbers_cannot_be_earned_by_98_rows_of_gsm8k() -> None:
    task = _task(SETS["gsm8k"][0], "tags")
    missed = [
        sum(check_numbers_published([task.gold_text(problem)], answer=[problem.answer]) == [0.0] for problem in split)
        for split in (task.train, task.test)
    ]
    assert missed == [82, 16]


def test_published_gold_check_refuses_gsm8k() -> None:
    task = _task(SETS["gsm8k"][0], "tags")
    rewards = load_rewards(RewardsConfig(correct=0.0, as_published=True, **FOUR), task, max_new_tokens=64)
    failures = check_gold(task, task.test, rewards).failures
    assert {failure.reward for failure in failures} == {"check_numbers"}
    assert len(failures) == 16


def test_no_split_is_a_duplicate_of_another_but_real_sets_load() -> None:
    for settings, rows in SETS.values():
        task = _task(settings, "hashes")
        assert len(task.train) + len(task.test) == rows
        assert len({problem.id for problem in (*task.train, *task.test)}) == rows
