"""Which answers to a problem are the same vote."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from slimrl.api.comparing import Outputs, matched
from slimrl.api.stored import read_outputs
from slimrl.config.task import TaskConfig
from slimrl.tasks.answers import Grader
from slimrl.tasks.grade import grade_file
from slimrl.tasks.symbolic import SymbolicWorker
from slimrl.tasks.votes import ASKED, PAIRS, votes
from slimrl.terms import Checker

MANY = [f"wrong {i}" for i in range(100)]
"""More answers than a checker is asked about in pairs."""


@pytest.mark.parametrize(
    ("checker", "spellings"),
    [
        ("exact", [f"**Red {i}**" for i in range(100)] + [f"red {i}." for i in range(100)]),
        ("exact", [f"{i}" for i in range(100)] + [f"{i}." for i in range(100)]),
        ("choice", [*MANY, *(f"({chr(97 + i)})" for i in range(26)), *MANY, *(f"{chr(65 + i)}. pears" for i in range(26))]),
        ("regex", [*MANY, *(answer.upper() for answer in MANY)]),
        ("numeric", [f"{i}" for i in range(100)] + [f"{i}.0 eggs" for i in range(100)]),
        ("numeric", [f"{i} or so" for i in range(100)] + [f"**{i} or so**" for i in range(100)]),
        ("symbolic", [f"x^{{{i}}}" for i in range(100)] + [f"$x^{{{i}}}$." for i in range(100)]),
        ("symbolic", [f"\\frac{{{i}}}{{7}}" for i in range(100)] + [f"y = \\dfrac{{{i}}}{{7}}" for i in range(100)]),
    ],
)  # fmt: skip
def test_equal_texts_and_numbers_are_one_vote_however_many_there_are(
    checker: Checker, spellings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if checker == "symbolic":
        pytest.importorskip("math_verify")
        monkeypatch.setattr(SymbolicWorker, "same", lambda *_: False)
    half = len(spellings) // 2
    with closing(Grader(checker)) as grader:
        found = votes(grader, [(answer, False) for answer in spellings])
    assert found.cast == [*range(half), *range(half)]


def test_what_an_exact_answer_says_is_no_number() -> None:
    with closing(Grader("exact")) as grader:
        assert votes(grader, [("7", False), ("7.0", False), ("seven", False)]).cast == [0, 1, 2]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The pairs that math-verify is asked about; it says that powers of x are equal, and nothing else."""
    pytest.importorskip("math_verify")
    pairs: list[tuple[str, str]] = []

    def same(_: SymbolicWorker, guess: str, gold: str) -> bool:
        pairs.append((guess, gold))
        return guess.startswith("x^") and gold.startswith("x^")

    monkeypatch.setattr(SymbolicWorker, "same", same)
    return pairs


def test_math_verify_is_asked_about_few_pairs(asked: list[tuple[str, str]]) -> None:
    """Beyond them answers are told apart by their text, and the problem is counted."""
    answers = [(f"{letter}+1", False) for letter in "abcdfghjklmnopq"]
    with closing(Grader("symbolic")) as grader:
        few = votes(grader, answers[:3])
        assert (few.cast, few.uncompared) == ([0, 1, 2], frozenset())
        many = votes(grader, [*answers, answers[11]])
    assert many.cast == [*range(len(answers)), 11], "equal texts need no question"
    assert len(asked) <= ASKED + 3
    again = votes(grader, answers)
    assert again.cast == many.cast[:-1]


def test_numbers_use_no_question_up(asked: list[tuple[str, str]]) -> None:
    numbers = [(f"{i}", False) for i in range(40)]
    with closing(Grader("symbolic")) as grader:
        found = votes(grader, [*numbers, ("x^{2}", False), ("x^{3}", False), ("40", False)])
    assert found.cast == [*range(40), 40, 40, 42]
    assert not found.uncompared
    assert asked == [("x^{3}", "x^{2}")]


def test_a_number_and_its_expression_are_one_vote_in_either_order() -> None:
    pytest.importorskip("math_verify")
    with closing(Grader("symbolic")) as grader:
        for pair in (("2", "\\sqrt{4}"), ("\\sqrt{4}", "2")):
            assert votes(grader, [(answer, False) for answer in pair]).cast == [0, 0]


def test_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    compared: list[str] = []
    monkeypatch.setattr(Grader, "_compare", lambda _, guess, gold: bool(compared.append(guess + gold)))
    answers = [(f"x^{{{i}}}", False) for i in range(100)]
    with closing(Grader("symbolic")) as grader:
        found = votes(grader, answers)
    assert found.cast == [*range(100)]
    assert len(compared) == PAIRS
    assert found.uncompared == frozenset(range(min(found.uncompared), 100)) != frozenset(range(100))
    assert all(a < b for a, b in pairwise(sorted(found.uncompared)))


def test_majorities_of_a_file_hold_for_any_number_of_answers(tmp_path: Path) -> None:
    """A right answer against one wrong answer in two spellings, behind a hundred others."""
    texts = [*MANY, "Red.", "red", "**RED**", "blue", "blue"]
    lines = [{"id": "a", "answer": "blue", "completion": f"#### {text}"} for text in texts]
    file = tmp_path / "outputs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = grade_file(TaskConfig(name="gsm8k", checker="exact"), str(file), str(tmp_path / "verdicts.jsonl"))
    table = summary.table()
    assert [*table["maj@k"]] == [*table["pass@k"]] == ["1", "2", "4", "8", "16", "32", "64", "105"]
    assert table["maj@k"]["105"]["value"] == 0.0, "red outvotes blue"
    assert table["uncompared"] == 0
    (rows,) = read_outputs(str(tmp_path / "verdicts.jsonl")).values()
    assert rows.measures()["maj@k"] == table["maj@k"]
    assert "uncompared" not in rows.measures()


def test_problems_whose_answers_were_not_all_compared_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr("slimrl.tasks.votes.PAIRS", 1)
    monkeypatch.setattr(SymbolicWorker, "same", lambda *_: False)
    lines = [{"id": "a", "answer": "z", "completion": f"#### {letter}+1"} for letter in "xyab"]
    lines += [{"id": "b", "answer": "z", "completion": "#### x+1"}] * 4
    file = tmp_path / "outputs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = grade_file(TaskConfig(name="gsm8k", checker="symbolic"), str(file), str(tmp_path / "verdicts.jsonl"))
    assert summary.table()["uncompared"] == 1
    (rows,) = read_outputs(str(tmp_path / "verdicts.jsonl")).values()
    assert rows.measures()["uncompared"] == 1
    outputs = Outputs("verdicts", {("", "test"): rows})
    assert len(matched(outputs, outputs, None)[1]) == 1, "and where they are compared with others"
