"""Right answers that must be paid and wrong ones that must not, by kind, strictly and leniently."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

import pytest

from slimrl.tasks.answers import Grader
from slimrl.tasks.styles import STYLES
from tests.conftest import SHARED
from tests.tasks import more_verdicts, verdicts

SYMBOLIC = {**verdicts.SYMBOLIC, **more_verdicts.SYMBOLIC}
NUMERIC = {**verdicts.NUMERIC, **more_verdicts.NUMERIC}
WHOLE = [*verdicts.WHOLE.items(), *more_verdicts.WHOLE.items()]

needs_math_verify = pytest.mark.skipif(
    not importlib.util.find_spec("math_verify"), reason="math-verify (extra `math`) is not installed"
)


@pytest.fixture(scope="module")
def symbolic() -> Iterator[Grader]:
    grader = Grader("symbolic")
    yield grader
    grader.close()


@needs_math_verify
@pytest.mark.parametrize("kind", SYMBOLIC)
def test_symbolic(kind: str, symbolic: Grader) -> None:
    wrong_verdicts = []
    for gold, (right, wrong) in SYMBOLIC[kind].items():
        for guess in [gold, *right, *wrong]:
            text = guess if guess.startswith("\\fbox") else f"\\boxed{{{guess}}}"
            grade = symbolic.grade(f"So it is ${text}$.", gold, STYLES["boxed"])
            if (grade.strict, grade.lenient) != (guess not in wrong,) * 2 or grade.undecided:
                wrong_verdicts.append((gold, guess, grade))
    assert wrong_verdicts == []


@pytest.mark.parametrize("kind", NUMERIC)
def test_numeric(kind: str) -> None:
    grader = Grader("numeric")
    wrong_verdicts = []
    for gold, (right, wrong) in NUMERIC[kind].items():
        for guess in [gold, *right, *wrong]:
            grade = grader.grade(f"So.\n#### {guess}", gold, STYLES["hashes"])
            if grade.strict != (guess not in wrong) or (grade.strict and not grade.lenient):
                wrong_verdicts.append((gold, guess, grade))
    assert wrong_verdicts == []


@needs_math_verify
@pytest.mark.parametrize(("checker", "style"), sorted({key[:2] for key, _ in WHOLE}))
def test_whole_completions(checker: str, style: str, symbolic: Grader) -> None:
    grader = symbolic if checker == "symbolic" else Grader("numeric")
    wrong_verdicts = []
    for (its_checker, its_style, gold), (right, wrong) in WHOLE:
        if (its_checker, its_style) == (checker, style):
            grades = [(text, grader.grade(text, gold, STYLES[style])) for text in (*right, *wrong)]
            wrong_verdicts += [(gold, *pair) for pair in grades if pair[1].strict != (pair[0] in right)]
    assert wrong_verdicts == []


def test_what_is_refused_strictly_is_paid_leniently_only_where_the_number_is_the_same() -> None:
    grader = Grader("numeric")
    wrong_verdicts = []
    for gold, (right, wrong) in more_verdicts.LENIENT.items():
        for text in (*right, *wrong):
            grade = grader.grade(text, gold, STYLES["hashes"])
            if grade.strict or grade.lenient != (text in right):
                wrong_verdicts.append((gold, text, grade))
    assert wrong_verdicts == []


def test_a_list_of_two_numbers_is_no_number() -> None:
    assert STYLES["boxed"].extract("\\boxed{1} and \\boxed{2}") == "1, 2"
    assert not Grader("numeric").grade("\\boxed{1} and \\boxed{2}", "2", STYLES["boxed"]).strict


@needs_math_verify
def test_one_undecided_part_leaves_a_list_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("slimrl.tasks.symbolic.SymbolicWorker.same", lambda *pair: asked.append(pair))
    assert Grader("symbolic").compare("x+1, y+2, 3", "3, 1+x, y+3") is None
    assert len(asked) == 2  # the first part against the two that are not spelt alike
    asked.clear()
    assert Grader("symbolic").compare("1, y+2", "2, y+2") is False
    assert asked == []


def test_there_are_enough_pairs() -> None:
    tables = [pairs for kinds in (SYMBOLIC, NUMERIC) for pairs in kinds.values()]
    assert sum(len(right) + len(wrong) for pairs in tables for right, wrong in pairs.values()) > 1000


@needs_math_verify
@pytest.mark.skipif(not (SHARED.parent / "cases").is_dir(), reason="needs the shared cases beside the project")
def test_the_shared_cases(symbolic: Grader) -> None:
    graders = {"numeric": Grader("numeric"), "symbolic": symbolic}
    wrong_verdicts = []
    rows = [json.loads(line) for line in (SHARED.parent / "cases" / "grading.jsonl").read_text().splitlines()]
    for row in rows:
        grade = graders[row["checker"]].grade(row["completion"], row["answer"], STYLES[row["style"]])
        if grade.strict != row["strict"] or grade.lenient != row.get("lenient", grade.lenient):
            wrong_verdicts.append((row, grade))
    assert len(rows) > 50
    assert wrong_verdicts == []
