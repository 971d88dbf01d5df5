"""Twins: the same problem with other numbers, an answer that follows, and no twin where that is not sure."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

import pytest

from slimrl.config.task import ArithmeticConfig, TaskConfig
from slimrl.records import Problem
from slimrl.tasks import arithmetic
from slimrl.tasks.arithmetic import split_of, steps_of
from slimrl.tasks.files import load
from slimrl.tasks.twins import evaluated, twin_of
from tests.conftest import SHARED


def words(text: str) -> str:
    return re.sub(r"[0-9]+", "n", text)


@pytest.mark.parametrize(("split", "limit"), [("test", 20), ("harder", 20), ("test", 100)])
def test_built_in_problems_have_twins_of_the_same_words(split: str, limit: int) -> None:
    config = ArithmeticConfig(max_number=limit)
    problems = getattr(arithmetic.load(config, seed=0), split)[:150]
    found = [(problem, twin) for problem in problems if (twin := twin_of(problem, "arithmetic", limit=limit))]
    assert len(found) > 140
    for problem, twin in found:
        assert twin.id == f"{problem.id}/twin"
        assert words(twin.question) == words(problem.question)
        assert twin.question != problem.question
        assert twin.answer != problem.answer
        assert split_of(twin.question) == split, "no run trains on it"
        lines = [re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line) for line in twin.solution.splitlines()]
        assert [line[2] for line in lines if line] == [step.operator for step in steps_of(problem)]
        results = []
        for line in lines:
            assert line
            results.append(arithmetic.apply(int(line[1]), line[2], int(line[3]), limit))  # type: ignore[arg-type]
            assert results[-1] == int(line[4])
        assert str(results[-1]) == twin.answer
        assert [int(line[1]) for line in lines[1:] if line] == results[:-1]
        fixed = {2} if re.search(r"half|twice|as many again", twin.question) else set()
        drawn = {int(line[3]) for line in lines if line} - fixed
        assert drawn <= {int(n) for n in re.findall(r"\d+", twin.question)}, (
            "the numbers that are reckoned with are told"
        )
    again = [twin_of(problem, "arithmetic", limit=limit) for problem, _ in found]
    assert again == [twin for _, twin in found]


def svamp(question: str, equation: str, answer: str) -> Problem:
    return Problem("svamp/1", question, answer, equation)


def test_numbers_of_an_equation_are_replaced_and_others_stay() -> None:
    problem = svamp("Jo has 30 red and 47 blue cups. 12 red ones broke. How many are red?", "( 30.0 - 12.0 )", "18")
    twin = twin_of(problem, "svamp", limit=0)
    assert twin is not None
    red, blue, broken = (int(n) for n in re.findall(r"\d+", twin.question))
    assert blue == 47
    assert broken < red < blue, "their order stays"
    assert twin.answer == str(red - broken) != "18"
    assert twin.solution == f"( {red}.0 - {broken}.0 )"


@pytest.mark.parametrize(
    ("question", "equation", "answer"),
    [
        ("She has 8 cups and 8 pens. How many in all?", "( 8.0 + 8.0 )", "16"),
        ("She works 5 days. How many weeks?", "( 5.0 / 7.0 )", "1"),
        ("She works 5 hours each day. How many a week?", "( 5.0 * 7.0 )", "35"),
        ("She has 8 cups and buys 5. How many has she?", "( 8.0 + 5.0 )", "14"),
        ("She owes 5 and pays 8. What has she?", "( 5.0 - 8.0 )", "-3"),
        ("She has 1.5 litres and 2 cups. How many?", "( 1.5 + 2.0 )", "3.5"),
        ("She has some cups.", "", "3"),
        ("She has 4 cups.", "__import__('os')", "4"),
        ("She has 4 cups.", "(" * 5000 + "4", "4"),
    ],
)
def test_no_twin_where_its_answer_is_not_sure(question: str, equation: str, answer: str) -> None:
    assert twin_of(svamp(question, equation, answer), "svamp", limit=0) is None


def test_equations() -> None:
    assert evaluated("( ( 8.0 + 3.0 ) * 2.0 )") == [11, 22]
    assert evaluated("( 7.0 / 2.0 )") == [Fraction(7, 2)]
    assert evaluated("1 / 0") == evaluated("2 ** 9") == evaluated("x + 1") == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data beside the project")
def test_most_of_svamp_has_twins() -> None:
    splits = load(TaskConfig(name="svamp", path=str(SHARED / "svamp" / "SVAMP.json")))
    problems = [*splits.train, *splits.test]
    twins = [(problem, twin) for problem in problems if (twin := twin_of(problem, "svamp", limit=0))]
    assert len(twins) > 900
    for problem, twin in twins:
        assert evaluated(twin.solution)[-1] == int(twin.answer) > 0
        assert words(twin.question) == words(problem.question)
        told = [int(n) for n in re.findall(r"\d+", twin.question)]
        assert {int(float(n)) for n in re.findall(r"[\d.]+", twin.solution)} <= {*told}
        assert [len(n) for n in re.findall(r"\d+", twin.question)] == [
            len(n) for n in re.findall(r"\d+", problem.question)
        ]
    one, twin = twins[0]
    assert twin_of(replace(one, solution=""), "svamp", limit=0) is None
