"""Rows of multiple choice as the usual data sets have them, and answers that may be an index or a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimrl.config.task import TaskConfig
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


YES_NO: dict[str, tuple[list[Any], list[str]]] = {
    "booleans": ([True, False, True, False], ["yes", "no"]),
    "words": (["yes", "no", "no", "yes"], ["yes", "no"]),
    "Yes.": (["Yes", "NO", " no ", "yes"], ["yes", "no"]),
    "true": (["true", "false", "false", "true"], ["true", "false"]),
    "a table's": (["True", "False", "False", "True"], ["true", "false"]),
    "only one of them": (["yes", "yes", "yes", "yes"], ["yes", "no"]),
}


@pytest.mark.parametrize("kind", YES_NO)
def test_yes_and_no_are_the_options_where_there_is_no_column_of_them(kind: str, tmp_path: Path) -> None:
    answers, options = YES_NO[kind]
    rows = [{"question": f"is {i} even", "passage": "p", "answer": answer} for i, answer in enumerate(answers)]
    task = task_of(tmp_path, rows)
    wanted = [str(answer).strip().lower() in ("yes", "true") for answer in answers]
    assert letters(task) == ["A" if is_first else "B" for is_first in wanted]
    assert task.train[0].question == f"is 0 even\nA. {options[0]}\nB. {options[1]}"
    assert f"the options are {options[0]} and {options[1]}, which the answers are" in task.notes[0]
    for problem in (*task.train, *task.test):
        assert task.grade(task.gold_text(problem), problem.answer).strict


def test_yes_and_no_are_read_alike_in_both_files(tmp_path: Path) -> None:
    rows = [{"question": f"is {i} even", "answer": i == 2} for i in range(3)]
    held_out = [{"question": "is 5 odd", "answer": "True"}]
    task = task_of(tmp_path, rows, held_out)
    assert letters(task) == ["B", "B", "A", "A"]
    assert all(problem.question.endswith("A. true\nB. false") for problem in (*task.train, *task.test))


def test_one_bad_answer_changes_the_reading_of_no_other(tmp_path: Path) -> None:
    rows = [{"question": f"is {i} even", "answer": "yes" if i % 2 else "no"} for i in range(20)]
    with pytest.raises(
        DataError, match=r"path.jsonl:4: the answer 'perhaps' is neither yes nor no; correct it or remove"
    ):
        task_of(tmp_path, [*rows[:3], {"question": "is it", "answer": "perhaps"}, *rows[3:]])


def test_a_row_with_both_words_is_refused(tmp_path: Path) -> None:
    rows = [{"question": f"is {i} even", "answer": "yes" if i % 2 else "no"} for i in range(20)]
    with pytest.raises(DataError, match=r"path.jsonl:4: the answers are both yes and no, which are all the options"):
        task_of(tmp_path, [*rows[:3], {"question": "is it", "answer": ["yes", "no"]}, *rows[3:]])


@pytest.mark.parametrize("answers", [["0", "1"], [0, 1], ["positive", "negative"], ["yes", "maybe"], ["12", "x"]])
def test_answers_that_name_no_option_are_refused_at_load(answers: list[Any], tmp_path: Path) -> None:
    rows = [{"question": f"question {i}", "label": answers[i % 2]} for i in range(6)]
    with pytest.raises(DataError) as caught:
        task_of(tmp_path, rows)
    assert f"path.jsonl:1: answer '{answers[0]}' is not the letter of an option; set task.checker=exact" in str(
        caught.value
    )
    assert "name the column of the options in task.columns.choices" in str(caught.value)
    assert letters(task_of(tmp_path, rows, checker="exact"))


def test_a_question_that_lists_its_options_gets_no_second_list(tmp_path: Path) -> None:
    rows = [{"question": f"is {i} even?\nA. no\nB. yes", "answer": "yes" if i % 2 else "no"} for i in range(6)]
    with pytest.raises(DataError, match="answer 'no' is not the letter of an option"):
        task_of(tmp_path, rows)
    lettered = [{**row, "answer": "B" if row["answer"] == "yes" else "A"} for row in rows]
    assert task_of(tmp_path, lettered).train[0].question == rows[0]["question"]


def test_letters_need_no_column_of_options(tmp_path: Path) -> None:
    rows = [{"question": f"which of A, B and C, {i}?", "answer": "ABC"[i % 3]} for i in range(6)]
    assert letters(task_of(tmp_path, rows)) == [*"ABCABC"]
    assert not fault("choice", "B")
