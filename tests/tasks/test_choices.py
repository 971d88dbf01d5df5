"""Rows of multiple choice as the usual data sets have them, and answers that may be an index or a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.sections import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks import Task, load_task
from slimrl.tasks.checkers import fault

COLOURS = ["red", "green", "blue", "grey"]
DIGITS = ["1", "2", "3", "4"]


def task_of(
    folder: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **settings: Any
) -> Task:
    files = {"path": rows, "test_path": rows[-1:] if held_out is None else held_out}
    for name, lines in files.items():
        kept = rows[:-1] if name == "path" and held_out is None else lines
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    config = {name: f"{folder}/{name}.jsonl" for name in files} | {"checker": "choice"} | settings
    return load_task(TaskConfig.model_validate(config), instruction="", seed=0)


def letters(task: Task) -> list[str]:
    return [problem.answer for problem in (*task.train, *task.test)]


def rows_of(answers: list[Any], options: list[list[str]]) -> list[dict[str, Any]]:
    pairs = enumerate(zip(answers, options, strict=True))
    return [{"question": f"question {i}", "choices": own, "answer": answer} for i, (answer, own) in pairs]


SHAPES: dict[str, tuple[list[dict[str, Any]], dict[str, str], list[str]]] = {
    "MMLU": (
        [
            {"question": "the 1st", "subject": "s", "choices": COLOURS, "answer": 0},
            {"question": "the 2nd", "subject": "s", "choices": ["0", "1", "2", "3"], "answer": 2},
            {"question": "the 3rd", "subject": "s", "choices": DIGITS, "answer": 2},
        ],
        {},
        ["A", "C", "C"],
    ),
    "ARC": (
        [
            {"id": "a", "question": "the 1st", "choices": {"text": COLOURS, "label": [*"ABCD"]}, "answerKey": "B"},
            {"id": "b", "question": "the 2nd", "choices": {"text": ["4", "3", "2", "1"], "label": DIGITS}, "answerKey": "2"},
            {"id": "c", "question": "the 3rd", "choices": {"text": COLOURS, "label": DIGITS}, "answerKey": "4"},
        ],
        {},
        ["B", "B", "D"],
    ),
    "OpenBookQA": (
        [
            {"id": i, "question_stem": f"the {i}", "choices": {"text": COLOURS, "label": [*"ABCD"]}, "answerKey": i}
            for i in "DA"
        ],
        {"question": "question_stem"},
        ["D", "A"],
    ),
    "CommonsenseQA": (
        [
            {"id": i, "question": f"the {i}", "question_concept": "c", "choices": {"label": [*"ABCDE"], "text": [*COLOURS, "x"]}, "answerKey": i}
            for i in "EC"
        ],
        {},
        ["E", "C"],
    ),
    "HellaSwag": (
        [
            {"ind": 1, "ctx": "the 1st", "endings": COLOURS, "label": "3"},
            {"ind": 2, "ctx": "the 2nd", "endings": DIGITS, "label": "2"},
            {"ind": 3, "ctx": "the 3rd", "endings": COLOURS, "label": "0"},
        ],
        {"question": "ctx", "choices": "endings"},
        ["D", "C", "A"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_the_usual_data_sets(shape: str, tmp_path: Path) -> None:
    rows, columns, wanted = SHAPES[shape]
    task = task_of(tmp_path, rows, columns=columns)
    assert letters(task) == wanted
    index = any("by the answer's index, from 0" in note for note in task.notes)
    assert index is (shape in ("MMLU", "HellaSwag")), "the reading is told"
    if shape != "ARC":
        assert "A. red" in task.train[0].question


def test_boolq_is_read_by_words(tmp_path: Path) -> None:
    rows = [{"question": f"is {x} it", "passage": "p", "answer": x == 1} for x in range(3)]
    task = task_of(tmp_path, rows, checker="exact")
    assert [task.grade(f"#### {word}", task.train[1].answer).strict for word in ("Yes", "true", "no")] == [
        True,
        True,
        False,
    ]
    refused = [fault("choice", answer) for answer in letters(task_of(tmp_path, rows))]
    assert all("is not the letter of an option; set task.checker=exact" in sentence for sentence in refused), (
        "of the gold check"
    )


def test_piqa_is_refused_by_a_sentence(tmp_path: Path) -> None:
    rows = [{"goal": f"goal {i}", "sol1": "a", "sol2": "b", "label": i % 2} for i in range(3)]
    with pytest.raises(DataError, match=r"no field 'question'.*task\.columns\.question names another"):
        task_of(tmp_path, rows)
    answers = letters(task_of(tmp_path, rows, columns={"question": "goal"}))
    assert all("is not the letter of an option" in fault("choice", answer) for answer in answers), (
        "without a column of options"
    )


@pytest.mark.parametrize("kind", [int, str])
def test_an_index_in_one_row_is_one_in_all(kind: type, tmp_path: Path) -> None:
    """Also in the rows of the other file, which alone would not tell."""
    alone = rows_of([kind(2), kind(0)], [DIGITS, ["0", "1", "2", "3"]])
    told = [{"question": "told", "choices": COLOURS, "answer": kind(1)}]
    assert letters(task_of(tmp_path, told, alone)) == ["B", "C", "A"]
    assert letters(task_of(tmp_path, alone, told)) == ["C", "A", "B"]


def test_a_text_is_a_text_where_some_answer_is_no_index(tmp_path: Path) -> None:
    rows = rows_of(["2", "20", "B", "1"], [DIGITS, ["10", "20", "30", "40"], COLOURS, DIGITS])
    assert letters(task_of(tmp_path, rows)) == ["B", "B", "B", "A"]


@pytest.mark.parametrize("bad", ["-1", "7", "4", " ", "no option", -1, 7, 4, 0.5])
def test_a_bad_row_changes_the_reading_of_no_other(bad: Any, tmp_path: Path) -> None:
    """Such as -1 for a row without a label."""
    rows = rows_of(["0", bad, "2", "3"], [COLOURS, COLOURS, DIGITS, COLOURS])
    assert letters(task_of(tmp_path, rows, on_bad_row="skip")) == ["A", "C", "D"]
    with pytest.raises(DataError, match=r"path\.jsonl:2: "):
        task_of(tmp_path, rows)


def test_what_no_row_tells_is_read_row_by_row(tmp_path: Path) -> None:
    assert letters(task_of(tmp_path, rows_of(["2", "3"], [DIGITS, DIGITS]))) == ["B", "C"]
    with pytest.raises(DataError, match="the answer 2 is an option and also the index of another"):
        task_of(tmp_path, rows_of([2, 3], [DIGITS, DIGITS]))


@pytest.mark.parametrize("kind", [int, str])
def test_indexes_from_1_are_refused_and_never_read_from_0(kind: type, tmp_path: Path) -> None:
    rows = rows_of([kind(1), kind(4), kind(2)], [COLOURS, COLOURS, COLOURS])
    with pytest.raises(DataError, match="is an index that counts from 1, since some row has the number of its options"):
        task_of(tmp_path, rows)
    with pytest.raises(DataError, match="no training row is left"):
        task_of(tmp_path, rows, on_bad_row="skip")


def test_several_indexes_may_be_right(tmp_path: Path) -> None:
    task = task_of(tmp_path, rows_of([[0, 2], [1], [3]], [COLOURS, DIGITS, COLOURS]))
    assert [[str(task.train[0].answer), *task.train[0].answer.others], *letters(task)[1:]] == [["A", "C"], "B", "D"]
