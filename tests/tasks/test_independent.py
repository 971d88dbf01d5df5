"""The second checker: what it reads, where it holds its tongue, and how rarely it disputes what is right."""

from __future__ import annotations

import json

import pytest

from slimrl.config.task import ArithmeticConfig, TaskConfig
from slimrl.records import Answer
from slimrl.tasks import arithmetic
from slimrl.tasks.files import load
from slimrl.tasks.independent import verdict
from slimrl.tasks.styles import STYLES, interchangeable
from slimrl.terms import Checker
from tests.conftest import SHARED
from tests.tasks import more_verdicts, verdicts


@pytest.mark.parametrize(
    ("checker", "text", "gold", "expected"),
    [
        ("numeric", "3+4=7\n#### 7", "7", True),
        ("numeric", "3+4=7\n#### 8", "7", False),
        ("numeric", "#### 7\nQuestion: Tom has 5 pears.", "7", False),
        ("numeric", "", "7", False),
        ("numeric", "#### 1,080", "1080", True),
        ("numeric", "#### $18.00", "18", True),
        ("numeric", "#### -5", "-5", True),
        ("numeric", "8-3=5", "5", True),
        ("numeric", "#### \u22124", "-4", True),
        ("numeric", "#### 1 1/2", "3/2", True),
        ("numeric", "\\boxed{\\dfrac{-3}{4}}", "-0.75", True),
        ("numeric", "<SOLUTION>7</SOLUTION>", "7", True),
        ("numeric", "#### 50%", "50%", True),
        ("numeric", "#### 50%", "0.5", None),
        ("numeric", "#### 5 million", "5000000", None),
        ("numeric", "#### 7", "seven", None),
        ("symbolic", "so \\boxed{12}", "12", True),
        ("symbolic", "so \\boxed{12}.", "13", False),
        ("symbolic", "so \\boxed{3\\cdot 4}", "12", None),
        ("symbolic", "so 12", "12", None),
        ("symbolic", "\\boxed{x+1}", "x+1", None),
        ("exact", "#### Yes.", "yes", True),
        ("exact", "yes\n#### no", "yes", False),
        ("choice", "#### (b)", "B", True),
        ("choice", "#### C. 12 apples", "C", True),
        ("choice", "\\boxed{D}", "C", False),
        ("choice", "Thus I conclude that the answer is $\\boxed{B}$.", "B", True),
        ("choice", "A circle has no corners, so \\boxed{C}.", "C", True),
        ("regex", "#### 7", "[0-9]", None),
        ("none", "#### 7", "7", None),
    ],
)
def test_verdicts(checker: Checker, text: str, gold: str, expected: bool | None) -> None:
    assert verdict(checker, text, gold) is expected


def test_one_of_several_right_answers_is_enough() -> None:
    assert verdict("exact", "#### seven", Answer("7", ["seven"])) is True
    assert verdict("numeric", "#### 8", Answer("7", ["seven"])) is None, "one of them it cannot read"


@pytest.mark.parametrize("style", sorted(interchangeable("hashes")))
def test_no_gold_text_is_disputed(style: str) -> None:
    for problem in arithmetic.load(ArithmeticConfig(), seed=0).test[:200]:
        assert verdict("numeric", STYLES[style].render(problem.solution, problem.answer), problem.answer)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data beside the project")
@pytest.mark.parametrize("style", sorted(interchangeable("hashes")))
def test_no_gold_text_of_real_data_is_disputed(style: str) -> None:
    """All of GSM8K and SVAMP is read; of MATH what is a plain number."""
    for name, file, checker in (
        ("gsm8k", "gsm8k/test.jsonl", "numeric"), ("svamp", "svamp/SVAMP.json", "numeric"), ("math", "math/math500.jsonl", "symbolic"),
    ):  # fmt: skip
        splits = load(TaskConfig(name=name, path=str(SHARED / file), on_bad_row="skip"))  # type: ignore[arg-type]
        found = [
            verdict(checker, STYLES[style].render(p.solution, p.answer), p.answer)  # type: ignore[arg-type]
            for p in (*splits.train, *splits.test)
        ]
        assert False not in found
        assert checker == "symbolic" or None not in found


def test_unusual_ways_to_write_a_right_answer_are_not_disputed() -> None:
    """Those in which the strict checker was tried: hundreds, of which a simple reader understands few."""
    for corpus, checker, form in (
        ({**verdicts.NUMERIC, **more_verdicts.NUMERIC}, "numeric", "#### {}"),
        ({**verdicts.SYMBOLIC, **more_verdicts.SYMBOLIC}, "symbolic", "So it is $\\boxed{{{}}}$."),
    ):
        disputed = [
            (gold, guess)
            for pairs in corpus.values()
            for gold, (right, _) in pairs.items()
            for guess in right
            if verdict(checker, form.format(guess), gold) is False  # type: ignore[arg-type]
        ]
        assert disputed == []


def test_texts_that_the_strict_checker_was_tried_with_are_not_disputed_where_they_are_right() -> None:
    cases = SHARED.parent / "cases" / "grading.jsonl"
    if not cases.is_file():
        pytest.skip("needs the cases beside the project")
    rows = [json.loads(line) for line in cases.read_text().splitlines()]
    assert not [r["id"] for r in rows if r["strict"] and verdict(r["checker"], r["completion"], r["answer"]) is False]
