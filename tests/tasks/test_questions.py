"""Which questions are the same, and which are held out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks.files import Splits, load
from slimrl.tasks.questions import HELD_OUT, held_out, normalized, place
from tests.conftest import SHARED

SAME = [
    ["Q one?", "Q one", "q  ONE", "Q one.", "Q, one!", "\u201cQ one?\u201d", "'Q one'", "Q\u00a0one ?", "Q one...", "Q one\u2026",
     "\uff31 \uff4f\uff4e\uff45\uff1f", "Q\u200b one", "Q: one", "Q one!!", "\u00abQ one\u00bb"],
    ["Mia's well-known hat", "Mia\u2019s well known hat", "Mias well\u2014known hat.", "mia's well-known hat?"],
    ["What is 5 \u2212 3?", "What is 5 - 3", "What is 5 \u2013 3."],
    ["What is 4 \u00d7 2?", "What is 4 * 2?"],
    ["Caf\u00e9 or tea?", "Cafe\u0301 or tea"],
    ["It costs 1,080 in all; how much?", "It costs 1,080 in all. How much", "It costs 1080 in all; how much?", "It costs $1{,}080$ in all, how much"],
    ["What is 3+1?", "What is 3 + 1?", "What is $3+1$?", "What is $$3 + 1$$?", "What is \\(3 + 1\\)?",
     "What is `3+1`?", "What is **3 + 1**?", "What is 3 +1?", "What is 3+ 1 ?"],
    ["**Tom** has 3 hats", "Tom has 3 hats", "__Tom__ has **3 hats**", "Tom has `3` hats."],
    ["If x = -5 then x^2 <= 30, (x + 1) / 2 = ?", "If $x=-5$ then $x ^ 2<=30$, $(x+1)/2=$?"],
    ["1,234,567.5 - 20", "1234567.5-20", "1234567.5 \u2212 20"],
    ["Ann has $5 and Ben has $6 - $7.", "Ann has $5 and Ben has $6 - $7"],
]  # fmt: skip
DIFFERENT = [
    "3+4", "3-4", "3*4", "3/4", "34", "3 4", "-5", "5", "1.5", "15", ".5", "5!", "5!!", "1, 2, ..., 10", "1, 2, 10", "1,080", "1, 080",
    "f(x)", "f'(x)", "f''(x)", "x != 5", "x = 5", "2^3", "2\u00b3", "23", "(3+4)*5", "3+4*5", "\u00bd", "1 2", "12", "n!", "n", "x-y",
    "x y", "3:30", "330", '5"', "x < 5", "x > 5", "x \u2264 5", "$5", "5%", "\u20ac5", "A'B'", "AB", "sin x - cos x", "sin x cos x", "H\u2082O",
    "[1, 2]", "(1, 2)", "|x|", "x", "x_1", "x1", "?", "!", "...", "10 - -3", "10 - 3", "1,08", "108", "1,2,300", "12300", "1, -3", "1 - 3", "(1,200)", "(1200)", "$5 and $6", "5 and 6", "5 and $6",
    "Solve -ab", "Solve ab", "2**3", "2*3", "x**2 y**2", "x2 y2", "__", "**", "$", "$$",
]  # fmt: skip


@pytest.mark.parametrize("forms", SAME, ids=range(len(SAME)))
def test_forms_of_a_question_are_one(forms: list[str]) -> None:
    assert len({normalized(form) for form in forms}) == 1


def test_what_carries_meaning_stays() -> None:
    found: dict[str, str] = {}
    for question in DIFFERENT:
        key = normalized(question)
        assert key, question
        assert found.setdefault(key, question) == question, (question, found[key])


def load_rows(folder: Path, rows: list[dict[str, object]], on_bad_row: str = "error") -> Splits:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(TaskConfig.model_validate({"name": "jsonl", "path": str(file), "on_bad_row": on_bad_row}))


def numbered(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"question": f"What is {i} and 1?", "answer": str(i + 1)} for i in range(start, start + count)]


def asked(splits: Splits) -> tuple[set[str], list[str]]:
    return {problem.question for problem in splits.train}, [problem.question for problem in splits.test]


def test_a_leak_is_found_through_punctuation(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text('{"question": "Q two?", "answer": "1"}\n{"question": "Q one?", "answer": "1"}\n')
    test.write_text('{"question": "Q one", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: the training question is also the held-out question .*:1"):
        load(TaskConfig(name="jsonl", path=str(train), test_path=str(test)))


def test_repeats_go_before_the_split(tmp_path: Path) -> None:
    once = load_rows(tmp_path, numbered(300))
    repeated = load_rows(tmp_path, numbered(300) * 100, "skip")
    assert asked(repeated) == asked(once)
    assert [problem.id for problem in repeated.train] == [problem.id for problem in once.train]
    assert len(repeated.rejected) == 300 * 99
    assert abs(len(once.test) - 30) <= 15  # three standard deviations of a hash
    assert len(once.train) + len(once.test) == 300
    with pytest.raises(DataError, match=r"rows\.jsonl:301: the question is also that of .*rows\.jsonl:1; "):
        load_rows(tmp_path, numbered(300) * 2)


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    rows = numbered(200)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert asked(load_rows(tmp_path, rows)) == asked(load_rows(tmp_path, shuffled)), (
        "and neither does that of evaluation"
    )


def test_rows_keep_their_side_when_others_come_or_go(tmp_path: Path) -> None:
    few, many = asked(load_rows(tmp_path, numbered(100))), asked(load_rows(tmp_path, numbered(1000)))
    assert few[0] <= many[0]
    assert set(few[1]) <= set(many[1])
    written_otherwise = [row | {"question": str(row["question"]).upper().rstrip("?")} for row in numbered(100)]
    assert {q.casefold() for q in asked(load_rows(tmp_path, written_otherwise))[1]} == {
        q.casefold().rstrip("?") for q in few[1]
    }


@pytest.mark.parametrize("size", [2, 3, 5, 10, 20, 1000, 10_000])
def test_both_sides_have_problems(size: int) -> None:
    for start in range(0, 10 * size if size <= 20 else size, size):
        questions = [normalized(str(row["question"])) for row in numbered(size, start)]
        chosen = held_out(questions)
        assert 1 <= len(chosen) < size
        below = {question for question in questions if place(question) < HELD_OUT}
        assert set(chosen) == below or not below or len(below) == size
    assert size < 1000 or abs(len(chosen) / size - HELD_OUT) < 4 * (0.09 / size) ** 0.5


def test_one_row_is_not_held_out(tmp_path: Path) -> None:
    assert held_out(["q"]) == held_out([]) == []
    with pytest.raises(DataError, match=r"has one row, none can be held out; add rows or set task\.test_path"):
        load_rows(tmp_path, numbered(1))
    with pytest.raises(DataError, match="no held-out row is left"):
        load_rows(tmp_path, numbered(1) * 5, "skip")


def test_problems_without_an_id_are_called_by_their_row(tmp_path: Path) -> None:
    splits = load_rows(tmp_path, numbered(50))
    ids = {problem.question: problem.id for problem in (*splits.train, *splits.test)}
    assert ids == {f"What is {i} and 1?": f"jsonl/{i:05d}" for i in range(50)}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real data beside the project (shared/data, shared/cases)")
def test_real_files_lose_nothing_and_a_sorted_one_keeps_its_levels_on_both_sides() -> None:
    gsm8k = TaskConfig(name="gsm8k", path=f"{SHARED}/gsm8k/train.jsonl", test_path=f"{SHARED}/gsm8k/test.jsonl")
    splits = load(gsm8k)
    assert (len(splits.train), len(splits.test), splits.rejected) == (7473, 1319, ())
    splits = load(TaskConfig(name="jsonl", path=f"{SHARED.parent}/cases/data/sorted2.jsonl"))
    assert {p.difficulty for p in splits.train} == {p.difficulty for p in splits.test} == set(range(1, 11))
