"""`slimrl grade` as a function."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from slimrl.config.task import TaskConfig
from slimrl.errors import DataError
from slimrl.tasks.answers import Grader
from slimrl.tasks.grade import grade_file
from slimrl.tasks.symbolic import SymbolicWorker
from slimrl.tasks.votes import ASKED, votes


def _file(folder: Path, *rows: object) -> str:
    path = folder / "outputs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_grades_and_writes_rows(tmp_path: Path) -> None:
    file = _file(
        tmp_path,
        {"id": "a", "answer": "72", "completion": "48+24\n#### 72"},
        {"id": "a", "answer": "1,080", "completion": "so 1080."},
        {"id": 7, "answer": 18, "completion": "#### 17"},
        {"id": "c", "answer": "5", "completion": ""},
    )
    out = tmp_path / "rows.jsonl"
    summary = grade_file(TaskConfig(name="gsm8k"), file, str(out))
    assert (summary.n, summary.strict, summary.lenient) == (4, 0.25, 0.5)
    assert (summary.problems, summary.samples) == (4, 1), "an id with two gold answers is two problems"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {
        "id": "a", "strict": True, "lenient": True, "extracted_strict": "72", "extracted_lenient": "72", "answer": "72", "vote": 0,
    }  # fmt: skip
    assert rows[1] == {
        "id": "a", "strict": False, "lenient": True, "extracted_strict": "", "extracted_lenient": "1080", "answer": "1,080", "vote": None,
    }  # fmt: skip
    assert rows[2] == {
        "id": 7, "strict": False, "lenient": False, "extracted_strict": "17", "extracted_lenient": "17", "answer": "18", "vote": 0,
    }  # fmt: skip


def test_samples_of_a_problem_are_measured_together(tmp_path: Path) -> None:
    """Two of three problems, each with its own number of samples, in any order of rows."""
    drawn = {
        "a": ["#### 7", "#### 7.0", "#### 8", "8"],
        "b": ["#### 5", "#### 6", "#### 6.0", "#### 7"],
        "c": ["#### 1"] * 5,
    }
    answers = {"a": "7", "b": "7", "c": "2"}
    rows = [
        {"id": name, "answer": answers[name], "completion": text} for name, texts in drawn.items() for text in texts
    ]
    summary = grade_file(TaskConfig(name="gsm8k"), _file(tmp_path, *reversed(rows)), None)
    assert (summary.n, summary.problems, summary.samples) == (13, 3, 4)
    assert summary.strict == 3 / 13
    assert summary.accuracy == pytest.approx((0.5 + 0.25 + 0) / 3)
    table = summary.table()
    assert [*table["pass@k"]] == [*table["maj@k"]] == ["1", "2", "4"]
    assert (summary.low, summary.high) == (table["pass@k"]["1"]["low"], table["pass@k"]["1"]["high"])
    assert table["pass@k"]["4"]["value"] == pytest.approx(2 / 3)
    assert table["maj@k"]["4"]["value"] == pytest.approx(1 / 3), "6 and 6.0 outvote 7"
    assert "at_k" not in table
    json.dumps(table)


@pytest.mark.parametrize(
    ("checker", "answers", "expected"),
    [
        ("numeric", [("7", True), ("8", False), ("7.0", True), ("8.0", False), ("", False), ("8 or 9", False)], [0, 1, 0, 1, None, 5]),
        ("numeric", [("a", False), ("b", False), ("a", False)], [0, 1, 0]),
        ("symbolic", [("x/2", False), ("0.5x", False), ("\\frac{x}{2}", False), ("x", False)], [0, 0, 0, 3]),
    ],
)  # fmt: skip
def test_equal_answers_are_one_vote(checker: str, answers: list[tuple[str, bool]], expected: list[int | None]) -> None:
    if checker == "symbolic":
        pytest.importorskip("math_verify")
    with closing(Grader(checker)) as grader:  # type: ignore[arg-type]
        assert votes(grader, answers).cast == expected


def test_a_slow_checker_is_asked_about_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    with closing(Grader("symbolic")) as grader:
        asked: list[str] = []
        monkeypatch.setattr(SymbolicWorker, "same", lambda _, guess, __: asked.append(guess))  # no verdict in time
        answers = [(f"x^{{{i}}}", False) for i in range(30)]
        assert votes(grader, answers).cast == list(range(30))
        assert len(asked) == ASKED
        assert votes(grader, [*answers, answers[20]]).cast[-1] == 20, "equal texts need no checker"


def test_thinking_and_end_tokens_of_stored_outputs_are_passed_over(tmp_path: Path) -> None:
    texts = [
        "#### 18<|im_end|>",
        "<think>#### 17</think>\n#### \\boxed{18}</s>",
        "<think>#### 18",
        "#### 18<|im_end|>17",
    ]
    file = _file(tmp_path, *({"id": str(i), "answer": "18", "completion": text} for i, text in enumerate(texts)))
    summary = grade_file(TaskConfig(name="gsm8k"), file, None)
    assert (summary.n, summary.strict, summary.lenient) == (4, 0.5, 0.5)


def test_style_comes_from_the_task(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": "\\boxed{72}"})
    assert grade_file(TaskConfig(name="aime", style="boxed"), file, None).strict == 1.0
    assert grade_file(TaskConfig(name="aime", style="hashes"), file, None).strict == 0.0


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "a", "answer": "72"}, "no field 'completion'"),
        ({"answer": "72", "completion": "x"}, "no field 'id'"),
        ({"id": "a", "completion": "x"}, "no field 'answer'"),
        ({"id": "a", "answer": "72", "completion": None}, "'completion' must be a string, but is null"),
        ({"id": "a", "answer": "x+1", "completion": "x"}, "task.checker=symbolic"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, row: object, what: str) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""}, row)
    with pytest.raises(DataError) as caught:
        grade_file(TaskConfig(name="gsm8k"), file, None)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert what in str(caught.value)


def test_every_row_counts(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""}, {"id": "b"}, 3)
    with pytest.raises(DataError, match=r"outputs\.jsonl:3: expected an object"):
        grade_file(TaskConfig(name="gsm8k"), file, None)
    with pytest.raises(DataError, match=r"outputs\.jsonl:3: expected an object"):
        grade_file(TaskConfig(name="gsm8k", on_bad_row="skip"), file, None)


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    file = _file(tmp_path, {"id": "a", "answer": "72", "completion": ""})
    with pytest.raises(DataError, match="cannot be written"):
        grade_file(TaskConfig(name="gsm8k"), file, str(tmp_path / "missing" / "rows.jsonl"))
