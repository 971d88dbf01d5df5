"""Shuffled answers: every training problem has another one's, nothing else changes, and held-out problems keep theirs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import SettingsError
from slimrl.records import Problem
from slimrl.tasks import Task, load_task
from slimrl.tasks.shuffled import Shuffled


def tasks(config: TaskConfig, seed: int = 0) -> tuple[Task, Task]:
    shuffled = config.model_copy(update={"answers": "shuffled"})
    return tuple(load_task(c, instruction="", seed=seed) for c in (config, shuffled))  # type: ignore[return-value]


def test_a_finite_set_is_permuted_without_a_problem_that_keeps_its_place() -> None:
    problems = tuple(Problem(str(i), f"q{i}", f"a{i}", f"s{i}", columns={"gold": f"a{i}"}) for i in range(50))
    found = [*Shuffled(problems, 3)]
    assert sorted(p.answer for p in found) == sorted(p.answer for p in problems)
    assert not any(p.answer == f"a{p.id}" for p in found)
    assert [(p.id, p.question) for p in found] == [(p.id, p.question) for p in problems]
    for p in found:
        assert (p.solution, p.columns["gold"]) == (f"s{p.answer[1:]}", p.answer), (
            "no other field gives the right answer away"
        )
    assert [*Shuffled(problems, 3)] == found != [*Shuffled(problems, 4)]
    assert Shuffled(problems, 3)[5:7] == found[5:7]
    assert Shuffled(problems, 3)[-1] == found[-1]
    with pytest.raises(SettingsError, match="two training problems"):
        Shuffled(problems[:1], 0)


def test_an_endless_supply_takes_partners_from_afar_and_held_out_problems_keep_their_answers() -> None:
    right, shuffled = tasks(TaskConfig())
    assert shuffled.test[:50] == right.test[:50]
    assert shuffled.harder[:50] == right.harder[:50]
    pairs = [(right.train[i], shuffled.train[i]) for i in range(300)]
    assert all(a.question == b.question and a.difficulty == b.difficulty for a, b in pairs)
    agree = sum(a.answer == b.answer for a, b in pairs) / len(pairs)
    assert agree < 0.15, "of numbers up to 20 some agree by chance"
    counted = [Counter(problem.answer for problem in side) for side in zip(*pairs, strict=True)]
    assert abs(counted[0]["4"] - counted[1]["4"]) < 30, "frequencies stay, but for chance"
    assert len(shuffled.train) == len(right.train)
    assert "shuffled" in shuffled.notes[0]


def test_gold_texts_of_shuffled_problems_earn_what_is_paid() -> None:
    _, shuffled = tasks(TaskConfig())
    for problem in shuffled.train[:20]:
        assert shuffled.grade(shuffled.gold_text(problem), problem.answer).strict


def test_rows_of_a_file(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    right, shuffled = tasks(TaskConfig(path=str(tmp_path / "rows.jsonl")))
    assert sorted(p.answer for p in shuffled.train) == sorted(p.answer for p in right.train)
    assert not any(a.answer == b.answer for a, b in zip(right.train, shuffled.train, strict=True))
    assert [*shuffled.test] == [*right.test]
